() => {
  const visible = (selector) => [...document.querySelectorAll(selector)].find((element) => element.offsetParent);
  // A view scrolls with its text while it is scrolled to the end.
  const near = (view) => view.scrollHeight - view.scrollTop - view.clientHeight < 48;
  const follows = new WeakMap();
  document.addEventListener("scroll", (event) => {
    if (event.target.matches?.(".block.view")) follows.set(event.target, near(event.target));
  }, true);
  const ready = () => {
    document.querySelectorAll(".prompt textarea:not([dir=auto])").forEach((box) => { box.dir = "auto" });
    document.querySelectorAll(".block.view").forEach(readyView);
    document.querySelectorAll(".toast-message-text, .toast-text").forEach(moveNotice);
  };
  // A notice stands in the row of the question box that is seen, in place of the one before, and covers no answer.
  let clearing;
  const moveNotice = (message) => {
    const place = visible(".asking")?.querySelector(".notice"), toast = message.closest(".toast-body");
    if (!place || !toast || message.dataset.moved) return;
    message.dataset.moved = "yes";
    toast.style.display = "none"; // Gradio collects messages of one kind in one of these
    const line = document.createElement("p");
    line.className = toast.classList.contains("error") ? "error" : "";
    line.setAttribute("role", "status");
    line.textContent = message.textContent;
    place.replaceChildren(line);
    clearTimeout(clearing);
    clearing = setTimeout(() => line.remove(), 10000);
  };
  const readyView = (view) => {
    if (!view.hasAttribute("tabindex")) {
      view.setAttribute("tabindex", "0");
      view.setAttribute("role", "log");
      view.setAttribute("aria-label", view.closest(".pane")?.querySelector(".head b")?.textContent || "answers");
    }
    if (follows.get(view) !== false) view.scrollTop = view.scrollHeight;
    const stop = view.closest(".pane")?.querySelector(".bar button");
    if (stop && !stop.hasAttribute("aria-label")) stop.setAttribute("aria-label", `Stop ${view.getAttribute("aria-label")}`);
  };
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
    copy(button.dataset.text).then(() => {
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy" }, 2000);
    });
  });

  // Text in a question box survives a reload, until the server has emptied the box; Gradio reloads a page when its
  // server was restarted.
  const stored = (change) => { try { return change(sessionStorage) } catch { return null } };
  const restored = new Set();
  const keepDraft = (id, text) => restored.has(id) && stored((store) => (
    text ? store.setItem(`lite_c2f.draft.${id}`, text) : store.removeItem(`lite_c2f.draft.${id}`)));
  window.lite_c2f = { keepDraft };
  document.addEventListener("input", (event) => {
    const id = event.target.closest?.(".prompt")?.id;
    if (id) restored.add(id), keepDraft(id, event.target.value);
  });
  setInterval(() => document.querySelectorAll(".prompt textarea:enabled").forEach((box) => {
    const id = box.closest(".prompt").id;
    if (restored.has(id)) return;
    restored.add(id);
    const text = stored((store) => store.getItem(`lite_c2f.draft.${id}`));
    if (!text || box.value) return;
    box.value = text;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  }), 100);

  // The open tab is in the address.
  const slug = (tab) => tab.textContent.trim().toLowerCase().replace(/\W+/g, "-");
  const openTab = () => {
    const tabs = [...document.querySelectorAll("[role=tab]")].filter((tab) => tab.offsetParent);
    const wanted = tabs.find((tab) => `#${slug(tab)}` === location.hash);
    if (wanted && wanted.getAttribute("aria-selected") !== "true") wanted.click();
    return tabs.length > 0;
  };
  const opening = setInterval(() => { if (openTab()) clearInterval(opening) }, 100);
  addEventListener("hashchange", openTab);
  document.addEventListener("click", (event) => {
    const tab = event.isTrusted && event.target.closest?.("[role=tab]");
    if (tab) history.replaceState(history.state, "", `#${slug(tab)}`);
  });

  // A page without actors loads itself anew when they are there, on another server.
  setInterval(async () => {
    const { root, app_id } = window.gradio_config;
    if (!document.querySelector(".waiting")) return;
    try {
      const served = await (await fetch(`${root.replace(/\/$/, "")}/gradio_api/app_id`)).json();
      if (served.app_id !== app_id) location.reload();
    } catch {}
  }, 2000);

  // After a click that fills the prompt box, Enter sends it.
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("#edit, .gallery-item, .gallery button, .examples button")) {
      setTimeout(() => visible(".prompt textarea")?.focus(), 300);
    }
    if (event.target.closest?.("#delete-session") && !confirm("Delete the chosen session for good?")) {
      event.stopImmediatePropagation();
      event.preventDefault();
    }
  }, true);

  // Escape stops all answers, "/" goes to the prompt.
  document.addEventListener("keydown", (event) => {
    const closes = event.isComposing || event.target.matches?.("[role=combobox], [role=listbox], select");
    if (event.key === "Escape" && !closes) visible(".stop-all, .stop-all button")?.click();
    const typing = document.activeElement?.matches("textarea, select, input:not([type=checkbox]):not([type=range])");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      const prompt = visible(".prompt textarea");
      if (prompt) { prompt.focus(); event.preventDefault(); }
    }
  });
}
