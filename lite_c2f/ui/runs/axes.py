"""Curves as a chart shows them: x in updates, tokens or minutes, smoothed, and cut to the last part of a run."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from lite_c2f.ui.runs.curves import Point

Curves = Mapping[str, Mapping[str, Sequence[Point]]]  # all points, by stage, then by the name in metrics.jsonl
AXES = ("updates", "tokens", "minutes")


class ChartView(NamedTuple):
    """How charts are drawn."""

    axis: str = "updates"  # of AXES
    window: int = 1  # updates that a mean is taken over, odd; 1 smooths nothing
    part: float = 1.0  # share of the x axis that is shown, up to its end


def positions(curves: Curves, axis: str) -> dict[float, float] | None:
    """Where each update of the Coarse Actor ends on an axis other than updates; None where that is not recorded.

    Tokens are those that were generated (tokens per second times seconds, of each update), minutes those of the
    updates: loading, held-out prompts and pauses between two attempts are not in them.

    >>> positions({"coarse": {"seconds": [(1, 30.0), (2, 90.0)]}}, "minutes")
    {0: 0.0, 1: 0.5, 2: 2.0}
    """
    coarse = curves.get("coarse", {})
    seconds, speeds = dict(coarse.get("seconds", ())), dict(coarse.get("tokens_per_s", ()))
    steps = {step for points in coarse.values() for step, _ in points}
    missing = steps - seconds.keys() or (axis == "tokens" and steps - speeds.keys())
    if axis not in ("tokens", "minutes") or not steps or missing:
        return None
    ordered = sorted(steps)
    amounts = [seconds[step] * speeds[step] if axis == "tokens" else seconds[step] / 60 for step in ordered]
    return {0: 0.0, **dict(zip(ordered, accumulate(amounts), strict=True))}


def moved(points: Sequence[Point], places: Mapping[float, float] | None) -> Sequence[Point]:
    """Points (step, value) at the places of their steps; those without a place are left out. None: as they are."""
    return points if places is None else [(places[step], value) for step, value in points if step in places]


def smoothed(points: Sequence[Point], window: int) -> Sequence[Point]:
    """The mean over a centred window of so many points; toward both ends it shrinks, so that it stays centred.

    >>> smoothed([(1, 0.0), (2, 3.0), (3, 6.0), (4, 0.0)], 3)
    [(1, 0.0), (2, 3.0), (3, 3.0), (4, 0.0)]
    """
    values = [value for _, value in points]
    halves = [min(window // 2, place, len(points) - 1 - place) for place in range(len(points))]
    parts = [values[place - half : place + half + 1] for place, half in enumerate(halves)]
    return [(x, sum(part) / len(part)) for (x, _), part in zip(points, parts, strict=True)]


def last_part(lines: Sequence[Sequence[Point]], part: float) -> list[Sequence[Point]]:
    """The points of several lines in the last part of the x axis that they share; it may leave a line empty.

    >>> last_part([[(0, 1.0), (10, 2.0)], [(4, 3.0), (6, 4.0)]], 0.5)
    [[(10, 2.0)], [(6, 4.0)]]
    """
    xs = [x for line in lines for x, _ in line]
    if not xs or part >= 1:
        return list(lines)
    start = max(xs) - part * (max(xs) - min(xs))
    return [[(x, y) for x, y in line if x >= start] for line in lines]
