"""Page without actors: what it says is missing, and which run's actors are loaded when."""

import gc
import re
import threading
import weakref

import pytest

pytest.importorskip("gradio")

import gradio as gr

from lite_c2f.errors import RunError
from lite_c2f.runs.published import FINISHED
from lite_c2f.storage import lock
from lite_c2f.ui import waiting
from lite_c2f.ui.waiting import WaitedFor

# Gradio leaves event loops and their sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio"),
]


def make_run(run, *stages):
    for name in ("run.json", "config.yaml", *(FINISHED[stage] for stage in stages)):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("{}")


def missing(runs, run=None, messages=()):
    return " ".join(re.sub("<[^>]*>", "", waiting.what_is_missing(WaitedFor(runs, run, dict(messages)))).split())


def test_what_is_missing_is_said(tmp_path):
    assert "no run has been trained" in missing(tmp_path)
    make_run(tmp_path / "new", "reward")
    said = missing(tmp_path)
    assert "new has no Coarse and Fine Actor yet, and no process trains it" in said
    assert "Reward model done" in said and "Fine Actor waiting" in said
    with lock.locked(tmp_path / "new"):
        assert "new is being trained" in missing(tmp_path, "new")
    assert missing(tmp_path, "new", {"new": "<no memory>"}).startswith("&lt;no memory&gt;")


def test_actors_are_loaded_once_the_training_has_ended(tmp_path, monkeypatch):
    """Of a run that is training, of one without a Fine Actor, and of one whose actors cannot be loaded, none."""
    make_run(tmp_path / "half", "reward", "coarse")
    make_run(tmp_path / "broken", "reward", "coarse", "fine")
    make_run(tmp_path / "ready", "reward", "coarse", "fine")

    loaded_in, refused = [], []

    class Fake:
        def __init__(self, run, merged, also, models, wait):
            self.made_of = run.name, merged, *also
            assert not wait

        def load(self):
            loaded_in.append(threading.current_thread())
            if self.made_of[0] == "broken":
                refused.append(weakref.ref(self))
                raise RunError.because("a damaged adapter", "a whole one", "train again")

    holder = lock.locked(tmp_path / "ready")
    holder.__enter__()
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        gc.collect()
        assert refused[0]() is None  # what it had loaded is free for another run's training
        if len(slept) == 2:
            holder.__exit__(None, None, None)
        assert len(slept) < 5

    monkeypatch.setattr(waiting, "Chat", Fake)
    monkeypatch.setattr(waiting.time, "sleep", sleep)
    waited = WaitedFor(tmp_path, None, {})
    chat = waiting.loaded_when_ready(waited, True, ["http://h"])
    assert chat.made_of == ("ready", True, "http://h") and len(slept) == 2
    assert loaded_in[0] is not threading.main_thread()  # which could not be interrupted while it loads
    assert "cannot be loaded: a damaged adapter" in waited.messages["broken"]
    assert set(waited.messages) == {"broken", "ready"}  # the one tried once, the other while it was loaded


def test_runs_is_open_and_the_other_tabs_are_there(tmp_path):
    page = waiting.waiting_page(WaitedFor(tmp_path, None, {}), {}, True)
    tabs = next(block for block in page.blocks.values() if isinstance(block, gr.Tabs))
    assert [tab.label for tab in tabs.children] == ["Compare", "Blind vote", "Ratios", "Evaluation", "Runs"]
    assert tabs.selected == "Runs"
    shown = [str(block.value) for block in page.blocks.values() if isinstance(block, gr.HTML)]
    assert sum('class="waiting"' in text for text in shown) == 4
    del page, tabs, shown
    gc.collect()
