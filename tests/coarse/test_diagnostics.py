"""Every warning comes when it should, not when it should not, and not again and again."""

import random

import pytest

from lite_c2f.coarse.diagnostics import REPEAT_AFTER, RULES, correlation, share_alike, warnings

CALM = {
    "reward": 0.1,
    "kl": 5.0,
    "tokens": 100.0,
    "value_loss": 0.2,
    "entropy": 1.0,
    "same": 0.02,
    "repeated_4gram": 0.05,
    "reward_length_correlation": 0.3,
}


def lines(count, **last):
    """Calm updates, and then `count` with other figures."""
    return [dict(CALM) for _ in range(12)] + [{**CALM, **last} for _ in range(count)]


def test_a_calm_run_warns_of_nothing():
    noise = random.Random(0)
    rows = [{name: value * noise.uniform(0.7, 1.3) for name, value in CALM.items()} for _ in range(60)]
    assert warnings([]) == [] and all(warnings(rows[:count]) == [] for count in range(1, 61))


@pytest.mark.parametrize(
    ("count", "figures", "words"),
    [
        (3, {"kl": 60.0}, ("KL to the base is 0.60 nats per token", "coarse.kl_coef")),
        (1, {"value_loss": 2.1}, ("critic's loss jumped from 0.2 to 2.1", "coarse.critic_lr")),
        (1, {"entropy": 0.09, "same": 0.3}, ("entropy fell from 1 to 0.09", "coarse.kl_coef")),
        (1, {"entropy": 0.09, "repeated_4gram": 0.3}, ("entropy fell from 1 to 0.09", "coarse.lr")),
        (1, {"reward": 0.9, "same": 0.6}, ("60% of the responses begin like another one", "samples.jsonl")),
        (
            5,
            {"reward_length_correlation": 0.9, "tokens": 160.0, "reward": 0.2},
            ("0.90", "1.6 times as long", "coarse.length.max"),
        ),
        (3, {"function_seconds": 0.6, "seconds": 10.0}, ("reward functions take 6% of an update (0.6 s", "`workers`")),
        (3, {"applies/right": 0.0, "applies/polite": 0.1}, ("reward right gave no score for any", "last 3 updates")),
        (3, {"reward": 0.0, "reward_std": 0.0}, ("the same reward (+0.00)", "coarse.rollouts")),
    ],
    ids=[
        "kl",
        "value",
        "entropy and alike",
        "entropy and loops",
        "same",
        "length",
        "slow functions",
        "no scores",
        "one reward",
    ],
)
def test_each_sign_is_told_once_with_what_to_change(count, figures, words):
    rows = lines(count, **figures)
    messages = warnings(rows)
    assert len(messages) == 1 and all(word in messages[0] for word in words)
    assert warnings(rows[:-1]) == []
    again = rows + [rows[-1]] * REPEAT_AFTER
    later = [size for size in range(len(rows) + 1, len(again) + 1) if warnings(again[:size])]
    goes_on = "value_loss" not in figures  # a jump is one only once
    assert later == ([len(rows) + REPEAT_AFTER] if goes_on else [])  # what goes on is told again, not all the time


@pytest.mark.parametrize(
    ("count", "figures"),
    [
        (1, {"reward": 0.1 + 1e-8, "same": 0.6}),  # risen by rounding alone
        (2, {"kl": 60.0}),  # two updates are chance
        (3, {"kl": 45.0}),
        (1, {"value_loss": 1.9}),  # not ten times
        (1, {"entropy": 0.02}),  # sure of itself, and every response another one: a task with one right answer
        (1, {"reward": 0.05, "same": 0.9}),  # alike, but not rewarded
        (5, {"reward_length_correlation": 0.9}),  # not longer
        (5, {"tokens": 400.0, "reward": 0.2}),  # longer, and not paid for it
        (5, {"reward_length_correlation": 0.9, "tokens": 160.0}),  # longer, and no better for it
    ],
)
def test_half_a_sign_is_none(count, figures):
    assert warnings(lines(count, **figures)) == []


def test_a_critic_that_was_never_right_is_told():
    rows = [{**CALM, "value_loss": 100.0} for _ in range(12)]
    assert any("critic's loss is 1e+02" in text for size in range(1, 13) for text in warnings(rows[:size]))


def test_total_collapse_is_told():
    rows = lines(1, entropy=0.0, same=1.0, policy_grad_norm=0.1)
    assert any("entropy fell from 1 to 0" in text for text in warnings(rows))


def test_all_the_same_from_the_beginning_is_told_when_it_gets_worse():
    rows = [{**CALM, "same": 0.6}] * 5 + [{**CALM, "same": 1.0, "reward": 0.9}]
    assert any("100% of the responses" in text for text in warnings(rows))


def test_one_reward_for_all_is_told_only_where_there_are_scores():
    right = {"reward_std": 0.0, "applies/right": 0.0}
    assert [message[:12] for message in warnings(lines(3, **right))] == ["reward right"]
    assert warnings([*lines(2, reward_std=0.0), CALM | {"reward_std": 0.1}]) == []


def test_small_losses_may_jump():
    rows = [{**CALM, "value_loss": 0.01} for _ in range(12)] + [{**CALM, "value_loss": 0.9}]
    assert warnings(rows) == []


def test_rules_bear_the_first_update_and_a_warm_up():
    first = {**CALM, "entropy": 0.0}
    assert all(rule([first]) is None for rule in RULES)
    assert all(rule([first] * 8) is None for rule in RULES)


def test_correlation_and_openings():
    assert correlation([1, 2, 3, 4], [2, 4, 6, 8]) == pytest.approx(1.0)
    assert correlation([1, 2, 3, 4], [1, -1, -1, 1]) == 0.0
    assert correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert correlation([5, 5, 5], [1, 2, 3]) == 0.0
    same_start = [*range(32), 99]
    assert share_alike([same_start, [*range(32), 7, 8], [1]]) == pytest.approx(2 / 3)
    assert share_alike([[1], [2], [1, 2]]) == 0.0
