"""Figures of responses, worked out by hand; win rates against scipy-free brute force."""

import math

import numpy as np
import pytest

from lite_c2f.evaluation.metrics import (
    compression_ratio,
    distinct,
    removable_share,
    repeated_ngrams_across,
    share_after_answer,
    split_clauses,
    verbosity,
)
from lite_c2f.evaluation.wins import logistic, paired_wins


def says(number):
    return lambda text: f"answer is {number}" in text


def test_distinct_counts_over_the_whole_set():
    rows = [[1, 2, 3], [1, 2, 4]]  # 1 2 3 1 2 4; 12 23 12 24
    assert distinct(rows, 1) == 4 / 6 and distinct(rows, 2) == 3 / 4
    assert distinct([[1], []], 2) == 0.0 and distinct([], 1) == 0.0


def test_texts_that_are_alike_compress_better():
    alike, other = ["the cat sat on the mat"] * 8, [f"{n * n} birds {n**5} came {n**7} ways" for n in range(8)]
    assert compression_ratio(alike) > 2 * compression_ratio(other) > 0
    assert compression_ratio([]) == 0.0
    text = "abcabcabcabcabcabcabcabc"
    import zlib

    assert compression_ratio([text]) == 24 / len(zlib.compress(text.encode(), 9))


def test_repetition_across_turns():
    assert repeated_ngrams_across([[1, 2, 3, 4]], 2) == repeated_ngrams_across([], 2) == (0, 0)
    assert repeated_ngrams_across([[1, 2], [3, 4], [1, 2, 3, 4]], 2) == (2, 4)  # 34 | 12 23 34: 12 and 34 came before
    assert repeated_ngrams_across([[1, 2], [1, 2, 1, 2]], 2) == (2, 3)  # within a turn is not across


@pytest.mark.parametrize("text", ["One, two. Three: four;\nfive", "", "no stop", "3.5 is, well, 3.5.", "a  b . c"])
def test_clauses_are_the_text_again(text):
    assert "".join(split_clauses(text)) == (text if text.strip() else "")


def test_numbers_are_not_cut():
    assert split_clauses("It is 3.5 or 1,000. Yes") == ["It is 3.5 or 1,000.", " Yes"]


def test_what_can_be_removed():
    assert removable_share("The answer is 5.", says(5)) == 0.0
    assert removable_share("Well, now. The answer is 5. Bye.", says(5)) == pytest.approx(3 / 7)
    assert removable_share("The answer is 4.", says(5)) is None
    twice = "The answer is 5. So the answer is 5."  # the later one stays: 5 of 9 words
    assert removable_share(twice, says(5)) == pytest.approx(4 / 9)


def test_what_comes_after_the_answer():
    assert share_after_answer("First. The answer is 5. I hope that helps.", says(5)) == pytest.approx(4 / 9)
    assert share_after_answer("The answer is 5.", says(5)) == 0.0
    assert share_after_answer("No idea.", says(5)) is None


def test_verbosity_compares_groups():
    """Needed: 4 words each; verbose above 8. The two long ones are right once of two, the short ones always."""
    short = ["The answer is 5."] * 3
    long = ["Let me think a while about it all. The answer is 5.", "I really am not sure at all here. The answer is 4."]
    found = verbosity(short + long, [says(5)] * 5)
    assert found["verbose"] == 2 / 5
    assert found["verbose_accuracy"] == 0.5 and found["concise_accuracy"] == 1.0
    assert found["removable"] == pytest.approx((0 + 0 + 0 + 8 / 12) / 4) and found["after_answer"] == 0.0
    assert verbosity(["no"], [says(5)]) == {"verbose": 0.0}
    assert "verbose_accuracy" not in verbosity(short, [says(5)] * 3)


def test_wins_and_ties():
    found = paired_wins([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 5.0, 1.0], [5, 5, 5, 5], [5, 5, 5, 5])
    assert found.rate == 0.625 and found.prompts == 4  # won, tie, lost, won
    assert found.se == pytest.approx((0.6875 / 3 / 4) ** 0.5)  # of 1, 1/2, 0, 1: squares of deviations sum to 0.6875
    assert found.controlled == pytest.approx(0.625, abs=1e-3)  # nothing to control for
    with pytest.raises(ValueError, match="2 and 1 scores"):
        paired_wins([1.0, 2.0], [1.0], [1, 2], [1])
    with pytest.raises(ValueError):
        paired_wins([], [], [], [])


def test_the_fit_is_the_maximum():
    """Against a grid over intercept and slope of the penalised likelihood."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=40)
    y = (draw.random(40) < 1 / (1 + np.exp(-(0.4 + 1.5 * x)))).astype(float)

    def likelihood(a, b):
        z = a + b * x
        return float((y * z - np.log1p(np.exp(z))).sum()) - 0.5e-3 * (a * a + b * b)

    intercept, slope = logistic(x, y)
    best = max((likelihood(a, b), a, b) for a in np.arange(-2, 2, 0.02) for b in np.arange(-1, 4, 0.02))
    assert likelihood(intercept, slope) >= best[0] - 1e-9
    assert intercept == pytest.approx(best[1], abs=0.03) and slope == pytest.approx(best[2], abs=0.03)


def test_a_judge_that_only_likes_length_is_seen_through():
    """Left is longer in 800 of 1000, and only that pays: well over a half plainly, a coin at equal length."""
    draw = np.random.default_rng(1)
    gaps = np.where(np.arange(1000) < 800, 1, -1) * draw.integers(1, 60, 1000)
    scores = np.tanh(gaps / 30) + draw.normal(0, 0.8, 1000)
    found = paired_wins(list(scores), [0.0] * 1000, [int(100 + gap) for gap in gaps], [100] * 1000)
    assert found.rate > 0.65 and found.length_effect > 1
    assert 0.42 < found.controlled < 0.58


def test_one_side_always_wins_and_the_fit_stays_finite():
    found = paired_wins([1.0] * 20, [0.0] * 20, list(range(20)), [5] * 20)
    assert found.rate == 1.0 and 0.95 < found.controlled <= 1.0 and math.isfinite(found.length_effect)
