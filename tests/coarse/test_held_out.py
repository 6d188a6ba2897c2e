"""Held-out judgement: figures, the best policy, patience, and the warning of over-optimisation."""

import json

import pytest
import torch

from lite_c2f.coarse.evaluate import evaluation_key
from lite_c2f.coarse.held_out import HeldOutState, is_due, overoptimised, record
from lite_c2f.config.loading import load_config
from lite_c2f.config.rewards import RewardSource
from lite_c2f.reward.mix import RewardMix


def settings(*more):
    return load_config({}, ["coarse.evaluate_every=2", "coarse.critic_warmup=3", *more]).coarse


def recorded(mix, coarse, *scores_of):
    """(state, the steps that became the best) of evaluations at step 0, 4, 5, ..."""
    state, best = HeldOutState(), []
    for number, scores in enumerate(scores_of):
        step = number + 3 if number else 0
        if record(state, mix, coarse, step, dict(scores)):
            best.append(step)
    return state, best


def function(name, **more):
    return RewardSource(function=f"a.py:{name}", **more)


@pytest.mark.parametrize(
    ("step", "last", "due"),
    [(0, False, True), (1, False, False), (2, False, False), (3, False, False), (4, False, True), (5, False, False),
     (5, True, True), (6, False, True)],
)  # fmt: skip
def test_when_it_is_due(step, last, due):
    """At 0, and every second update after the warm-up of three; the last policy in any case."""
    assert is_due(HeldOutState(), settings(), step, last=last) is due
    assert not is_due(HeldOutState([{"step": step}]), settings(), step, last=last)
    assert not is_due(HeldOutState(), load_config({}).coarse, step, last=True)


def test_rewards_of_all_evaluations_are_on_the_scale_of_the_first():
    """First 0, 2: mean 1, deviation 1. Then 3, 5 is 2, 4 deviations above it, whatever PPO's own statistics are."""
    mix = RewardMix([function("a", weight=0.5)])
    mix.combine({"a": [100.0, 200.0]})
    state, _ = recorded(mix, settings(), {"a": [0.0, 2.0]}, {"a": [3.0, 5.0]})
    assert state.evaluations[1]["scores"]["reward"] == [1.0, 2.0]
    assert [line["figures"]["reward"] for line in state.evaluations] == [0.0, 1.5]
    assert [line["figures"]["a"] for line in state.evaluations] == [1.0, 4.0]


def test_a_source_that_does_not_vary_at_first_counts_in_its_own_units():
    state, _ = recorded(RewardMix([function("a")]), settings(), {"a": [0.0, 0.0]}, {"a": [1.0, 0.0]})
    assert [line["figures"]["reward"] for line in state.evaluations] == [0.0, 0.5]


def test_equal_scores_do_not_vary_whatever_their_rounding():
    """The mean of three times 0.1 in floating point is not 0.1: their deviation is 1e-17."""
    first, then = {"a": [0.1, 0.1, 0.1]}, {"a": [0.1, 0.4, 0.7]}
    state, _ = recorded(RewardMix([function("a")]), settings(), first, then)
    assert [line["figures"]["reward"] for line in state.evaluations] == [0.1, 0.4]


def test_without_the_figure_there_is_no_best_policy_and_no_patience():
    watched = settings("coarse.watch=[{function: a.py:w}]", "coarse.best_by=w")
    mix = RewardMix([function("a", scale="none")])
    lines = [{"a": [float(step)], "w": [None]} for step in range(4)]
    state, best = recorded(mix, watched, *lines)
    assert (state.best_step, best) == (None, []) and not state.exhausted(1)
    state, best = recorded(mix, watched, *lines, {"a": [0.0], "w": [-5.0]}, *lines[1:])
    assert best == [7] and state.exhausted(3)


def test_a_bound_on_what_has_no_score_is_not_kept():
    """A policy whose answers a function cannot judge at all is not better than one that is just below the bound."""
    mix = RewardMix([function("a", scale="none"), function("b", at_least=0.5)])
    lines = [{"a": [0.0], "b": [1.0]}, {"a": [2.0], "b": [0.4]}, {"a": [1.0], "b": [None]}, {"a": [0.0], "b": [0.6]}]
    assert recorded(mix, settings(), *lines)[1] == [4, 6]


def test_the_best_policy_is_a_trained_one_and_equal_ones_are_not_better():
    mix = RewardMix([function("a", scale="none")])
    state, best = recorded(mix, settings(), {"a": [9.0]}, {"a": [1.0]}, {"a": [2.0]}, {"a": [2.0]}, {"a": [0.0]})
    assert best == [4, 5] and state.best_step == 5
    assert [state.exhausted(patience) for patience in (None, 1, 2, 3)] == [False, True, True, False]


def test_the_best_by_another_figure():
    watched = settings("coarse.watch=[{function: a.py:w}]", "coarse.best_by=w")
    mix = RewardMix([function("a", scale="none")])
    state, _ = recorded(mix, watched, {"a": [0.0], "w": [0.0]}, {"a": [1.0], "w": [5.0]}, {"a": [2.0], "w": [4.0]})
    assert state.best_step == 4


def test_a_policy_that_keeps_the_bound_is_better_than_one_that_does_not():
    mix = RewardMix([function("a", scale="none"), function("b", at_least=0.5)])
    lines = [{"a": [0.0], "b": [1.0]}, {"a": [9.0], "b": [0.2]}, {"a": [1.0], "b": [0.6]}, {"a": [8.0], "b": [0.4]}]
    state, best = recorded(mix, settings(), *lines)
    assert best == [4, 5] and state.best_step == 5


def evaluation(step, reward, watched):
    scores = {"reward": reward, "right": watched}
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    return {"step": step, "scores": scores, "figures": means, "kept": True}


RISEN, FALLEN = [1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 1.0]
BEFORE = evaluation(0, [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0])


def test_a_reward_that_rises_while_a_watched_figure_falls_is_called_out():
    """Reward: mean 2.5, deviation 1.29, error 0.65: 3.9 errors. Right: mean -0.75, error 0.25: 3 errors."""
    message = overoptimised([BEFORE, evaluation(4, RISEN, FALLEN)], ["right"])
    assert message is not None and "right, which is not trained on, fell from 1 to 0.25" in message
    assert "from update 0 to 4" in message and "coarse.best_by=right" in message


@pytest.mark.parametrize(
    ("reward", "watched"),
    [
        ([-value for value in RISEN], FALLEN),  # both fall
        (RISEN, [1.0, 1.0, 1.0, 2.0]),  # both rise
        (RISEN, [1.0, 1.0, 0.0, 1.0]),  # -0.25 with error 0.25: chance
        ([4.0, -3.0, 3.0, -2.0], FALLEN),  # 0.5 with error 1.7
        (RISEN, [1.0, 1.0, 1.0, 1.0]),
        (RISEN, [None, None, None, 0.0]),  # a single pair says nothing
    ],
)
def test_what_is_not_over_optimisation(reward, watched):
    line = evaluation(4, reward, [value or 0.0 for value in watched])
    line["scores"]["right"] = watched
    assert overoptimised([BEFORE, line], ["right"]) is None


def test_it_looks_back_three_evaluations_and_no_further():
    flat = [evaluation(step, RISEN, FALLEN) for step in (1, 2, 3)]
    assert overoptimised([BEFORE, *flat], ["right"]) is not None
    assert overoptimised([BEFORE, *flat, evaluation(4, RISEN, FALLEN)], ["right"]) is None
    assert overoptimised([BEFORE], ["right"]) is None


def test_the_state_goes_through_json():
    state, _ = recorded(RewardMix([function("a")]), settings(), {"a": [0.0, 1.0]}, {"a": [None, 1.0]})
    state.best_weights = {"w": torch.ones(2)}
    again = HeldOutState()
    assert again.restore(json.loads(json.dumps(state.state())), state.best_weights)
    assert again == state
    other = HeldOutState(key="other prompts")
    assert not other.restore(state.state(), state.best_weights)
    assert other == HeldOutState(key="other prompts")


def test_evaluations_are_comparable_where_prompts_sampling_and_rewards_are_the_same():
    def key(*more, prompts=((1, 2), (3,))):
        return evaluation_key(load_config({}, ["coarse.rewards=[{function: /x/a.py:f}]", *more]), prompts)

    usual = key()
    same = "coarse.rewards=[{function: /y/a.py:f, timeout: 5}]", "coarse.watch=[{function: a.py:g}]"
    assert key(*same, "coarse.evaluate_every=5", "coarse.updates=9", "coarse.lr=1") == usual
    for other in ("coarse.evaluate_temperature=1", "coarse.length.max=512", "run.seed=1",
                  "coarse.rewards=[{function: a.py:f, weight: 2}]"):  # fmt: skip
        assert key(other) != usual, other
    assert key(prompts=((1, 2), (4,))) != usual
