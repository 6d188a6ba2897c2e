"""Curves out of metrics.jsonl, few enough points to draw, and samples of a few updates out of samples.jsonl."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

POINTS = 400  # of a curve at most
SPREAD = 5  # updates whose samples are chosen
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


def metrics_line(line: bytes) -> dict[str, Any] | None:
    """An object of metrics.jsonl, None for anything else."""
    row = _object(line)
    named = row is not None and isinstance(row.get("stage"), str) and isinstance(row.get("step"), int)
    return row if named else None


def sample_line(line: bytes) -> Sample | None:
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
    """No count of ours has more digits, and a float cannot hold some that do."""
    return int(digits) if len(digits) < 19 else None


def curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Sequence[Point]]]:
    """By stage and name the points to draw. A step that was done again counts once, as it was done last."""
    found: dict[str, dict[str, dict[float, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("stage", "step") and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(line["stage"], {}).setdefault(name, {})[line["step"]] = float(value)
    return {
        stage: {name: downsample(sorted(points.items())) for name, points in named.items()}
        for stage, named in found.items()
    }


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


def spread(rows: Sequence[Sample], count: int = SPREAD) -> tuple[Sample, ...]:
    """The samples of a few updates, evenly from the first to the newest; one a prompt and update, the last written."""
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
