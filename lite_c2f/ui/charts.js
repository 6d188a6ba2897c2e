() => {
  // Values of a chart of the Run view: at the pointer, or by the arrow keys while it has the focus.
  const shown = (value) => String(Number(value.toPrecision(4)));
  const read = new WeakMap();
  const linesOf = (graph) => {
    if (read.has(graph)) return read.get(graph);
    const drawn = [...graph.querySelectorAll("polyline")];
    const lines = JSON.parse(graph.dataset.lines).map(([name, xs, ys], index) => ({
      name, xs, ys, places: [...drawn[index].points].map((point) => point.x),
    }));
    const stops = new Map();
    lines.forEach((line) => line.xs.forEach((x, index) => stops.set(x, line.places[index])));
    const found = { lines, stops: [...stops].sort((a, b) => a[0] - b[0]) };
    read.set(graph, found);
    return found;
  };
  const nearest = (places, at) => {
    let low = 0, high = places.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (places[middle] < at) low = middle + 1;
      else high = middle;
    }
    return low > 0 && at - places[low - 1] < places[low] - at ? low - 1 : low;
  };
  const show = (graph, index) => {
    const { lines, stops } = linesOf(graph);
    const [x, place] = stops[Math.max(0, Math.min(index, stops.length - 1))];
    const values = lines.flatMap(({ name, xs, ys, places }) => {
      const near = nearest(places, place);
      const at = xs[near] === x ? "" : ` at ${shown(xs[near])}`;
      return Math.abs(places[near] - place) > 5 ? [] : [`${name} ${shown(ys[near])}${at}`.trim()];
    });
    const text = `${graph.dataset.x} ${graph.dataset.x === "minute" ? shown(x) : x}: ${values.join(", ")}`;
    graph.setAttribute("aria-valuenow", index);
    graph.setAttribute("aria-valuetext", text);
    const readout = graph.parentElement.querySelector(".readout");
    if (readout.textContent !== text) readout.textContent = text;
    const svg = graph.querySelector("svg");
    let guide = svg.querySelector(".guide");
    if (!guide) {
      guide = document.createElementNS("http://www.w3.org/2000/svg", "line");
      guide.setAttribute("class", "guide");
      svg.append(guide);
    }
    const set = { x1: place, x2: place, y1: 0, y2: svg.viewBox.baseVal.height - 22 };
    Object.entries(set).forEach(([name, value]) => guide.setAttribute(name, value));
  };
  const hide = (graph) => {
    graph.querySelector(".guide")?.remove();
    graph.parentElement.querySelector(".readout").textContent = "";
  };
  const graphAt = (event) => event.target.closest?.(".graph");
  const point = (event) => {
    const graph = graphAt(event);
    if (!graph) return;
    const svg = graph.querySelector("svg"), box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    show(graph, nearest(linesOf(graph).stops.map(([, place]) => place), at));
  };
  document.addEventListener("pointermove", point);
  document.addEventListener("pointerdown", point);
  document.addEventListener("pointerout", (event) => {
    const graph = graphAt(event);
    if (graph && !graph.contains(event.relatedTarget) && document.activeElement !== graph) hide(graph);
  });
  // Charts are drawn anew while a run trains: the one with the focus is then known by its name.
  let focused = null;
  const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -1e9, End: 1e9 };
  document.addEventListener("keydown", (event) => {
    const graph = graphAt(event), last = Number(graph?.getAttribute("aria-valuemax"));
    if (!graph || !(event.key in moves) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    focused.index = Math.max(0, Math.min(Number(graph.getAttribute("aria-valuenow")) + moves[event.key], last));
    show(graph, focused.index);
  });
  document.addEventListener("focusin", (event) => {
    const graph = graphAt(event);
    const index = Number(graph?.getAttribute("aria-valuenow"));
    focused = graph ? { name: graph.getAttribute("aria-label"), index } : null;
    if (graph) show(graph, index);
  });
  document.addEventListener("focusout", (event) => { if (graphAt(event)?.isConnected) hide(graphAt(event)) });
  document.addEventListener("pointerdown", (event) => { if (!graphAt(event)) focused = null }, true);
  const keepFocus = () => {
    if (!focused || document.activeElement !== document.body) return;
    const { name, index } = focused;
    const graph = [...document.querySelectorAll(".graph")].find((each) => each.getAttribute("aria-label") === name);
    if (!graph) return;
    const last = Number(graph.getAttribute("aria-valuemax"));
    graph.setAttribute("aria-valuenow", Math.min(index, last));
    graph.focus({ preventScroll: true });
  };

  // The title of the window says that a run has ended, until a key or a pointer is pressed.
  const working = ["starting", "running", "stopping"];
  let watched = null, title = null;
  const watch = () => {
    const state = document.querySelector(".run-state[data-run]");
    if (!state) return;
    const now = { run: state.dataset.run, works: working.some((name) => state.classList.contains(name)) };
    if (watched?.run === now.run && watched.works && !now.works) {
      title ??= document.title;
      document.title = `${state.classList.contains("finished") ? "done" : "stopped"}: ${now.run}`;
    }
    watched = now;
  };
  const restore = () => { if (title !== null) document.title = title, title = null };
  ["keydown", "pointerdown"].forEach((kind) => document.addEventListener(kind, restore, true));

  // The log keeps showing its end while it is scrolled there.
  let atEnd = true, top = 0;
  document.addEventListener("scroll", ({ target }) => {
    if (!target.matches?.(".run-log") || target !== logSeen) return;
    top = target.scrollTop;
    atEnd = top >= target.scrollHeight - target.clientHeight - 24;
  }, true);
  let logSeen = null;
  const followLog = () => {
    const log = document.querySelector(".run-log");
    if (!log?.offsetParent || log === logSeen) return;
    logSeen = log;
    log.scrollTop = atEnd ? log.scrollHeight : top;
  };
  let waiting = false;
  new MutationObserver(() => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => { waiting = false, keepFocus(), watch(), followLog() });
  }).observe(document.body, { childList: true, subtree: true, characterData: true });
}
