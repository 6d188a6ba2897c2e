"""Ratings of actors from choices among their answers: Bradley-Terry's model, and Luce's where three are shown."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from lite_c2f.evaluation.wins import NEWTON_STEPS, Z

POINTS = 400 / math.log(10)  # of one unit of log strength, on Elo's scale: 400 points are odds of 10 to 1


class AnswerChoice(NamedTuple):
    """What was chosen among answers shown together. winner: None for a tie."""

    shown: tuple[str, ...]
    winner: str | None


class Rating(NamedTuple):
    """An actor's strength in points; the mean of all actors is 0."""

    name: str
    points: float
    low: float  # of its 95% interval
    high: float
    choices: int  # in which it was shown


def rate(choices: Sequence[AnswerChoice]) -> list[Rating]:
    """The strengths under which the choices are most likely, the strongest first.

    P(i is chosen among S) = exp(theta_i) / sum_{j in S} exp(theta_j): Bradley and Terry, Biometrika 39, 1952, for two
    answers; Luce, Individual Choice Behavior, 1959, for more. A tie is an equal share of a choice for each. One
    imagined tie between every two actors is added (our own): strengths stay finite where one side always wins, or where
    two never met. Points = 400 / ln 10 * theta. Fitted by Newton's method; the interval is the normal approximation
    from the observed information, and takes choices as independent.

    >>> [(rating.name, round(rating.points)) for rating in rate([AnswerChoice(("a", "b"), "a")] * 9)]
    [('a', 256), ('b', -256)]
    """
    names = sorted({name for choice in choices for name in choice.shown})
    if len(names) < 2:
        return []
    imagined = [AnswerChoice(pair, None) for pair in combinations(names, 2)]
    sets = Counter(
        (
            tuple(names.index(name) for name in choice.shown),
            None if choice.winner is None else choice.shown.index(choice.winner),
        )
        for choice in (*choices, *imagined)
    )
    theta = np.zeros(len(names))
    for _ in range(NEWTON_STEPS):
        gradient, information = _derivatives(theta, sets)
        step = np.clip(_covariance(information) @ gradient, -2, 2)
        theta = theta + step - step.mean()
        if float(np.abs(step).max()) < 1e-10:
            break
    covariance = _covariance(_derivatives(theta, sets)[1])
    ratings = []
    for place, name in enumerate(names):
        points, half = POINTS * float(theta[place]), Z * POINTS * math.sqrt(float(covariance[place, place]))
        count = sum(name in choice.shown for choice in choices)
        ratings.append(Rating(name, points, points - half, points + half, count))
    return sorted(ratings, key=lambda rating: (-rating.points, rating.name))


def _derivatives(
    theta: np.ndarray, sets: Mapping[tuple[tuple[int, ...], int | None], int]
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient (N,) and observed information (N, N) of the log-likelihood.

    sets: how often a choice was made, by the places of those shown and which of them won.
    """
    gradient, information = np.zeros(len(theta)), np.zeros((len(theta), len(theta)))
    for (places, winner), count in sets.items():
        shown = list(places)
        p = np.exp(theta[shown] - theta[shown].max())
        p /= p.sum()
        target = np.full(len(shown), 1 / len(shown)) if winner is None else np.eye(len(shown))[winner]
        gradient[shown] += count * (target - p)
        information[np.ix_(shown, shown)] += count * (np.diag(p) - np.outer(p, p))
    return gradient, information


def _covariance(information: np.ndarray) -> np.ndarray:
    """The covariance (N, N) of strengths whose sum is 0: the pseudoinverse, since what is common to all has no effect.

    np.linalg.pinv would have to guess which singular value is 0 up to rounding.
    """
    mean = np.full_like(information, 1 / len(information))
    return np.linalg.inv(information + mean) - mean
