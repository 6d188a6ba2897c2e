"""Figures of answers, and the choice of a ratio, by hand."""

import pytest

from lite_c2f.answers import Answer, repeated_ngrams, standard_error, summarize
from lite_c2f.data.records import Prompt, Turn
from lite_c2f.fine.sweep import choose, parse_ratios


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


def row(ratio, reward, eos):
    return {"ratio": ratio, "reward": reward, "reward_se": 0.1, "eos": eos}


@pytest.mark.parametrize(
    ("tried", "chosen"),
    [
        ([row(0.0, 9.0, 1.0), row(0.5, 1.0, 1.0), row(1.0, 2.0, 0.96)], 1.0),  # ratio 0 is never chosen
        ([row(0.5, 1.0, 1.0), row(1.0, 2.0, 0.94)], 0.5),  # does not end often enough
        ([row(0.5, 0.89, 1.0), row(0.75, 0.91, 1.0), row(1.0, 1.0, 1.0)], 0.75),  # within one standard error
        ([row(1.0, 1.0, 1.0), row(0.5, 0.95, 1.0)], 0.5),  # whatever the order
        ([row(0.5, 1.0, 0.2), row(1.0, 3.0, 0.1)], 0.5),  # none is eligible: the one that ends most often
    ],
)
def test_choice_of_a_ratio(tried, chosen):
    assert choose(tried, 0.95) == chosen


def test_standard_error():
    assert standard_error([1.0, 3.0]) == 1.0  # spread sqrt(2) over sqrt(2)
    assert standard_error([5.0]) == 0.0


def test_ratios_from_text():
    assert parse_ratios("0.5,1") == [0.5, 1.0]
