"""Page without actors: Runs works, the other tabs say what is missing; served until the actors of a run are loaded."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import gradio as gr

from lite_c2f.chat import Chat
from lite_c2f.errors import C2FError, RunError
from lite_c2f.runs.published import check_actors_published
from lite_c2f.ui import run_html
from lite_c2f.ui.answering import QUICK
from lite_c2f.ui.escaping import fill
from lite_c2f.ui.loading import load_behind
from lite_c2f.ui.run_view import ACTIVE, REFRESH, run_view
from lite_c2f.ui.runs import follow, names

RUNS = "Runs"
TABS = ("Compare", "Blind vote", "Ratios", "Evaluation")


class WaitedFor(NamedTuple):
    """The actors that a server without any waits for."""

    runs: Path  # the folder of the runs
    run: str | None  # whose actors; None: of the newest run that has some
    messages: dict[str, str]  # by run, while its actors are loaded and where that failed

    def name(self) -> str | None:
        """The run that is waited for now; None where there is none yet."""
        return self.run or next(iter(names(self.runs)), None)


def has_actors(run: Path) -> bool:
    """Are the Coarse and the Fine Actor of a run published?"""
    try:
        check_actors_published(run)
    except RunError:
        return False
    return True


def loaded_when_ready(
    waited: WaitedFor, merged: bool, also: Sequence[str] = (), models: str | Path | None = None
) -> Chat:
    """Block until a run has its actors and no process works in it, which needs the memory itself; load them.

    merged, also, models: as of `Chat`.
    A run whose actors cannot be loaded is not tried again: its message says why.
    """
    while True:
        for name in [waited.run] if waited.run else names(waited.runs):
            run = waited.runs / name
            if name in waited.messages or not has_actors(run) or follow(run).state in ACTIVE:
                continue
            waited.messages[name] = f"The actors of {name} are being loaded; this page then shows them by itself."
            chat = None
            try:
                chat = Chat(run, merged=merged, also=also, models=models, wait=False)
                load_behind(chat)
                return chat
            except Exception as error:
                from lite_c2f.runtime.batch_size import is_out_of_memory  # loads torch, as the models did

                if not isinstance(error, C2FError | OSError) and not is_out_of_memory(error):
                    raise
                waited.messages[name] = f"The actors of {name} cannot be loaded: {error}"
                chat = None  # with it what was loaded until then, by the error's traceback
        time.sleep(REFRESH)


def waiting_page(waited: WaitedFor, configs: Mapping[str, Path], may_train: bool, log_out: str = "") -> gr.Blocks:
    """The page, not yet served, with Runs open. configs, may_train: as of `run_view`; log_out: HTML of a link."""
    with gr.Blocks(title="lite_c2f", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(
            f"<h1>lite_c2f</h1><span>no actors are loaded yet</span>{log_out}", elem_id="about", elem_classes="about"
        )
        with gr.Tabs(selected=RUNS):
            missing = []
            for label in TABS:
                with gr.Tab(label, id=label):
                    missing.append(gr.HTML(what_is_missing(waited), elem_classes="run-view"))
            with gr.Tab(RUNS, id=RUNS):
                run_view(waited.runs, waited.run or "", configs, may_train)
        timer = gr.Timer(REFRESH)
        timer.tick(lambda: [what_is_missing(waited)] * len(TABS), None, missing, **QUICK)
    return page


def what_is_missing(waited: WaitedFor) -> str:
    """What the tabs without actors show: which run they wait for, its stages, and when it will be done."""
    name = waited.name()
    if name is None:
        return fill("waiting.html", name=None, message="", state="", bars="")
    state = follow(waited.runs / name)
    kind = "training" if state.state in ACTIVE else "published" if has_actors(waited.runs / name) else "idle"
    bars = "" if kind == "published" else run_html.header(state) + run_html.bars(state.stages)
    return fill("waiting.html", name=name, message=waited.messages.get(name, ""), state=kind, bars=bars)
