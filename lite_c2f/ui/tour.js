() => {
  // The tour frames one part of the page after another. It is no modal dialog: what it speaks of can be tried.
  const dialog = () => document.getElementById("tour");
  const frame = document.createElement("div"); // Gradio draws its parts anew, and a class on them would be lost
  frame.className = "tour-frame";
  frame.setAttribute("aria-hidden", "true");
  document.body.append(frame);
  const steps = () => [...dialog().querySelectorAll("li")];
  const target = (name) => (name.startsWith("#") ? document.querySelector(name)
    : [...document.querySelectorAll("[role=tab]")].find((tab) => tab.offsetParent && tab.textContent.trim() === name));
  let current = 0, openedBy = null;
  const place = () => {
    const part = dialog()?.open && target(steps()[current].dataset.target);
    const { top, left, width, height } = part ? part.getBoundingClientRect() : { width: 0 };
    frame.style.display = width ? "block" : "none"; // a part that is not there, or of another tab
    if (width) Object.assign(frame.style, { top: `${top - 4}px`, left: `${left - 4}px`, width: `${width + 8}px`, height: `${height + 8}px` });
  };
  const show = (number) => {
    const all = steps();
    current = Math.max(0, Math.min(number, all.length - 1));
    all.forEach((step, index) => { step.hidden = index !== current });
    dialog().querySelector("[role=status]").textContent = `${current + 1} of ${all.length}`;
    dialog().querySelector(".back").disabled = current === 0;
    dialog().querySelector(".next").disabled = current === all.length - 1;
    target(all[current].dataset.target)?.scrollIntoView({ block: "nearest" });
    place();
  };
  const open = () => {
    if (!dialog() || dialog().open) return;
    openedBy = document.activeElement;
    dialog().show();
    show(0);
    dialog().querySelector(".next").focus();
  };
  const close = () => {
    dialog().close();
    place();
    (openedBy?.isConnected ? openedBy : document.getElementById("tour-opens"))?.focus({ preventScroll: true });
  };
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("#tour-opens")) open();
    const button = event.target.closest?.("#tour button");
    if (!button) return;
    if (button.matches(".close")) return close();
    show(current + (button.matches(".next") ? 1 : -1));
    if (button.disabled) dialog().querySelector("button:enabled:not(.close)").focus();
  });
  addEventListener("keydown", (event) => { // before page.js, where Escape stops all answers
    if (event.key === "Escape" && dialog()?.open && !event.isComposing) {
      event.stopPropagation();
      event.preventDefault();
      return close();
    }
    const typing = document.activeElement?.matches("textarea, select, input:not([type=checkbox]):not([type=range])");
    if (event.key === "?" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) open(), event.preventDefault();
  }, true);
  addEventListener("scroll", place, true);
  addEventListener("resize", place);
  setInterval(place, 300); // parts grow while answers are written
}
