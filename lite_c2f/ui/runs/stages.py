"""Stages of a run as a page shows them: how far each is, how long it took, and how long it will take."""

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
    seconds: float | None  # in all attempts that left word of it
    left: float | None  # seconds at its present pace, only while it runs


class RunFiles(NamedTuple):
    """What was read of a run. progress: of the process that works in it, None where none does or it only began."""

    run: Path
    lines: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    progress: Progress | None
    last: Progress | None  # of the last process, whether it still works or not
    trials: int  # ratios tried


def stages_of(files: RunFiles) -> tuple[StageState, ...]:
    """All stages, in order."""
    seconds = mapping(files.run / "run.json").get("seconds")
    return tuple(_stage(files, name, seconds if isinstance(seconds, dict) else {}) for name in ORDER)


def _stage(files: RunFiles, name: str, earlier: Mapping[str, Any]) -> StageState:
    lines = [line for line in files.lines if line["stage"] == name]
    took = sum(line["seconds"] for line in lines if isinstance(line.get("seconds"), int | float))
    before = earlier.get("evaluation" if name == "comparison" else name)
    before = float(before) if isinstance(before, int | float) else 0.0
    done, seconds = (lines[-1]["step"] if lines else None), max(before, took) or None
    progress = files.progress if files.progress is not None and files.progress.stage == name else None
    if is_published(files.run, name) and not (progress and name == "comparison"):  # which may be made again
        return StageState(name, "done", done, done, UNITS[name], seconds, None)
    if progress is not None:
        began = time.time() if progress.stage_began is None else progress.stage_began
        if name == "fine":  # a merge counts bytes
            done, total = (files.trials, progress.total_steps) if progress.part == "ratios" else (None, None)
        else:
            done, total = (progress.step if done is None else done), progress.total_steps or _updates(files.run, name)
        spent = max(before + time.time() - began, took)
        return StageState(name, "running", done, total, UNITS[name], spent, progress.seconds_left)
    last = files.last if files.last is not None and files.last.stage == name else None
    begun = bool(lines) or last is not None or any(files.run.glob(f"{name}/checkpoints/step-*"))
    total = last.total_steps if last is not None and name != "fine" else None
    state = "interrupted" if begun else "waiting"
    return StageState(name, state, done, total or _updates(files.run, name), UNITS[name], seconds, None)


def _updates(run: Path, name: str) -> int | None:
    """Updates that a run's settings ask for; None for another stage, or where they cannot be read."""
    from lite_c2f.config.loading import load_config
    from lite_c2f.errors import C2FError

    try:
        return load_config(run / "config.yaml").coarse.updates if name == "coarse" else None
    except C2FError:
        return None


def mapping(file: Path) -> dict[str, Any]:
    """An object in a JSON file; {} where there is none that can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
