"""Continuous Maximization: a response limit that grows with the actor's reward.

Mistral-C2F (arXiv 2406.08657, as reported by secondary sources) lets the limit of update t be l(t) = f_CM(R_t, V_t), a
logistic function of the reward score and the critic. Its coefficients and schedule are not published: this f_CM is our
own. With R the batch's mean reward and ell the critic's loss, z(.) by their running mean and standard deviation:

    x    = w_reward * z(R) - w_value * z(ell) + bias
    gate = sigmoid(x)
    l(t) = min(max, l(t-1) + round_to(step * gate, multiple))     while hit_share >= tau, else l(t-1)

So the limit grows fast after updates whose reward is above its running mean and whose critic loss is below its own,
slowly otherwise, and not at all while responses end by themselves. It never shrinks.
"""

import math
from typing import NamedTuple

from lite_c2f.config.settings import Length


class RunningStats(NamedTuple):
    """Exponentially weighted mean and variance of a number, one value per update."""

    updates: int = 0
    mean: float = 0.0
    var: float = 0.0

    def z(self, value: float) -> float:
        """The value in standard deviations from the earlier mean, clipped to 3; 0 after fewer than two values."""
        if self.updates < 2 or self.var <= 1e-12:
            return 0.0
        return max(-3.0, min(3.0, (value - self.mean) / math.sqrt(self.var)))

    def add(self, value: float, decay: float) -> "RunningStats":
        """The estimate after one more value. Early values have equal weights, until the decay reaches `decay`."""
        weight = max(1 - decay, 1 / (self.updates + 1))
        gap = value - self.mean
        return RunningStats(self.updates + 1, self.mean + weight * gap, (1 - weight) * (self.var + weight * gap * gap))


class LengthState(NamedTuple):
    """State of the length controller, as a checkpoint stores it."""

    limit: int
    reward: RunningStats = RunningStats()
    value_loss: RunningStats = RunningStats()
    gate: float = 0.0  # of the last update, for the log


def start(settings: Length) -> LengthState:
    """The state before the first update."""
    return LengthState(limit=settings.start)


def bounded(state: LengthState, settings: Length) -> LengthState:
    """A restored state under settings that may have changed since: at most `max`, and `start` itself where it is fixed.

    The controller never lowers a limit: one above a lowered `max` would stay.

    >>> bounded(LengthState(96), Length(start=16, max=64)).limit
    64
    """
    limit = settings.start if settings.mode == "fixed" else min(state.limit, settings.max)
    return state._replace(limit=limit)


def advance(state: LengthState, settings: Length, reward: float, value_loss: float, hit_share: float) -> LengthState:
    """The state after an update, by the formula above.

    reward: mean normalised reward of the batch; value_loss: critic loss of the update; hit_share: share of responses
    that ran into the limit, 0 to 1. Mode `linear` replaces the sigmoid by its tangent at 0, clipped to [0, 1]; `fixed`
    never moves. Numbers that are not finite leave the state as it is.

    >>> advance(LengthState(16), Length(start=16, max=64, step=8, multiple=4), 0.0, 1.0, 0.9).limit
    20
    """
    if settings.mode == "fixed" or not all(map(math.isfinite, (reward, value_loss, hit_share))):
        return state
    x = settings.w_reward * state.reward.z(reward) - settings.w_value * state.value_loss.z(value_loss) + settings.bias
    gate = sigmoid(x) if settings.mode == "logistic" else max(0.0, min(1.0, 0.5 + x / 4))
    limit = state.limit
    if hit_share >= settings.tau:
        limit = max(limit, min(settings.max, limit + round_to(settings.step * gate, settings.multiple)))
    return LengthState(
        limit, state.reward.add(reward, settings.decay), state.value_loss.add(value_loss, settings.decay), gate
    )


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def round_to(value: float, multiple: int) -> int:
    """The nearest multiple, halves upwards."""
    return math.floor(value / multiple + 0.5) * multiple
