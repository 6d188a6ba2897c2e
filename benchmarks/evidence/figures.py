"""Figures of the evidence: means with confidence intervals over seeds, and paired differences between arms."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

# Two-sided 95% quantiles of Student's t, by degrees of freedom (standard tables).
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
Jobs = list[dict[str, Any]]
IMPROVED = 0.9  # share of fixed-long's rise in reward that counts as learned; nearer to 1 it is the noise that decides


class Interval(NamedTuple):
    """A mean over seeds with the half width of its 95% confidence interval."""

    mean: float
    half: float

    def text(self, digits: int = 2, sign: bool = False) -> str:
        form = f"{'+' if sign else ''}.{digits}f"
        return f"{self.mean:{form}} ± {self.half:.{digits}f}"


def interval(values: Sequence[float]) -> Interval:
    """Student's t over the seeds; beyond 11 as with 11, a little too wide. One seed has no interval (nan)."""
    if len(values) < 2:
        return Interval(fmean(values), math.nan)
    return Interval(fmean(values), T95[min(len(values) - 1, 10)] * stdev(values) / len(values) ** 0.5)


def by_seed(jobs: Jobs, world: str, name: str, read: Callable[[dict[str, Any]], float]) -> dict[int, float]:
    """What `read` returns for each seed's job of a name."""
    return {job["seed"]: read(job) for job in jobs if job["world"] == world and job["name"] == name}


def over_seeds(values: dict[int, float]) -> Interval:
    return interval(list(values.values()))


def difference(left: dict[int, float], right: dict[int, float]) -> Interval:
    """left - right, seed by seed: both share their data and their reward model."""
    return interval([left[seed] - right[seed] for seed in left])


def surely(value: Interval) -> bool:
    """Does the interval leave out 0?"""
    return abs(value.mean) > value.half


def final_reward(job: dict[str, Any]) -> float:
    """Where a run ends: the mean of the last two points of its curve."""
    return fmean(reward for _, reward in job["curve"][-2:])


def first_tokens(job: dict[str, Any], target: float) -> float:
    """Generated tokens at which a run's curve, straight between its points, reaches a target and stays above it.

    It stays where the point behind the crossing and the one after that (if there is one) are at the target. Infinite
    where that never happens. Curves have a point every three updates: straight lines make runs with many short updates
    and runs with few long ones comparable.
    """
    points = job["curve"]
    for place, (tokens, reward) in enumerate(points):
        if all(later >= target for _, later in points[place : place + 2]):
            if place == 0:
                return tokens
            before, earlier = points[place - 1]
            share = min(max((target - earlier) / (reward - earlier), 0.0), 1.0) if reward != earlier else 1.0
            return before + share * (tokens - before)
    return math.inf


def learned_at(job: dict[str, Any], long: dict[str, Any]) -> float:
    """Tokens at which a run has made IMPROVED of the rise that fixed-long makes from its start to its end."""
    start, end = long["curve"][0][1], final_reward(long)
    return first_tokens(job, start + IMPROVED * (end - start))


def resampled(job: dict[str, Any], tokens: Sequence[float]) -> list[float]:
    """A run's curve at given numbers of tokens, straight between its points."""
    points = job["curve"]
    values = []
    for place in tokens:
        before = max((point for point in points if point[0] <= place), default=points[0])
        after = min((point for point in points if point[0] >= place), default=points[-1])
        span = after[0] - before[0]
        share = (place - before[0]) / span if span else 0.0
        values.append(before[1] + share * (after[1] - before[1]))
    return values
