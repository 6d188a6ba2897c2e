"""The trackers of `run.tracker`: what they are started with, and what they get."""

import json
from types import SimpleNamespace

import pytest
from accelerate.logging import get_logger
from accelerate.state import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from lite_c2f.storage.metrics import Metrics, start_tracker


class Tracker:
    """A tracker that writes to accelerate's log as it starts, as those of wandb and trackio do."""

    def __init__(self, run_name, logging_dir=None):
        self.run_name, self.logging_dir, self.logged, self.axes = run_name, logging_dir, [], {}

    @property
    def tracker(self):
        """wandb's own run."""
        return self

    def start(self):
        get_logger(__name__).debug("started")

    def log(self, values, step=None):
        self.logged.append((step, values))

    def define_metric(self, name, step_metric):
        self.axes[name] = step_metric


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_starts_and_gets_every_figure(tmp_path, monkeypatch, name):
    monkeypatch.setattr(PartialState, "_shared_state", {})  # as in a process that has not trained anything yet
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [name])
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, name, type("Named", (Tracker,), {"name": name}))
    config = SimpleNamespace(run=SimpleNamespace(tracker=name))
    tracker = start_tracker(config, tmp_path)
    assert tracker.logging_dir == (str(tmp_path) if name == "tensorboard" else None)
    Metrics(tmp_path, tracker).write("coarse", 3, {"reward": 0.5})
    if name == "wandb":  # which has one step for all, and drops what is below it: the reward model's are before PPO's
        assert tracker.logged == [(None, {"coarse/reward": 0.5, "coarse/step": 3})]
        stages = ("reward", "coarse", "held_out")
        assert tracker.axes == {f"{stage}/*": f"{stage}/step" for stage in stages}
    else:
        assert tracker.logged == [(3, {"coarse/reward": 0.5})] and tracker.axes == {}
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"stage": "coarse", "step": 3, "reward": 0.5}
