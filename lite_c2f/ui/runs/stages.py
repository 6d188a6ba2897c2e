"""Stages of a run as a page shows them: how far each is, how long it took, and the time left."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.runs.published import FINISHED, is_published
from lite_c2f.runtime.record import Progress

ORDER = tuple(FINISHED)
UNITS = {"reward": "steps", "coarse": "updates", "fine": "ratios", "comparison": "actors"}


class StageState(NamedTuple):
    """How far a stage is. None: not known."""

    name: str
    state: str  # waiting, running, interrupted, done
    done: int | None
    total: int | None
    unit: str
    seconds: float | None  # in all attempts that are recorded
    left: float | None  # seconds at its present pace, only while it runs


class RunFiles(NamedTuple):
    """What was read of a run. progress: of the process that works in it, None where none does or it only began."""

    run: Path
    metrics: Sequence[Mapping[str, Any]]  # rows of metrics.jsonl
    progress: Progress | None
    last: Progress | None  # of the last process, whether it still works or not
    trials: int  # ratios tried


def stages_of(files: RunFiles) -> tuple[StageState, ...]:
    """All stages, in order."""
    seconds = mapping(files.run / "run.json").get("seconds")
    return tuple(_stage(files, name, seconds if isinstance(seconds, dict) else {}) for name in ORDER)


def _stage(files: RunFiles, name: str, recorded: Mapping[str, Any]) -> StageState:
    rows = [row for row in files.metrics if row["stage"] == name]
    logged = sum(row["seconds"] for row in rows if isinstance(row.get("seconds"), int | float))
    earlier = recorded.get("evaluation" if name == "comparison" else name)
    earlier = float(earlier) if isinstance(earlier, int | float) else 0.0
    stage = StageState(
        name=name,
        state="waiting",
        done=rows[-1]["step"] if rows else None,
        total=None,
        unit=UNITS[name],
        seconds=max(earlier, logged) or None,
        left=None,
    )
    progress = files.progress if files.progress is not None and files.progress.stage == name else None
    if is_published(files.run, name) and not (progress and name == "comparison"):  # which may be made again
        return stage._replace(state="done", total=stage.done)
    if progress is not None:
        began = time.time() if progress.stage_began is None else progress.stage_began
        seconds = max(earlier + time.time() - began, logged)
        stage = stage._replace(state="running", seconds=seconds, left=progress.seconds_left)
        if name == "fine":  # whose merge counts bytes, not ratios
            done, total = (files.trials, progress.total_steps) if progress.part == "ratios" else (None, None)
            return stage._replace(done=done, total=total)
        done = progress.step if stage.done is None else stage.done
        return stage._replace(done=done, total=progress.total_steps or _updates(files.run, name))
    last = files.last if files.last is not None and files.last.stage == name else None
    if rows or last is not None or any(files.run.glob(f"{name}/checkpoints/step-*")):
        stage = stage._replace(state="interrupted")
    total = last.total_steps if last is not None and name != "fine" else None
    return stage._replace(total=total or _updates(files.run, name))


def _updates(run: Path, name: str) -> int | None:
    """Updates that a run's settings ask for; None for another stage, or where they cannot be read."""
    from lite_c2f.config.loading import load_config
    from lite_c2f.errors import C2FError

    try:
        coarse = load_config(run / "config.yaml").coarse
        return coarse.updates if name == "coarse" and coarse.algorithm == "ppo" else None
    except C2FError:
        return None


def mapping(file: Path) -> dict[str, Any]:
    """An object in a JSON file; {} where there is none that can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
