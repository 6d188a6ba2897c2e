() => {
  // A view follows its text while its reader is at the end of it.
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

  // Escape stops all answers, "/" goes to the prompt.
  const visible = (selector) => [...document.querySelectorAll(selector)].find((found) => found.offsetParent);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") visible(".stop-all, .stop-all button")?.click();
    const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName || "");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      const prompt = visible(".prompt textarea");
      if (prompt) { prompt.focus(); event.preventDefault(); }
    }
  });
}
