"""Ratings from choices: closed forms for two actors, the equations of the most likely strengths for more."""

import math

import pytest

from lite_c2f.evaluation.ratings import AnswerChoice, rate

AB = ("a", "b")


def test_two_actors_by_hand():
    """6 wins, 2 losses and the imagined tie: shares 6.5 and 2.5 of 9. In the difference of log strengths lies an
    information of 9 * 6.5/9 * 2.5/9, and each strength is half that difference."""
    best, worst = rate([AnswerChoice(AB, "a")] * 6 + [AnswerChoice(("b", "a"), "b")] * 2)
    assert (best.name, worst.name, best.choices, worst.choices) == ("a", "b", 8, 8)
    assert best.points == pytest.approx(200 * math.log10(6.5 / 2.5), abs=1e-6)
    half = 1.959964 * 400 / math.log(10) * math.sqrt(9 / (6.5 * 2.5)) / 2
    assert (best.low, best.high) == pytest.approx((best.points - half, best.points + half), abs=1e-6)
    assert worst.points == pytest.approx(-best.points) and worst.high == pytest.approx(-best.low)


def test_ties_pull_together_and_no_choice_is_no_rating():
    (first, second) = rate([AnswerChoice(AB, None)] * 5)
    assert first.points == second.points == 0.0 and first.low == -first.high < 0
    wins = [AnswerChoice(AB, "a")] * 4
    assert rate([*wins, *[AnswerChoice(AB, None)] * 4])[0].points == pytest.approx(200 * math.log10(6.5 / 2.5))
    assert rate([]) == [] and rate([AnswerChoice(("a",), "a")]) == []


@pytest.mark.parametrize("count", [1, 30, 1000])
def test_one_that_always_wins_has_a_finite_rating(count):
    best, _ = rate([AnswerChoice(AB, "a")] * count)
    assert best.points == pytest.approx(200 * math.log10((count + 0.5) / 0.5), rel=1e-6)
    assert -math.inf < best.low < best.points


def test_among_three_the_shares_are_those_expected():
    """Where strengths are most likely, each actor was chosen as often as they say."""
    three = ("a", "b", "c")
    choices = [
        *[AnswerChoice(three, "a")] * 9,
        *[AnswerChoice(three, "b")] * 4,
        *[AnswerChoice(three, "c")] * 2,
        AnswerChoice(three, None),
    ]
    choices += [*[AnswerChoice(AB, "b")] * 3, AnswerChoice(("c", "b"), "c")]
    strengths = {rating.name: 10 ** (rating.points / 400) for rating in rate(choices)}
    imagined = [AnswerChoice(pair, None) for pair in (AB, ("a", "c"), ("b", "c"))]
    for name in three:
        chosen = expected = 0.0
        for choice in [*choices, *imagined]:
            if name in choice.shown:
                chosen += 1 / len(choice.shown) if choice.winner is None else choice.winner == name
                expected += strengths[name] / sum(strengths[shown] for shown in choice.shown)
        assert chosen == pytest.approx(expected, abs=1e-6)
    assert math.prod(strengths.values()) == pytest.approx(1)  # their mean is 0 points
    # Without the others, a against c would be 9.5 to 2.5 at least.
    assert [rating.name for rating in rate(choices)] == ["a", "b", "c"]


def test_actors_that_never_met_have_wide_intervals():
    met = {rating.name: rating for rating in rate([AnswerChoice(AB, "a")] * 20 + [AnswerChoice(("c", "d"), "c")] * 20)}
    known = {rating.name: rating for rating in rate([AnswerChoice(AB, "a")] * 20)}
    assert met["a"].high - met["a"].low > known["a"].high - known["a"].low
    assert met["a"].points == pytest.approx(met["c"].points)
