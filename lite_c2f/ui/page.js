() => {
  // A view scrolls with its text while it is scrolled to the end.
  const near = (view) => view.scrollHeight - view.scrollTop - view.clientHeight < 48;
  const follows = new WeakMap();
  document.addEventListener("scroll", (event) => {
    if (event.target.matches?.(".block.view")) follows.set(event.target, near(event.target));
  }, true);
  const ready = () => document.querySelectorAll(".block.view").forEach((view) => {
    if (!view.hasAttribute("tabindex")) {
      view.setAttribute("tabindex", "0");
      view.setAttribute("role", "log");
      view.setAttribute("aria-label", view.closest(".pane")?.querySelector(".head b")?.textContent || "answers");
    }
    if (follows.get(view) !== false) view.scrollTop = view.scrollHeight;
    const stop = view.closest(".pane")?.querySelector(".bar button");
    if (stop && !stop.hasAttribute("aria-label")) stop.setAttribute("aria-label", `Stop ${view.getAttribute("aria-label")}`);
  });
  new MutationObserver(ready).observe(document.body, { childList: true, subtree: true, characterData: true });

  const copy = async (text) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const box = document.createElement("textarea"); // pages over http from another machine have no clipboard
    box.value = text;
    document.body.append(box);
    box.select();
    const done = document.execCommand("copy");
    box.remove();
    if (!done) throw new Error("not copied");
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".chip.copy");
    if (!button) return;
    copy(button.dataset.text).then(() => { button.textContent = "copied"; });
  });

  // Text typed and not sent survives a reload; Gradio reloads a page when its server was restarted.
  const draft = (change) => { try { return change(sessionStorage) } catch { return null } };
  document.addEventListener("input", (event) => {
    if (event.target.matches?.("#prompt textarea")) draft((store) => store.setItem("lite_c2f.draft", event.target.value));
  });
  const restore = setInterval(() => {
    const box = document.querySelector("#prompt textarea:enabled");
    if (!box) return;
    clearInterval(restore);
    const text = draft((store) => store.getItem("lite_c2f.draft"));
    if (!text || box.value) return;
    box.value = text;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  }, 100);
  const sent = () => draft((store) => store.removeItem("lite_c2f.draft"));

  // After a click that fills the prompt box, Enter sends it.
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("#edit, .gallery-item, .gallery button, .examples button")) {
      setTimeout(() => visible(".prompt textarea")?.focus(), 300);
    }
    if (event.target.closest?.("#send")) sent();
    if (event.target.closest?.("#delete-session") && !confirm("Delete the chosen session for good?")) {
      event.stopImmediatePropagation();
      event.preventDefault();
    }
  }, true);

  // Escape stops all answers, "/" goes to the prompt.
  const visible = (selector) => [...document.querySelectorAll(selector)].find((element) => element.offsetParent);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && event.target.matches?.("#prompt textarea")) sent();
    if (event.key === "Escape") visible(".stop-all, .stop-all button")?.click();
    const typing = document.activeElement?.matches("textarea, select, input:not([type=checkbox]):not([type=range])");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      const prompt = visible(".prompt textarea");
      if (prompt) { prompt.focus(); event.preventDefault(); }
    }
  });
}
