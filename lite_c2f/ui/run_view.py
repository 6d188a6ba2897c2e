"""Run view: a training run while it works, and after. All of it is read from disk again every two seconds.

A reloaded page and a restarted server show the same: the only state is what a page was sent.
"""

import html
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gradio as gr
from gradio.context import Context

from lite_c2f.errors import C2FError, RunError
from lite_c2f.ui import run_html
from lite_c2f.ui.answering import QUICK
from lite_c2f.ui.run_charts import charts
from lite_c2f.ui.run_choices import Choices, choice_inputs, known_choices, log_inputs
from lite_c2f.ui.runs import follow, launch, names
from lite_c2f.ui.runs.settings import changed_settings, earlier_seconds

REFRESH = 2.0  # seconds between two updates
ACTIVE, RESUMABLE = ("starting", "running", "stopping"), ("interrupted", "unfinished", "failed", "killed")
NO_TRAINING = (
    "Runs cannot be started or stopped from this server. On its machine: "
    "<code>lite-c2f train CONFIG --run-dir RUN</code>; Ctrl-C saves and stops."
)


def run_view(runs: Path, shown: str, configs: Mapping[str, Path], may_train: bool) -> None:
    """Build the view inside an open gr.Tab of a gr.Blocks.

    runs: the folder of the runs; shown: the one shown first where none is active; configs: those that a run can be
    started from, by name; may_train: may visitors start and stop processes of this machine?
    """
    tab = Context.block
    with gr.Column(elem_classes="run-view"):
        chosen = gr.Dropdown(
            names(runs), value=_first(runs, shown), label="Run", allow_custom_value=True
        )  # a name that is no longer in the list is refused where it is read: the list changes under a page
        gr.HTML(elem_classes="notice")  # page.js shows Gradio's notices here
        parts = {name: gr.HTML() for name in ("header", "bars", "warnings")}
        with gr.Accordion("Train", open=not names(runs)):
            buttons, notice = _training(runs, chosen, configs) if may_train else ([], None)
            if not may_train:
                gr.HTML(f'<p class="none">{NO_TRAINING}</p>')
        parts["compared"] = gr.HTML()
        inputs = choice_inputs()
        parts |= {name: gr.HTML() for name in ("charts", "samples")}
        with gr.Accordion("Settings changed", open=False):
            parts["settings"] = gr.HTML()
        with gr.Accordion("Log", open=False):
            inputs = [*inputs, *log_inputs()]
            parts["log"] = gr.HTML()
        sent = gr.State({})
        timer = gr.Timer(REFRESH)

    def refresh(name: str | None, sent: dict[str, Any], *choices: Any) -> list[Any]:
        asked = known_choices(*choices)
        now = _content(runs, name, sent, asked, configs)
        updates = [gr.skip() if now[key] == sent.get(key) else now[key] for key in ("list", *parts)]
        if now["list"] != sent.get("list"):
            # Not the value that it has: it may have been changed since it was read.
            value: dict[str, Any] = {} if now["name"] == name else {"value": now["name"]}
            updates[0] = gr.Dropdown(choices=list(now["list"]), **value)
        beside = gr.skip()
        if any(now[key] != sent.get(key) for key in ("list", "name")):
            listed = [other for other in now["list"] if other != now["name"]]
            beside = gr.Dropdown(choices=listed, value=[run for run in asked.runs if run in listed])
        enabled_changed = any(now[key] != sent.get(key) for key in ("enabled", "name"))
        if buttons:
            updates += [gr.Button(interactive=can) if enabled_changed else gr.skip() for can in now["enabled"]]
            updates.append(gr.Button(interactive=True) if enabled_changed and not now["enabled"][0] else gr.skip())
        if notice is not None:  # a button's message is removed when the run it was about has stopped
            stopped = enabled_changed and now["name"] == sent.get("name") and not now["enabled"][0]
            updates.append("" if stopped else gr.skip())
        return [*updates, beside, now]

    outputs = [chosen, *parts.values(), *buttons, *([] if notice is None else [notice]), inputs[0], sent]
    read = [chosen, sent, *inputs]
    timer.tick(refresh, read, outputs, trigger_mode="once", **QUICK)
    changes = [chosen.change, *(choice.change for choice in inputs)]
    gr.on(changes, refresh, read, outputs, trigger_mode="always_last", **QUICK)
    if Context.root_block is not None:  # the list was made when the server started
        Context.root_block.load(
            lambda: gr.Dropdown(choices=names(runs), value=_first(runs, shown)), None, chosen, **QUICK
        )
    if isinstance(tab, gr.Tab) and isinstance(tab.parent, gr.Tabs):  # no updates while another tab is shown
        label = tab.label

        def only_here(event: gr.SelectData) -> gr.Timer:
            return gr.Timer(active=event.value == label)

        # "once" would leave out a tab that is opened right after another; "always_last" would tell of the other
        tab.parent.select(only_here, None, timer, trigger_mode="multiple", **QUICK)


def _first(runs: Path, shown: str) -> str | None:
    """The run shown first: an active one, else `shown`, else the newest."""
    listed = names(runs)
    active = (name for name in listed if follow(runs / name).state in ACTIVE)
    return next(active, shown if shown in listed else listed[0] if listed else None)


def _content(
    runs: Path,
    name: str | None,
    sent: Mapping[str, Any],
    choices: Choices = Choices(),
    configs: Mapping[str, Path] = MappingProxyType({}),
) -> dict[str, Any]:
    """What the view shows of a run now. Curves and samples are drawn again only where they have changed."""
    listed = names(runs)
    name = name or (listed[0] if listed else None)
    now: dict[str, Any] = {"list": tuple(sorted(listed)), "name": name, "enabled": (False, False)}
    if name not in listed or name is None:
        notice = f"There is no run {name[:80]!r} here." if name else "There are no runs here yet: see Train below."
        empty = dict.fromkeys(("bars", "warnings", "compared", "charts", "samples", "settings", "log"), "")
        return now | empty | {"header": f'<p class="none">{html.escape(notice)}</p>'}
    state = follow(runs / name, whole_log=True)
    earlier = earlier_seconds(runs / name, listed) if state.state == "running" else {}
    now["settings"] = run_html.settings(changed_settings(runs / name, state.started, listed, configs))
    now |= {
        "header": run_html.header(state, earlier),
        "bars": run_html.bars(state.stages),
        "warnings": run_html.warnings(state),
        "log": run_html.log_lines(state, choices.search, choices.whole_log),
    }
    others = [follow(runs / other) for other in choices.runs if other in listed and other != name]
    versions = tuple((each.name, each.version) for each in (state, *others))
    now |= {"compared": run_html.comparison(state), "version": (versions, choices.view)}
    if sent.get("version") == now["version"]:
        now |= {key: sent[key] for key in ("charts", "samples")}
    else:
        now |= {"charts": charts([state, *others], choices.view), "samples": run_html.samples(state.samples)}
    resumable = state.state in RESUMABLE and (runs / name / "config.yaml").is_file()
    if resumable:
        notice = shlex.join(launch.resume_command(runs / name))
        now["header"] += f'<p class="run-state"><span>Continue with:</span> <code>{html.escape(notice)}</code></p>'
    return now | {"enabled": (state.state in ("starting", "running"), resumable)}


def _training(runs: Path, chosen: gr.Dropdown, configs: Mapping[str, Path]) -> tuple[list[gr.Button], gr.HTML]:
    """The form that starts a run; returns the buttons that stop and resume the chosen one, Start, and their message.

    Start can act again once the form is changed, or the chosen run works no more: a second click starts no second run.
    """
    first = next(iter(configs), None)
    with gr.Row():
        config = gr.Dropdown(list(configs), value=first, label="Configuration", min_width=180)
        name = gr.Textbox(free_name(runs, first), label="Name of the run", max_lines=1, max_length=64, min_width=180)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90)
        updates = gr.Number(0, label="PPO updates (0: as configured)", precision=0, minimum=0, min_width=90)
    form = [config, name, seed, updates]
    command = gr.Textbox(
        _command(runs, configs, first, name.value, 0, 0),
        label="Command of the next new run",
        interactive=False,
        lines=2,
        max_lines=6,
        buttons=["copy"],
        elem_classes="run-command",
    )
    with gr.Row():
        start = gr.Button("Start a new run", variant="primary", min_width=120, elem_id="start-run")
        stop = gr.Button("Stop the run above", interactive=False, min_width=120, elem_id="stop-run")
        resume = gr.Button("Resume the run above", interactive=False, min_width=120)
    notice = gr.HTML()

    def start_run(config: str, name: str, seed: int | None, updates: int | None, request: gr.Request) -> list[Any]:
        def action() -> str:
            number = launch.start(runs, name, configs, config, seed, updates or None)
            begun = f"Started {name} as process {number}; it continues when this page is closed."
            return f"{begun} Change the form to start another one."

        text, done = _result_of(action, request)
        if not done:
            return [gr.skip(), gr.skip(), text, gr.skip()]
        listed = gr.Dropdown(choices=names(runs), value=name)
        return [listed, free_name(runs, config), text, gr.Button(interactive=False)]

    def stop_run(name: str, request: gr.Request) -> list[Any]:
        def action() -> str:
            number = launch.stop(launch.known_run(runs, name))
            return f"Asked process {number} to stop: it finishes its step, saves and ends."

        return _once(*_result_of(action, request))

    def resume_run(name: str, request: gr.Request) -> list[Any]:
        return _once(*_result_of(lambda: f"Process {launch.resume(runs, name)} resumes {name}.", request))

    config.change(lambda config: free_name(runs, config), config, name, **QUICK)
    if Context.root_block is not None:
        Context.root_block.load(lambda config: free_name(runs, config), config, name, **QUICK)
    gr.on(
        [config.change, name.change, seed.change, updates.change],
        lambda *values: _command(runs, configs, *values),
        form,
        command,
        trigger_mode="always_last",
        **QUICK,
    )
    gr.on(
        [config.input, name.input, seed.input, updates.input], lambda: gr.Button(interactive=True), None, start, **QUICK
    )
    start.click(start_run, form, [chosen, name, notice, start], trigger_mode="once", **QUICK)
    stop.click(stop_run, chosen, [stop, notice], trigger_mode="once", **QUICK)
    resume.click(resume_run, chosen, [resume, notice], trigger_mode="once", **QUICK)
    return [stop, resume, start], notice


def _once(text: str, done: bool) -> list[Any]:
    """The button that was pressed, grey until the state of the run has changed, and its message."""
    return [gr.Button(interactive=False) if done else gr.skip(), text]


def free_name(runs: Path, config: str | None) -> str:
    """A name for a run of a configuration that no run has.

    >>> free_name(Path("runs"), "toy")
    'toy-1'
    """
    stem = re.sub(r"[^a-z0-9._-]+", "-", (config or "run").lower()).strip("._-")[:50] or "run"
    taken = {name.lower() for name in names(runs)}
    return next(f"{stem}-{number}" for number in range(1, len(taken) + 2) if f"{stem}-{number}" not in taken)


def _command(runs: Path, configs: Mapping[str, Path], config: Any, name: Any, seed: Any, updates: Any) -> str:
    """The command that Start runs, or the error in the form."""
    try:
        return shlex.join(launch.new_command(runs, name, configs, config, seed, updates or None))
    except C2FError as error:
        return str(error)


def _result_of(action: Callable[[], str], request: gr.Request) -> tuple[str, bool]:
    """Do what a button is for: (its message as HTML, whether it was done)."""
    try:
        check_origin(request.headers.get("sec-fetch-site"))
        return f'<p class="run-message">{html.escape(action())}</p>', True
    except C2FError as error:
        return f'<p class="run-message failed">{html.escape(str(error))}</p>', False


def check_origin(site: str | None) -> None:
    """Raise RunError for a request from a page of another origin, which browsers state in Sec-Fetch-Site."""
    if site not in (None, "same-origin", "none"):
        raise RunError.because(f"a request from a page of another site ({site[:20]})", "this page", "use its buttons")
