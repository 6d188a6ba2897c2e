"""Mix of several sources into one reward: scaling by running statistics, clipping, weights, constraints.

With s_i the scaled and clipped score of a source, w_i its weight, and lambda_j the multiplier of a source with a bound:

    reward = (sum_i w_i s_i + sum_j lambda_j s_j) / (1 + sum_j lambda_j)
    lambda_j <- min(max, max(0, lambda_j + lr * (at_least_j - mean of the batch's scores of j)))

Projected ascent of the Lagrange multipliers on the constraint is that of Reward Constrained Policy Optimization
(Tessler 2018, arXiv 1805.11074), the division by one plus the multipliers that of Safe RLHF (Dai 2023, arXiv
2310.12773); one step per batch, and the rest, are our own. The bound is on the mean over a batch, not on each response.
A source that does not apply to a response adds 0: its mean, where it is standardised.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from lite_c2f.config.rewards import RewardSource
from lite_c2f.reward.calls import Scores

MIN_STD = 1e-6  # scores that vary less are all alike: scaled to 0


class ScoreStats(NamedTuple):
    """Number, mean and sum of squared deviations of all scores so far (Chan, Golub and LeVeque 1983)."""

    number: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, scores: Sequence[float]) -> "ScoreStats":
        """The statistics with a batch more.

        >>> ScoreStats().add([1.0, 3.0]).add([5.0])
        ScoreStats(number=3, mean=3.0, squares=8.0)
        """
        if not scores:
            return self
        mean = fmean(scores)
        squares = sum((score - mean) ** 2 for score in scores)
        count, gap = self.number + len(scores), mean - self.mean
        return ScoreStats(
            count,
            self.mean + gap * len(scores) / count,
            self.squares + squares + gap * gap * self.number * len(scores) / count,
        )

    @property
    def std(self) -> float:
        """Standard deviation of the scores themselves (not the estimate of a population's)."""
        return math.sqrt(self.squares / self.number) if self.number else 0.0

    def scaled(self, score: float) -> float:
        """The score in standard deviations from the mean; 0 where scores do not vary."""
        return (score - self.mean) / self.std if self.std > MIN_STD else 0.0


class RewardMix:
    """Weights, running statistics and multipliers of the sources of reward: the state of a run's reward.

    held_out_scale: names of the reward models with a mean and standard deviation of their own, by which their scores
    are standardised already.
    """

    def __init__(
        self,
        sources: Sequence[RewardSource],
        held_out_scale: Sequence[str] = (),
        multiplier_lr: float = 0.1,
        multiplier_max: float = 10.0,
    ) -> None:
        self.sources, self._lr, self._max = tuple(sources), multiplier_lr, multiplier_max
        self.running = tuple(
            source.name
            for source in sources
            if source.scale == "running" or (source.scale == "auto" and source.name not in held_out_scale)
        )
        self.stats = {name: ScoreStats() for name in self.running}
        self.multipliers = {source.name: 0.0 for source in sources if source.at_least is not None}

    def combine(self, scores: Mapping[str, Scores]) -> list[float]:
        """The rewards of a batch to learn from; then the multipliers move. scores: of each source, None: no score.

        Scores that are not finite, which the caller refuses, change neither statistics nor multipliers.
        """
        if not all(math.isfinite(score) for values in scores.values() for score in known(values)):
            return self.rewards(scores)
        for name in self.running:
            self.stats[name] = self.stats[name].add(known(scores[name]))
        rewards = self.rewards(scores)
        for source in self.sources:
            values = known(scores[source.name])
            if source.at_least is not None and values:
                moved = self.multipliers[source.name] + self._lr * (source.at_least - fmean(values))
                self.multipliers[source.name] = min(self._max, max(0.0, moved))
        return rewards

    def rewards(self, scores: Mapping[str, Scores], scales: Mapping[str, ScoreStats] | None = None) -> list[float]:
        """Rewards by the weights and statistics as they are. scales: other statistics than the mix's own."""
        count = len(next(iter(scores.values())))
        totals = [0.0] * count
        for source in self.sources:
            weight = self.weight(source)
            for row, score in enumerate(scores[source.name]):
                if score is not None:
                    totals[row] += weight * self._scaled(source, score, scales or self.stats)
        norm = 1.0 + sum(self.multipliers.values())
        return [total / norm for total in totals]

    def of_sources(self, scores: Mapping[str, Scores]) -> list[float]:
        """Rewards by some of the sources alone, those that `scores` has."""
        count = len(next(iter(scores.values())))
        return self.rewards({source.name: scores.get(source.name, [None] * count) for source in self.sources})

    def weight(self, source: RewardSource) -> float:
        """The weight of a source now: that of its setting, or its multiplier."""
        return source.weight if source.at_least is None else self.multipliers[source.name]

    def _scaled(self, source: RewardSource, score: float, scales: Mapping[str, ScoreStats]) -> float:
        scaled = scales[source.name].scaled(score) if source.name in self.running else score
        return scaled if source.clip is None else max(-source.clip, min(source.clip, scaled))

    def state(self) -> dict[str, Any]:
        """The statistics and multipliers, in JSON's types."""
        return {
            "stats": {name: list(stats) for name, stats in self.stats.items()},
            "multipliers": dict(self.multipliers),
        }

    def restore(self, state: Mapping[str, Any]) -> list[str]:
        """Restore what `state` gave, by name; returns the names of the sources that it does not have, which start."""
        stats, multipliers = state.get("stats", {}), state.get("multipliers", {})
        self.stats = {name: ScoreStats(*stats.get(name, ())) for name in self.stats}
        self.multipliers = {name: float(multipliers.get(name, 0.0)) for name in self.multipliers}
        new = [name for name in self.stats if name not in stats]
        return new + [name for name in self.multipliers if name not in multipliers and name not in new]


def known(scores: Scores) -> list[float]:
    """The scores that there are.

    >>> known([1.0, None])
    [1.0]
    """
    return [score for score in scores if score is not None]
