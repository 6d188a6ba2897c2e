() => {
  const visible = (selector) => [...document.querySelectorAll(selector)].find((element) => element.offsetParent);
  // A view scrolls with its text while it is scrolled to the end. Whether it is follows from where it stands now and
  // where its end was: an event that says so may come after the text has grown.
  const ends = new WeakMap(), following = new WeakMap(), hidden = new WeakSet(), scrolledHere = new WeakMap();
  const scrollView = (view, top) => {
    if (view.scrollTop !== top) view.scrollTop = top, scrolledHere.set(view, view.scrollTop);
  };
  const toEnd = (view) => {
    if (!view.offsetParent) return hidden.add(view); // where it stood is lost
    const end = view.scrollHeight - view.clientHeight;
    if (!hidden.delete(view)) following.set(view, view.scrollTop >= Math.min(ends.get(view) ?? 0, end) - 48);
    ends.set(view, end);
    if (following.get(view) !== false) scrollView(view, end);
  };
  const views = () => [...document.querySelectorAll("#panes .column.view")];
  const panes = { together: true, fully: false }; // do they scroll together? are they as high as their text?
  document.addEventListener("scroll", (event) => {
    const view = event.target;
    if (!view.matches?.(".column.view, .block.view")) return;
    following.set(view, view.scrollTop >= view.scrollHeight - view.clientHeight - 48);
    if (view.scrollTop === scrolledHere.get(view)) return; // by this program, not by a person
    scrolledHere.delete(view);
    if (panes.together && view.closest("#panes")) views().forEach((other) => scrollView(other, view.scrollTop));
  }, true);

  // A round is as high in each pane as in the one where it is highest: it begins at the same height in all of them. A
  // shorter answer stays in sight while the longer ones beside it are read: one that fits by its beginning, one that
  // does not by its end.
  const observed = new WeakSet(), stuckAt = new WeakMap();
  const stick = (rounds) => {
    const bar = document.querySelector("#panes .bar"), view = views().find((view) => view.offsetParent);
    if (!bar || !view) return;
    const first = panes.fully ? bar.offsetHeight + 8 : 8;
    const room = panes.fully ? innerHeight - document.getElementById("ask").offsetHeight : view.clientHeight;
    const tops = rounds.map((round) => `${Math.min(first, room - round.offsetHeight - 8)}px`);
    rounds.forEach((round, index) => { stuckAt.set(round, round.style.top = tops[index]) });
  };
  const stickAll = () => stick([...document.querySelectorAll("#panes .inner")]);
  addEventListener("resize", stickAll);
  const heights = new ResizeObserver((entries) => {
    stick(entries.map((entry) => entry.target));
    new Set(entries.map((entry) => entry.target.dataset.place)).forEach((place) => {
      const rounds = [...document.querySelectorAll(`#panes .inner[data-place="${place}"]`)];
      const highest = Math.max(...rounds.map((round) => Math.ceil(round.getBoundingClientRect().height)));
      const style = document.getElementById("panes")?.style, name = `--round-${place}`;
      if (style && style.getPropertyValue(name) !== `${highest}px`) style.setProperty(name, `${highest}px`);
    });
    views().forEach(toEnd);
    keepEnd();
  });
  // Where the panes are as high as their text it is the window that scrolls, with the text while its end is seen.
  const below = () => {
    const row = document.getElementById("panes"), bar = document.getElementById("ask");
    return row?.offsetParent ? row.getBoundingClientRect().bottom + bar.offsetHeight - innerHeight : 0;
  };
  let endSeen = true;
  addEventListener("scroll", () => { endSeen = below() < 48 });
  const keepEnd = () => { if (panes.fully && endSeen && below() > 0) scrollBy(0, below()) };
  const setPanes = (name, on) => {
    panes[name] = on;
    document.documentElement.classList.toggle("fully", panes.fully);
    stickAll();
    views().forEach(toEnd);
    endSeen = true;
    if (name === "fully") keepEnd();
  };
  // One polite announcement for answers that have ended; their text stands under the heading of their question.
  const spoken = document.createElement("div");
  spoken.className = "spoken";
  spoken.setAttribute("role", "status");
  document.body.append(spoken);
  const busy = new WeakMap();
  let news = [], saying;
  const tell = (view) => {
    const writing = !!view.querySelector(".chip.live"), rounds = view.querySelectorAll(".you").length;
    const before = busy.get(view);
    busy.set(view, { writing, rounds });
    if (!before?.writing || writing || before.rounds !== rounds) return; // taken back, it has not ended
    const chips = [...view.querySelectorAll(".chips")].at(-1);
    news.push(`${view.getAttribute("aria-label")}: ${chips?.querySelector(".chip")?.textContent || "ended"}`);
    clearTimeout(saying);
    saying = setTimeout(() => { spoken.textContent = news.join("; "); news = [] }, 500);
  };
  // Send has nothing to send while its box is blank. The attribute is this program's alone: `disabled` is the server's.
  const markBlank = (row, text) => {
    row?.querySelector(".send")?.setAttribute("aria-disabled", !/\S/.test(text ?? row.querySelector("textarea")?.value ?? ""));
  };
  // Answers that were turned to are told by their place among those of the question.
  const turns = { "previous-answers": "Previous answers", "next-answers": "Next answers" };
  let turnedFrom = null;
  const place = () => document.querySelector("#variants .count")?.textContent || "";
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("#previous-answers, #next-answers")) turnedFrom = place();
  }, true);
  const tellTurn = () => {
    if (turnedFrom === null || place() === turnedFrom) return;
    turnedFrom = null;
    clearTimeout(saying); // what ended before is no longer in view
    news = [];
    spoken.textContent = place();
  };
  let keepButtons = () => {}, showChosen = () => {}; // of copies and of a narrow window, below
  const ready = () => {
    tellTurn();
    showChosen();
    markRow();
    keepButtons();
    Object.entries(turns).forEach(([id, name]) => document.getElementById(id)?.setAttribute("aria-label", name));
    document.querySelectorAll(".prompt textarea:not([dir=auto])").forEach((box) => { box.dir = "auto" });
    document.querySelectorAll(".asking").forEach((row) => markBlank(row));
    document.querySelectorAll(".column.view, .block.view").forEach(readyView);
    document.querySelectorAll("#panes .inner").forEach((round) => {
      if (!observed.has(round)) observed.add(round), heights.observe(round);
      // Gradio takes the attribute off with every token, also where the height, which `heights` waits for, stays.
      else if (!round.style.top && stuckAt.has(round)) round.style.top = stuckAt.get(round);
    });
    document.querySelectorAll(".toast-message-text, .toast-text").forEach(moveNotice);
  };
  // A notice stands in the row of the question box that is seen, or above the run, in place of the one before, and covers
  // no answer.
  let clearing;
  const moveNotice = (message) => {
    const place = visible(".asking, .run-view:has(> .notice)")?.querySelector(".notice"), toast = message.closest(".toast-body");
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
      view.setAttribute("role", "region");
    }
    const name = view.closest(".pane")?.querySelector(".head h2")?.textContent || "answers"; // the other pane's changes
    const renamed = view.getAttribute("aria-label") !== name;
    if (renamed) view.setAttribute("aria-label", name);
    tell(view);
    if (!view.closest("#panes")) toEnd(view); // there, a text that grows is seen by `heights`, after one layout for all
    const stop = view.closest(".pane")?.querySelector(".bar button");
    if (stop && (renamed || !stop.hasAttribute("aria-label"))) stop.setAttribute("aria-label", `Stop ${name}`);
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
  // A view is drawn anew with every token: a button that copies code is then known by its place in its view, keeps the
  // focus there, and its "copied" until it turns back.
  const codeButtons = (view) => [...(view?.querySelectorAll(".code .copy") ?? [])];
  const placeOf = (button) => {
    const view = button.closest(".column.view") ?? button.closest(".block"); // which stay
    return view && button.closest(".code") ? { view, index: codeButtons(view).indexOf(button) } : null;
  };
  const at = (place) => place && codeButtons(place.view)[place.index];
  let focusedCopy = null, copied = null;
  document.addEventListener("focusin", (event) => { focusedCopy = event.target.matches(".code .copy") ? placeOf(event.target) : null });
  document.addEventListener("pointerdown", (event) => { if (!event.target.closest?.(".code .copy")) focusedCopy = null }, true);
  keepButtons = () => {
    const button = at(copied);
    if (button && button.textContent !== "copied") button.textContent = "copied";
    if (focusedCopy && document.activeElement === document.body) at(focusedCopy)?.focus({ preventScroll: true });
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".chip.copy");
    if (!button) return;
    const place = placeOf(button);
    copy(button.dataset.text ?? button.closest(".code").querySelector("code").textContent).then(() => {
      const before = at(copied);
      if (before && before !== button) before.textContent = "copy"; // one at a time
      copied = place;
      (at(place) ?? button).textContent = spoken.textContent = "copied";
      setTimeout(() => {
        (at(place) ?? button).textContent = "copy";
        if (copied === place) copied = null, spoken.textContent = "";
      }, 2000);
    });
  });

  // Buttons under an answer stand for one of Gradio's. Drawn anew they are others: the focus stays in the pane.
  document.addEventListener("click", (event) => {
    const act = event.target.closest?.(".chip.act");
    if (!act) return;
    act.closest(".column.view")?.focus({ preventScroll: true });
    document.getElementById(act.dataset.target)?.click();
  });

  // A row of the table of prompts, or the head of a column. The table is drawn anew: the focus finds its button again,
  // and the row whose answers are shown is marked.
  let focusedPick = null;
  document.addEventListener("click", (event) => {
    const row = event.target.closest?.(".prompts tr[data-row]");
    const pick = event.target.closest?.(".pick") || row?.querySelector(".pick");
    if (!pick || (row && getSelection().toString())) return;
    focusedPick = pick.dataset.value;
    window.lite_c2f.picked = pick.dataset.value;
    document.getElementById(pick.dataset.target)?.click();
  });
  let chosenRow = null;
  const markRow = () => {
    const chosen = document.querySelector("#evaluation-answers .chosen"), number = chosen?.dataset.chosen ?? null;
    document.querySelectorAll(".prompts tr[data-row]").forEach((row) => {
      const current = row.dataset.row === number;
      if (current && !row.hasAttribute("aria-current")) row.setAttribute("aria-current", "true");
      if (!current) row.removeAttribute("aria-current");
    });
    if (document.activeElement === document.body && focusedPick !== null) {
      document.querySelector(`.prompts .pick[data-value="${CSS.escape(focusedPick)}"]`)?.focus({ preventScroll: true });
    }
    if (number === chosenRow) return;
    chosenRow = number;
    const row = document.querySelector(".prompts tr[aria-current]"), table = row?.closest(".prompts");
    if (table) { // the row by its place in the table alone, then the answers in the window
      const head = table.querySelector("thead").offsetHeight, { top, bottom } = row.getBoundingClientRect();
      const seen = table.getBoundingClientRect();
      if (top < seen.top + head) table.scrollTop -= seen.top + head - top;
      else if (bottom > seen.bottom) table.scrollTop += bottom - seen.bottom;
    }
    chosen?.scrollIntoView({ block: "nearest" });
  };

  // Text in a question box survives a reload, until the server has emptied the box; Gradio reloads a page when its
  // server was restarted.
  const stored = (change) => { try { return change(sessionStorage) } catch { return null } };
  const restored = new Set();
  const keepDraft = (id, text) => restored.has(id) && stored((store) => (
    text ? store.setItem(`lite_c2f.draft.${id}`, text) : store.removeItem(`lite_c2f.draft.${id}`)));
  const asked = {}, typed = {}; // by box: the question that was sent, until the server has taken it; what was typed last
  const promptChanged = (id, text) => { // by a person or the server
    keepDraft(id, text);
    markBlank(document.getElementById(id)?.closest(".asking"), text ?? "");
    if (!text && typed[id] && id in asked) { // taken; what was typed behind it meanwhile is the next question's
      const next = typed[id].startsWith(asked[id]) ? typed[id].slice(asked[id].length) : typed[id];
      if (next) setTimeout(() => typeIn(document.querySelector(`#${id} textarea`), next));
      delete asked[id], delete typed[id];
    }
  };
  const typeIn = (box, text) => {
    box.value = text + box.value;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  };
  window.lite_c2f = { promptChanged, panes: setPanes };
  document.addEventListener("input", (event) => {
    const id = event.target.closest?.(".prompt")?.id;
    if (id) restored.add(id), typed[id] = event.target.value, promptChanged(id, event.target.value);
  });
  const asks = (box) => { asked[box.closest(".prompt").id] = typed[box.closest(".prompt").id] = box.value };
  document.addEventListener("keydown", (event) => {
    const sends = event.key === "Enter" && !event.shiftKey && !event.isComposing;
    if (sends && event.target.matches?.(".prompt textarea")) asks(event.target);
  }, true);
  document.addEventListener("click", (event) => {
    const box = event.target.closest?.(".send") && event.target.closest(".asking")?.querySelector(".prompt textarea");
    if (box) asks(box);
  }, true);
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.(".send[aria-disabled=true]")) return;
    event.stopImmediatePropagation();
    event.preventDefault();
    visible(".prompt textarea")?.focus();
  }, true);
  // Who asks wants to see the answers, wherever the panes stand.
  const allToEnd = () => views().forEach((view) => {
    following.set(view, true);
    scrollView(view, view.scrollHeight - view.clientHeight);
  });
  document.addEventListener("click", (event) => { if (event.target.closest?.("#send")) allToEnd() });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target.matches?.("#prompt textarea")) allToEnd();
  });
  setInterval(() => document.querySelectorAll(".prompt textarea:enabled").forEach((box) => {
    const id = box.closest(".prompt").id;
    if (restored.has(id)) return;
    restored.add(id);
    const text = stored((store) => store.getItem(`lite_c2f.draft.${id}`));
    if (text && !box.value) typeIn(box, text);
  }), 100);

  // A file of questions is read here, into the box: no file is sent.
  document.addEventListener("change", async (event) => {
    const [file] = event.target.id === "question-file" ? event.target.files : [];
    if (!file) return;
    const box = document.querySelector("#own-questions textarea"), say = document.getElementById("question-file-said");
    const most = Number(event.target.dataset.most), text = file.size <= 4 * most ? await file.text() : null;
    event.target.value = ""; // it may be chosen again when it has changed
    if (text === null || text.length > most) {
      say.textContent = `${file.name} is larger than ${most.toLocaleString("en")} characters: ask them in several sets.`;
    } else if (/[\0\ufffd]/.test(text)) {
      say.textContent = `${file.name} is no text in UTF-8: save it as such.`;
    } else {
      box.value = text;
      box.dispatchEvent(new Event("input", { bubbles: true }));
      say.textContent = `${file.name} is in the box.`;
    }
  });

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

  // A page whose server was restarted loads itself anew: its buttons may mean others there. One without actors asks
  // every two seconds, as they come with another server; any other when somebody looks at it again.
  const followServer = async () => {
    const { root, app_id } = window.gradio_config;
    try {
      const served = await (await fetch(`${root.replace(/\/$/, "")}/gradio_api/app_id`)).json();
      if (served.app_id !== app_id) location.reload();
    } catch {}
  };
  setInterval(() => { if (document.querySelector(".waiting")) followServer() }, 2000);
  addEventListener("focus", followServer);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) followServer() });
  // One that Back shows again as it was left would go on with an older conversation than its tab's.
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload() });

  // In a narrow window one pane is shown, or the figures and the ratio.
  const choosePane = (pane) => {
    document.getElementById("panes").parentElement.dataset.pane = pane; // Gradio's rules of a width reach no higher
    document.querySelectorAll(".pane-choice button").forEach((button) => {
      button.setAttribute("aria-pressed", button.dataset.shows === pane);
    });
  };
  // A pane that is opened below the panes comes into sight.
  const headOfOther = () => document.querySelector("#pane-other:not(.hide) .head")?.textContent || "";
  let looking;
  const showOpened = () => {
    const before = headOfOther(), until = Date.now() + 10000;
    clearInterval(looking);
    looking = setInterval(() => {
      const now = headOfOther(), pane = document.getElementById("pane-other");
      if (now === before && Date.now() < until) return; // not yet, or it was refused
      clearInterval(looking);
      if (now === before || !now) return;
      stored((store) => store.setItem("lite_c2f.pane", "other"));
      choosePane("other");
      pane.scrollIntoView({ block: "nearest", inline: "nearest" });
    }, 100);
  };
  document.addEventListener("click", (event) => { if (event.target.closest?.("#open-other")) showOpened() });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches?.("#other-ratio input")) showOpened();
  });
  const chosenPane = () => stored((store) => store.getItem("lite_c2f.pane")) || "fine";
  document.addEventListener("click", (event) => {
    const pane = event.target.closest?.(".pane-choice button")?.dataset.shows;
    if (!pane) return;
    stored((store) => store.setItem("lite_c2f.pane", pane));
    choosePane(pane);
  });
  showChosen = () => { // Fine in place of a pane that is not there, or not yet
    if (!document.querySelector(".pane-choice button") || !document.getElementById("panes")) return;
    const wanted = chosenPane(), there = wanted === "figures" || document.querySelector(`#pane-${wanted}:not(.hide)`);
    const pane = there ? wanted : "fine";
    if (document.getElementById("panes").parentElement.dataset.pane !== pane) choosePane(pane);
  };
  showChosen();

  document.addEventListener("click", (event) => {
    if (!event.target.closest?.(".skip")) return;
    event.preventDefault(); // the address has the open tab
    (visible(".prompt textarea") || visible("[role=tabpanel] input"))?.focus();
  });

  // After a click that fills the prompt box, Enter sends it.
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("#edit, .gallery-item, .gallery button, .examples button")) {
      setTimeout(() => visible(".prompt textarea")?.focus(), 300);
    }
    const what = event.target.closest?.("#delete-session") ? "session"
      : event.target.closest?.("#delete-set") ? "questions and their answers" : "";
    if (what && !confirm(`Delete the chosen ${what} for good?`)) {
      event.stopImmediatePropagation();
      event.preventDefault();
    }
  }, true);

  // The second click of a double click is none: what the first one began would be refused, or begun twice.
  document.addEventListener("click", (event) => {
    if (event.detail < 2 || !event.target.closest?.(".asking button, #regenerate, #regenerate-fine, .chip.act, .run-view button:not(.step, .pick)")) return;
    event.stopImmediatePropagation();
    event.preventDefault();
  }, true);

  // Escape stops all answers, "/" goes to the prompt, a digit presses the button of a vote that has it in its label.
  document.addEventListener("keydown", (event) => {
    const closes = event.isComposing || event.target.matches?.("[role=combobox], [role=listbox], select");
    if (event.key === "Escape" && !closes) visible(".stop-all, .stop-all button")?.click();
    const typing = document.activeElement?.matches("textarea, select, input:not([type=checkbox]):not([type=range])");
    const modified = event.ctrlKey || event.metaKey || event.altKey;
    if (/^[0-9]$/.test(event.key) && !typing && !modified && !event.repeat) {
      const votes = [...document.querySelectorAll("button[id^=vote-]:enabled")].filter((button) => button.offsetParent);
      votes.find((button) => button.textContent.trim().endsWith(`(${event.key})`))?.click();
    }
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      const prompt = visible(".prompt textarea");
      if (prompt) { prompt.focus(); event.preventDefault(); }
    }
  });
}
