"""The Run view: a training run while it works, and after. All of it is read from the disk again and again.

A page that is loaded anew, or a server that is, shows the same: nothing is kept here but what a page was sent.
"""

import html
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context

from lite_c2f.errors import C2FError, RunError
from lite_c2f.ui import run_html
from lite_c2f.ui.answering import QUICK
from lite_c2f.ui.runs import follow, launch, names

EVERY = 2.0  # seconds between two looks
AT_WORK, TO_RESUME = ("starting", "running", "stopping"), ("interrupted", "unfinished", "failed", "killed")
NO_TRAINING = (
    "Runs cannot be started or stopped from this server. On its machine: "
    "<code>lite-c2f train CONFIG --run-dir RUN</code>; Ctrl-C saves and stops."
)
RUN_CSS = """
:root { --line-1: #2563eb; --line-2: #b45309; }
.dark { --line-1: #60a5fa; --line-2: #fbbf24; }
.run-view h3 { margin: 14px 0 4px; font-size: 1rem; }
.run-view h3 span, .run-view .none, .run-view small, .run-view figcaption span, .run-view .stage span {
  color: var(--body-text-color-subdued); font-weight: 400; font-size: .8125rem; }
.run-state { margin: 4px 0; overflow-wrap: anywhere; }
.run-state b { padding: 2px 8px; border-radius: 99px; border: 1px solid currentColor; font-size: .8125rem; }
.run-state.running b, .run-state.starting b, .run-state.stopping b { color: #2563eb; }
.run-state.finished b { color: #15803d; }
.run-state.failed b, .run-state.killed b { color: #b91c1c; }
.dark .run-state.running b, .dark .run-state.starting b, .dark .run-state.stopping b { color: #93c5fd; }
.dark .run-state.finished b { color: #86efac; }
.dark .run-state.failed b, .dark .run-state.killed b { color: #fca5a5; }
.stages { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 1fr)); gap: 6px 18px; }
.stage b { font-size: .875rem; }
.stage .bar { height: 6px; margin-top: 3px; border-radius: 3px; overflow: hidden;
  background: var(--border-color-primary); }
.stage .bar i { display: block; height: 100%; background: #3b82f6; }
.stage.done .bar i { background: #16a34a; }
.stage.interrupted .bar i { background: #f59e0b; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 270px), 1fr)); gap: 10px 16px; }
.plot { margin: 0; min-width: 0; }
.plot figcaption { font-size: .8125rem; display: flex; flex-wrap: wrap; gap: 0 6px; align-items: baseline; }
.plot figcaption em { margin-left: auto; font-style: normal; font-variant-numeric: tabular-nums; font-weight: 600; }
.plot figcaption em + em { margin-left: 0; }
.plot svg { display: block; width: 100%; height: auto; }
.plot text { fill: var(--body-text-color-subdued); font-size: 11px; }
.plot .grid { stroke: var(--border-color-primary); stroke-opacity: 1; }
.plot polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.run-view blockquote { margin: 8px 0 4px; padding: 0 0 0 8px; border-left: 3px solid var(--border-color-primary);
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .875rem; }
.cells { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 210px), 1fr)); gap: 8px; }
.cell { border: 1px solid var(--border-color-primary); border-radius: 6px; padding: 6px 8px; min-width: 0; }
.run-view pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; background: none; padding: 0; border: 0;
  font-size: .8125rem; max-height: 15em; overflow-y: auto; color: var(--body-text-color); }
.cell pre { font-family: inherit; }
.run-view .said { max-height: none; }
.run-view { gap: 8px !important; }
@media (max-width: 640px) {
  .cells { display: flex; overflow-x: auto; width: 0; min-width: 100%; }
  .cell { flex: 0 0 78%; }
}
.run-said { margin: 0; overflow-wrap: anywhere; }
.run-said.failed { color: #b91c1c; }
.dark .run-said.failed { color: #fca5a5; }
"""


def run_view(runs: Path, shown: str, configs: Mapping[str, Path], may_train: bool) -> None:
    """Build the view inside an open gr.Tab of a gr.Blocks, whose CSS needs RUN_CSS.

    runs: the folder of the runs; shown: the name of the one to begin with where none is at work; configs: what a run
    can be started from, by name; may_train: may visitors start and stop processes of this machine?
    """
    tab = Context.block
    with gr.Column(elem_classes="run-view"):
        chosen = gr.Dropdown(
            names(runs), value=_first(runs, shown), label="Run", allow_custom_value=True
        )  # a name that is no longer in the list is refused where it is read: the list changes under a page
        parts = {name: gr.HTML() for name in ("header", "bars")}
        with gr.Accordion("Train", open=False):
            buttons, notice = _training(runs, chosen, configs) if may_train else ([], None)
            if not may_train:
                gr.HTML(f'<p class="none">{NO_TRAINING}</p>')
        parts |= {name: gr.HTML() for name in ("compared", "charts", "samples")}
        with gr.Accordion("Log", open=False):
            parts["said"] = gr.HTML()
        sent = gr.State({})
        timer = gr.Timer(EVERY)

    def look(name: str | None, sent: dict[str, Any]) -> list[Any]:
        now = _now(runs, name, sent)
        news = [now[key] if now[key] != sent.get(key) else None for key in ("list", *parts)]
        places = [gr.skip() if value is None else value for value in news]
        if news[0] is not None:
            places[0] = gr.Dropdown(choices=list(now["list"]), value=now["name"])
        able = now["able"] if now["able"] != sent.get("able") else (None, None)
        switches = [gr.skip() if on is None else gr.Button(interactive=on) for on in able[: len(buttons)]]
        # What a button said is over when the run it was said of has come to rest.
        rests = now["able"] != sent.get("able") and now["name"] == sent.get("name") and not now["able"][0]
        over = [] if notice is None else ["" if rests else gr.skip()]
        return [*places, *switches, *over, now]

    seen = [chosen, *parts.values(), *buttons, *([] if notice is None else [notice]), sent]
    timer.tick(look, [chosen, sent], seen, trigger_mode="once", **QUICK)
    chosen.change(look, [chosen, sent], seen, trigger_mode="always_last", **QUICK)
    if Context.root_block is not None:  # the list is as old as the server
        Context.root_block.load(
            lambda: gr.Dropdown(choices=names(runs), value=_first(runs, shown)), None, chosen, **QUICK
        )
    if isinstance(tab, gr.Tab) and isinstance(tab.parent, gr.Tabs):  # no looks while another tab is shown
        label = tab.label

        def only_here(event: gr.SelectData) -> gr.Timer:
            return gr.Timer(active=event.value == label)

        tab.parent.select(only_here, None, timer, **QUICK)


def _first(runs: Path, shown: str) -> str | None:
    """The run to begin with: one that is at work, else `shown`, else the newest."""
    runs_there = names(runs)
    working = (name for name in runs_there if follow(runs / name).state in AT_WORK)
    return next(working, shown if shown in runs_there else runs_there[0] if runs_there else None)


def _now(runs: Path, name: str | None, sent: Mapping[str, Any]) -> dict[str, Any]:
    """What a page of a run shows now. Curves and samples are made again only where they have changed."""
    runs_there = names(runs)
    name = name or (runs_there[0] if runs_there else None)
    now: dict[str, Any] = {"list": tuple(sorted(runs_there)), "name": name, "able": (False, False)}
    if name not in runs_there or name is None:
        notice = f"There is no run {name[:80]!r} here." if name else "There are no runs here yet: see Train below."
        empty = dict.fromkeys(("bars", "compared", "charts", "samples", "said"), "")
        return now | empty | {"header": f'<p class="none">{html.escape(notice)}</p>'}
    state = follow(runs / name)
    now |= {"header": run_html.header(state), "bars": run_html.bars(state.stages), "said": run_html.log_lines(state)}
    now["version"] = (name, state.version)
    if sent.get("version") == now["version"]:
        now |= {key: sent[key] for key in ("compared", "charts", "samples")}
    else:
        now |= {"charts": run_html.charts(state), "samples": run_html.samples(state.samples)}
        now |= {"compared": run_html.comparison(state)}
    resumable = state.state in TO_RESUME and (runs / name / "config.yaml").is_file()
    if resumable:
        notice = shlex.join(launch.resume_command(runs / name))
        now["header"] += f'<p class="run-state"><span>Continue with:</span> <code>{html.escape(notice)}</code></p>'
    return now | {"able": (state.state in ("starting", "running"), resumable)}


def _training(runs: Path, chosen: gr.Dropdown, configs: Mapping[str, Path]) -> tuple[list[gr.Button], gr.HTML]:
    """The form that starts a run; returns the buttons that stop and resume the one that is chosen, and what it says."""
    first = next(iter(configs), None)
    with gr.Row():
        config = gr.Dropdown(list(configs), value=first, label="Configuration", min_width=180)
        name = gr.Textbox(free_name(runs, first), label="Name of the run", max_lines=1, max_length=64, min_width=180)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90)
        updates = gr.Number(0, label="PPO updates (0: as configured)", precision=0, minimum=0, min_width=90)
    form = [config, name, seed, updates]
    shown = gr.Textbox(
        _command(runs, configs, first, name.value, 0, 0),
        label="Command",
        interactive=False,
        lines=2,
        max_lines=6,
        buttons=["copy"],
        elem_classes="run-command",
    )
    with gr.Row():
        start = gr.Button("Start a new run", variant="primary", min_width=120)
        stop = gr.Button("Stop the run above", interactive=False, min_width=120)
        resume = gr.Button("Resume the run above", interactive=False, min_width=120)
    notice = gr.HTML()

    def begin(config: str, name: str, seed: int | None, updates: int | None, request: gr.Request) -> list[Any]:
        def act() -> str:
            number = launch.start(runs, name, configs, config, seed, updates or None)
            return f"Started {name} as process {number}; it goes on when this page is closed."

        text, done = _told(act, request)
        if not done:
            return [gr.skip(), gr.skip(), text]
        return [gr.Dropdown(choices=names(runs), value=name), free_name(runs, config), text]

    def end(name: str, request: gr.Request) -> str:
        def act() -> str:
            number = launch.stop(launch.known_run(runs, name))
            return f"Asked process {number} to stop: it finishes its step, saves and ends."

        return _told(act, request)[0]

    def go_on(name: str, request: gr.Request) -> str:
        return _told(lambda: f"Process {launch.resume(runs, name)} goes on with {name}.", request)[0]

    config.change(lambda config: free_name(runs, config), config, name, **QUICK)
    if Context.root_block is not None:
        Context.root_block.load(lambda config: free_name(runs, config), config, name, **QUICK)
    gr.on(
        [config.change, name.change, seed.change, updates.change],
        lambda *values: _command(runs, configs, *values),
        form,
        shown,
        trigger_mode="always_last",
        **QUICK,
    )
    start.click(begin, form, [chosen, name, notice], trigger_mode="once", **QUICK)
    stop.click(end, chosen, notice, trigger_mode="once", **QUICK)
    resume.click(go_on, chosen, notice, trigger_mode="once", **QUICK)
    return [stop, resume], notice


def free_name(runs: Path, config: str | None) -> str:
    """A name for a run of a configuration that no run has.

    >>> free_name(Path("runs"), "toy")
    'toy-1'
    """
    stem = re.sub(r"[^a-z0-9._-]+", "-", (config or "run").lower()).strip("._-")[:50] or "run"
    taken = {name.lower() for name in names(runs)}
    return next(f"{stem}-{number}" for number in range(1, len(taken) + 2) if f"{stem}-{number}" not in taken)


def _command(runs: Path, configs: Mapping[str, Path], config: Any, name: Any, seed: Any, updates: Any) -> str:
    """The command that Start runs, or what is wrong with the form."""
    try:
        return shlex.join(launch.new_command(runs, name, configs, config, seed, updates or None))
    except C2FError as error:
        return str(error)


def _told(act: Callable[[], str], request: gr.Request) -> tuple[str, bool]:
    """Do what a button asks for: a sentence as HTML, and whether it was done."""
    try:
        check_origin(request.headers.get("sec-fetch-site"))
        return f'<p class="run-said">{html.escape(act())}</p>', True
    except C2FError as error:
        return f'<p class="run-said failed">{html.escape(str(error))}</p>', False


def check_origin(site: str | None) -> None:
    """Raise RunError for a request that a page of another origin made; browsers say so in Sec-Fetch-Site."""
    if site not in (None, "same-origin", "none"):
        raise RunError.because(f"a request from a page of another site ({site[:20]})", "this page", "use its buttons")
