() => {
  // Formulas: the server sends their source, with its delimiters, which stays where KaTeX is missing or cannot read it.
  // MathML has the source as an annotation that is neither seen nor read aloud.
  const formulas = new Map(); // rendered, by source: a view is drawn anew with every token
  let katex, importing, next;
  const importKatex = () => {
    const address = document.querySelector("[data-katex]")?.dataset.katex;
    if (!address) return;
    importing = import(`${window.gradio_config.root.replace(/\/$/, "")}/${address}`)
      .then((module) => { katex = module.default; render() }, () => {});
  };
  // Layout takes time that grows with the depth.
  const isSmall = (math) => {
    const parts = [...math.querySelectorAll("*")];
    const depth = (part) => { let number = 0; for (; part !== math; part = part.parentElement) number++; return number };
    return parts.length < 3000 && parts.every((part) => !part.firstElementChild || depth(part) < 40);
  };
  const rendered = (source) => {
    const box = document.createElement("span"), displayMode = /^(\$\$|\\\[)/.test(source);
    const width = /^\$[^$]/.test(source) ? 1 : 2; // of a delimiter
    try {
      katex.render(source.slice(width, -width), box, {
        displayMode, output: "mathml", trust: false, throwOnError: false, errorColor: "currentColor", strict: "ignore",
        maxExpand: 100, maxSize: 5,
      });
    } catch { return null } // deeper than the stack
    const math = box.querySelector("math");
    return math && isSmall(math) ? { math, displayMode } : null;
  };
  const render = () => {
    const found = document.querySelectorAll(".formula:not([data-source])");
    if (!found.length) return;
    if (!katex) return importing || importKatex();
    const until = performance.now() + 50; // the page answers in between
    for (const formula of found) {
      if (performance.now() > until) {
        clearTimeout(next);
        next = setTimeout(render);
        return;
      }
      const source = formula.dataset.source = formula.textContent;
      if (!formulas.has(source)) {
        if (formulas.size >= 1000) formulas.delete(formulas.keys().next().value);
        formulas.set(source, rendered(source));
      }
      const result = formulas.get(source);
      if (!result) continue;
      formula.classList.add(result.displayMode ? "displayed" : "inline");
      formula.replaceChildren(result.math.cloneNode(true));
    }
  };
  new MutationObserver(render).observe(document.body, { childList: true, subtree: true });

  // What is selected is copied with the source of its formulas.
  document.addEventListener("copy", (event) => {
    const selection = getSelection();
    if (selection.isCollapsed || event.target.matches?.("textarea, input")) return;
    const range = selection.getRangeAt(0), part = range.cloneContents();
    const whole = [...part.querySelectorAll(".formula")].filter((formula) => formula.querySelector("math"));
    if (!whole.length) return;
    whole.forEach((formula) => { formula.textContent = formula.dataset.source });
    const box = document.createElement("div"); // in the page: line breaks of blocks are those of what is laid out
    box.className = "spoken";
    box.style.whiteSpace = "pre-wrap";
    box.append(part);
    document.body.append(box);
    event.clipboardData.setData("text/plain", box.innerText);
    box.remove();
    event.preventDefault();
  });
}
