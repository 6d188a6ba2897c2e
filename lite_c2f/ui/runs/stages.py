"""Stages of a run as a page shows them: how far each is, how long it took, and the time left."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lite_c2f.runs.published import FINISHED, is_published
from lite_c2f.runtime.record import Progress

STAGE_ORDER = tuple(FINISHED)
UNITS = {"reward": "steps", "coarse": "updates", "fine": "ratios", "comparison": "actors"}


class StageState(NamedTuple):
    """How far a stage is. None: not known."""

    name: str
    state: Literal["waiting", "running", "interrupted", "done"]
    done: int | None
    total: int | None
    unit: str
    seconds: float | None  # in all attempts that are recorded
    seconds_left: float | None  # seconds at its present pace, only while it runs


class RunFiles(NamedTuple):
    """What was read of a run. progress: of the live process; None if none runs or it has not written yet."""

    run: Path
    metrics: Sequence[Mapping[str, Any]]  # rows of metrics.jsonl
    progress: Progress | None
    last_progress: Progress | None  # of the last process, live or not
    ratios_tried: int


def stages_of(files: RunFiles) -> tuple[StageState, ...]:
    """All stages, in order."""
    seconds = read_json_object(files.run / "run.json").get("seconds")
    return tuple(_stage(files, name, seconds if isinstance(seconds, dict) else {}) for name in STAGE_ORDER)


def _stage(files: RunFiles, name: str, recorded: Mapping[str, Any]) -> StageState:
    rows = [row for row in files.metrics if row["stage"] == name]
    logged = sum(row["seconds"] for row in rows if isinstance(row.get("seconds"), int | float))
    # "comparison" is named "evaluation" in run.json
    recorded_seconds = recorded.get("evaluation" if name == "comparison" else name)
    recorded_seconds = float(recorded_seconds) if isinstance(recorded_seconds, int | float) else 0.0
    stage = StageState(
        name=name,
        state="waiting",
        done=rows[-1]["step"] if rows else None,
        total=None,
        unit=UNITS[name],
        seconds=max(recorded_seconds, logged) or None,
        seconds_left=None,
    )
    progress = files.progress if files.progress is not None and files.progress.stage == name else None
    # a published comparison can be made again
    if is_published(files.run, name) and not (progress and name == "comparison"):
        return stage._replace(state="done", total=stage.done)
    if progress is not None:
        began = time.time() if progress.stage_began is None else progress.stage_began
        seconds = max(recorded_seconds + time.time() - began, logged)
        stage = stage._replace(state="running", seconds=seconds, seconds_left=progress.seconds_left)
        if name == "fine":  # its merge counts bytes, not ratios
            done, total = (files.ratios_tried, progress.total_steps) if progress.part == "ratios" else (None, None)
            return stage._replace(done=done, total=total)
        done = progress.step if stage.done is None else stage.done
        return stage._replace(done=done, total=progress.total_steps or _planned_updates(files.run, name))
    last = files.last_progress if files.last_progress is not None and files.last_progress.stage == name else None
    if rows or last is not None or any(files.run.glob(f"{name}/checkpoints/step-*")):
        stage = stage._replace(state="interrupted")
    total = last.total_steps if last is not None and name != "fine" else None
    return stage._replace(total=total or _planned_updates(files.run, name))


def _planned_updates(run: Path, name: str) -> int | None:
    """Updates that a run's settings ask for; None for another stage, or where they cannot be read."""
    from lite_c2f.config.loading import load_config
    from lite_c2f.errors import C2FError

    try:
        coarse = load_config(run / "config.yaml").coarse
        return coarse.updates if name == "coarse" and coarse.algorithm == "ppo" else None
    except C2FError:
        return None


def read_json_object(file: Path) -> dict[str, Any]:
    """An object in a JSON file; {} where there is none that can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
