"""Win rates from paired scores, raw and at equal length; sign test and interval for counts of votes."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from lite_c2f.actors.answers import standard_error
from lite_c2f.actors.names import BASE, COARSE, FINE, INSTRUCT

PAIRS = ((FINE, INSTRUCT), (COARSE, BASE), (FINE, COARSE))  # whose answers are compared
RIDGE = 1e-3  # keeps the fit finite if one side always wins
NEWTON_STEPS = 50
Z = 1.959964  # 95% of a normal distribution lie within so many standard deviations


class Wins(NamedTuple):
    """Win rate of the first side over the second, 0 to 1; ties count half."""

    rate: float
    se: float
    controlled: float  # at equal length
    length_effect: float  # what one standard deviation of length difference adds to the log-odds
    prompts: int


def paired_wins(
    left: Sequence[float], right: Sequence[float], left_tokens: Sequence[int], right_tokens: Sequence[int]
) -> Wins:
    """Win rate of `left` over `right` by their scores, as it is and at equal length.

    The controlled rate follows length-controlled AlpacaEval (arXiv 2404.04475): a logistic regression of the
    win on tanh of the standardised difference in length, read where that difference is 0. Without its terms for the
    instruction, which need many judged models. If the same reward model trained the policy, the result is circular:
    the policy was trained for high scores by this judge.

    Raises ValueError for sides of different size, or none.
    """
    count = len(left)
    if not count or not count == len(right) == len(left_tokens) == len(right_tokens):
        raise ValueError(f"{count} and {len(right)} scores, {len(left_tokens)} and {len(right_tokens)} lengths")
    won = [0.5 if a == b else float(a > b) for a, b in zip(left, right, strict=True)]
    gaps = np.array(left_tokens, dtype=float) - np.array(right_tokens, dtype=float)
    std = float(gaps.std())
    shape = np.tanh(gaps / std) if std > 0 else np.zeros(count)
    intercept, slope = logistic(shape, np.array(won))
    return Wins(fmean(won), standard_error(won), (1 + math.tanh(intercept / 2)) / 2, slope, count)


def logistic(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of a logistic regression with a small ridge, by Newton's method. x, y: (N,), y in 0..1."""
    design = np.stack([np.ones_like(x), x], axis=1)
    weights = np.zeros(2)
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (y - p) - RIDGE * weights
        hessian = (design * (p * (1 - p))[:, None]).T @ design + RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weights = weights + np.clip(step, -5, 5)
        if float(np.abs(step).max()) < 1e-10:
            break
    return float(weights[0]), float(weights[1])


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of the sign test (Dixon and Mood, JASA 41, 1946): ties are left out.

    p = min(1, 2 sum_{k <= min(wins, losses)} C(n, k) / 2^n) with n = wins + losses; exact. 1.0 for no votes.

    >>> sign_test(5, 1)  # 2 * (1 + 6) / 64
    0.21875
    """
    count, term, total = wins + losses, 1, 0
    for k in range(min(wins, losses) + 1):
        total += term
        term = term * (count - k) // (k + 1)
    return min(1.0, 2 * total / 2**count)


def wilson(wins: float, count: int, z: float = Z) -> tuple[float, float]:
    """The score interval of a share (Wilson, JASA 22, 1927), 95% by default; (0, 1) for no votes.

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n) with p = wins / n. Ties may count as half a
    win: their variance is smaller than a vote's, so that the interval is then too wide rather than too narrow.
    """
    if not count:
        return 0.0, 1.0
    p, part = wins / count, z * z / count
    middle, half = p + part / 2, z * math.sqrt(p * (1 - p) / count + part / (4 * count))
    return max(0.0, (middle - half) / (1 + part)), min(1.0, (middle + half) / (1 + part))
