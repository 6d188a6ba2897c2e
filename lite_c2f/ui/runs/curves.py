"""Curves from metrics.jsonl, the points of one that are drawn, and samples of a few updates from samples.jsonl."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

POINTS = 400  # of a curve at most
UPDATES = 5  # whose samples are shown
Point = tuple[float, float]  # step, value


class Sample(NamedTuple):
    """What the policy answered to a held-out prompt after an update."""

    step: int
    limit: int  # tokens
    prompt: str
    response: str
    finish: str  # stop, eos or limit
    tokens: int
    reward: float  # in standard deviations of the reward model's scores


def metrics_row(line: bytes) -> dict[str, Any] | None:
    """An object of metrics.jsonl, None for anything else."""
    row = _object(line)
    return row if row and isinstance(row.get("stage"), str) and isinstance(row.get("step"), int) else None


def sample_row(line: bytes) -> Sample | None:
    """A row of samples.jsonl, None for anything else."""
    row = _object(line)
    try:
        return None if row is None else Sample(
            int(row["step"]), int(row["limit"]), str(row["prompt"]), str(row["response"]),
            str(row["finish"]), int(row["tokens"]), float(row["reward"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _whole(digits: str) -> int | None:
    """No count of a run has more digits, and a float cannot hold every larger one."""
    return int(digits) if len(digits) < 19 else None


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Sequence[Point]]]:
    """All points, by stage and name, in the order of steps. Of a step that was repeated, the last value counts."""
    values: dict[str, dict[str, dict[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("stage", "step") and isinstance(value, int | float) and math.isfinite(value):
                values.setdefault(row["stage"], {}).setdefault(name, {})[row["step"]] = float(value)
    return {stage: {name: sorted(points.items()) for name, points in named.items()} for stage, named in values.items()}


def downsample(points: Sequence[Point], most: int = POINTS) -> Sequence[Point]:
    """At most so many points of a curve: the first, the last, and the lowest and highest of even parts between.

    Our own: means would hide a spike. most: even, at least 4.
    """
    if len(points) <= most:
        return points
    inner, parts = points[1:-1], most // 2 - 1
    chosen = [points[0]]
    for part in range(parts):
        group = inner[part * len(inner) // parts : (part + 1) * len(inner) // parts]
        chosen += sorted({min(group, key=lambda point: point[1]), max(group, key=lambda point: point[1])})
    return [*chosen, points[-1]]


def evenly_spaced(rows: Sequence[Sample], count: int = UPDATES) -> tuple[Sample, ...]:
    """The samples of a few updates, evenly from the first to the last; one per prompt and update, the newest."""
    steps = sorted({row.step for row in rows})
    count = min(count, len(steps))
    chosen = {steps[round(place * (len(steps) - 1) / max(count - 1, 1))] for place in range(count)}
    return tuple({(row.step, row.prompt): row for row in rows if row.step in chosen}.values())


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(line, parse_constant=lambda _: None, parse_int=_whole)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
