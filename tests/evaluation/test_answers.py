"""Figures of answers, by hand."""

import pytest

from lite_c2f.actors.answers import Answer, paired_difference, repeated_ngrams, standard_error, summarize
from lite_c2f.data.records import Prompt, Turn


@pytest.mark.parametrize(
    ("tokens", "share"),
    [([1, 2, 3], 0.0), ([1, 2, 3, 4, 5], 0.0), ([1, 1, 1, 1, 1], 0.5), ([1, 2, 1, 2, 1, 2, 1], 0.5), ([], 0.0)],
)
def test_repeated_4grams(tokens, share):
    assert repeated_ngrams(tokens) == share


def test_summary_of_two_answers():
    prompts = [Prompt((Turn("human", "?"),), {"toy_answer": 5, "toy_steps": 2})] * 2
    answers = [Answer("The answer is 5.", 6, "eos", [1, 1, 1, 1, 1]), Answer("I do not", 10, "limit", [1, 2, 3, 4, 5])]
    assert summarize(prompts, answers, [1.0, -2.0]) == {
        "reward": -0.5, "tokens": 8.0, "repeated_4gram": 0.25, "eos": 0.5, "accuracy": 0.5, "analytic": 0.0,
    }  # fmt: skip
    plain = [Prompt((Turn("human", "?"),), {})] * 2
    assert "accuracy" not in summarize(plain, answers, [0.0, 0.0])


def test_standard_error():
    assert standard_error([1.0, 3.0]) == 1.0  # spread sqrt(2) over sqrt(2)
    assert standard_error([5.0]) == 0.0


def test_paired_difference_by_hand():
    """Differences 1, 2, 3: mean 2, standard deviation 1 (n - 1), standard error 1 / sqrt 3."""
    gain, error = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert gain == 2.0 and error == pytest.approx(3**-0.5)
    assert paired_difference([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == (-2.0, error)
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([1.0, 2.0], [1.0])
