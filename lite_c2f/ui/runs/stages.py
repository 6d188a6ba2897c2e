"""How far each stage of a run is, how long it took, and how long it will take where that can be known."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.ui.runs import log
from lite_c2f.ui.runs.log import LogEntry

ORDER = ("reward", "coarse", "fine", "comparison")
UNITS = {"reward": "steps", "coarse": "updates", "fine": "ratios", "comparison": "actors"}
RECENT = 10  # updates whose mean duration tells the time left


class StageState(NamedTuple):
    """How far a stage is. None: not known."""

    name: str
    state: str  # waiting, running, interrupted, done
    done: int | None
    total: int | None
    unit: str
    seconds: float | None  # in all attempts that left word of it
    left: float | None  # seconds at its present pace, only while it runs


class Seen(NamedTuple):
    """What was read of a run."""

    run: Path
    lines: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    changed: float | None  # when metrics.jsonl was written last, in seconds since the epoch
    session: Sequence[LogEntry]
    working: bool
    trials: int  # ratios tried


def stages_of(seen: Seen) -> tuple[StageState, ...]:
    """All stages, in order."""
    parts = log.parts(seen.session)
    known = mapping(seen.run / "run.json").get("seconds")
    return tuple(_stage(seen, name, parts, known if isinstance(known, dict) else {}) for name in ORDER)


def _stage(seen: Seen, name: str, parts: Sequence[log.Part], known: Mapping[str, Any]) -> StageState:
    own = [line for line in seen.lines if line["stage"] == name]
    took = [line["seconds"] for line in own if isinstance(line.get("seconds"), int | float)]
    before = known.get("evaluation" if name == "comparison" else name)
    before = float(before) if isinstance(before, int | float) else 0.0
    done, unit = (own[-1]["step"] if own else None), UNITS[name]
    current = bool(parts) and parts[-1].stage == name
    running = seen.working and current
    if _is_published(seen.run, name) and not (running and name == "comparison"):  # which may be made again
        return StageState(name, "done", done, done, unit, max(before, sum(took)) or None, None)
    mine = [part for part in parts if part.stage == name]
    total = mine[-1].total if mine else None
    if name == "coarse" and total is None:
        total = _updates(seen.run)
    if name == "fine" and mine:
        done = seen.trials if mine[-1].name == "ratios" else None
    if not running:
        begun = bool(own) or current or any(seen.run.glob(f"{name}/checkpoints/step-*"))
        state = "interrupted" if begun else "waiting"
        return StageState(name, state, done, total, unit, max(before, sum(took)) or None, None)
    seconds = max(before + time.time() - mine[0].when, sum(took))
    pace = _mean(took[-RECENT:]) if name == "coarse" else _pace(seen, mine) if name == "reward" else None
    left = None if pace is None or total is None or done is None else pace * max(0, total - done)
    return StageState(name, "running", done, total, unit, seconds, left)


def _is_published(run: Path, name: str) -> bool:
    from lite_c2f.runs.manifest import FINISHED  # loads torch

    return (run / FINISHED.get(name, "evaluation/actors.json")).is_file()


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _pace(seen: Seen, parts: Sequence[log.Part]) -> float | None:
    """Seconds a step of the reward model, whose lines have none: from the log's time of this start's first step."""
    counted = [part for part in parts if part.total is not None]
    steps = [line["step"] for line in seen.lines if line["stage"] == "reward"]
    if not counted or not steps or seen.changed is None:
        return None
    done, gone = steps[-1] - log.first_step(seen.session), seen.changed - counted[0].when
    return gone / done if done > 0 and gone > 0 else None


def _updates(run: Path) -> int | None:
    from lite_c2f.config.loading import load_config
    from lite_c2f.errors import C2FError

    try:
        return load_config(run / "config.yaml").coarse.updates
    except C2FError:
        return None


def mapping(file: Path) -> dict[str, Any]:
    """An object in a JSON file; {} where there is none that can be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
