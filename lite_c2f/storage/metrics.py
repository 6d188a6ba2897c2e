"""Metrics of a run: RUN/metrics.jsonl, and the same numbers for an experiment tracker."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lite_c2f.errors import RunError
from lite_c2f.storage.files import append_line, filter_lines


class Metrics:
    """metrics.jsonl of a run, one object per line; the same numbers go to an accelerate tracker if there is one."""

    def __init__(self, run: Path, tracker: Any = None) -> None:
        self.path, self.tracker = run / "metrics.jsonl", tracker

    def put_back(self, stage: str, lines: Sequence[dict[str, Any]]) -> None:
        """Replace this stage's lines in the file by those of a checkpoint, fewer if steps after it were lost.

        A line without a `step` has that of its place, from 1.
        """
        rows = [{"stage": stage, "step": step, **line} for step, line in enumerate(lines, 1)]
        # keeps the other stages' lines and appends these rows
        filter_lines(self.path, lambda line: line.get("stage") != stage, rows)

    def write(self, stage: str, step: int, values: dict[str, Any]) -> None:
        """Append a line, and log the numbers as STAGE/NAME."""
        append_line(self.path, {"stage": stage, "step": step, **values})
        if self.tracker is not None:
            metrics = {f"{stage}/{name}": value for name, value in values.items()}
            if self.tracker.name == "wandb":  # ignores a step lower than the last one; each stage restarts at 1
                self.tracker.log({**metrics, f"{stage}/step": step})
            else:
                self.tracker.log(metrics, step=step)


def check_tracker(config: Any) -> None:
    """Raise RunError when the experiment tracker of `run.tracker` is not installed."""
    name = config.run.tracker
    if name == "none":
        return
    from accelerate.tracking import get_available_trackers

    if name not in [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]:
        raise RunError.because(
            f"run.tracker={name}, which is not installed",
            "an installed tracker",
            f"run pip install 'lite_c2f[{name}]', or set run.tracker=none",
        )


def start_tracker(config: Any, run: Path) -> Any:
    """The experiment tracker of `run.tracker` through accelerate, or None. Raises RunError when it is not installed."""
    check_tracker(config)
    name = config.run.tracker
    if name == "none":
        return None
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # needed by accelerate's logger, which the trackers of wandb and trackio use
    if name == "tensorboard":
        tracker = LOGGER_TYPE_TO_CLASS[name](run_name="tensorboard", logging_dir=str(run))
    else:
        tracker = LOGGER_TYPE_TO_CLASS[name](run_name="lite_c2f")
    tracker.start()
    if name == "wandb":
        for stage in ("reward", "coarse", "held_out"):  # what is logged per step
            tracker.tracker.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    return tracker
