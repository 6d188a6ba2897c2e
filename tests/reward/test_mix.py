"""The mix of sources, by sums worked out by hand."""

import math

import pytest

from lite_c2f.config.rewards import RewardSource
from lite_c2f.reward.mix import RewardMix, ScoreStats


def source(name, **settings):
    return RewardSource(function=f"a.py:{name}", **settings)


def test_running_statistics_are_those_of_all_scores():
    """1, 3, 5, 7: mean 4, squares 9 + 1 + 1 + 9 = 20, variance 5, however they are divided."""
    whole = ScoreStats().add([1.0, 3.0, 5.0, 7.0])
    parts = ScoreStats().add([7.0]).add([]).add([1.0, 5.0]).add([3.0])
    for stats in (whole, parts):
        assert stats.number == 4 and stats.mean == pytest.approx(4.0) and stats.squares == pytest.approx(20.0)
    assert whole.scaled(9.0) == pytest.approx(5 / math.sqrt(5))
    assert ScoreStats().add([2.0, 2.0]).scaled(2.0) == 0.0


def test_a_single_raw_source_is_its_score_exactly():
    mix = RewardMix([RewardSource(model="trained")], ["reward_model"])
    scores = [0.1, -2.7182818284590455, 1e-30]
    assert mix.running == () and mix.combine({"reward_model": scores}) == scores


def test_weights_scales_clips_and_rows_without_a_score():
    """a: batch 0, 2 has mean 1 and deviation 1: -1, +1, times 2. b: raw 10 clipped to 3, times -0.5; one None."""
    mix = RewardMix([source("a", weight=2.0), source("b", weight=-0.5, scale="none", clip=3.0)])
    assert mix.running == ("a",)
    assert mix.combine({"a": [0.0, 2.0, None], "b": [10.0, None, 1.0]}) == pytest.approx([-2 - 1.5, 2.0, -0.5])
    # the statistics go on: 0, 2, 4 has mean 2 and variance 8/3
    assert mix.combine({"a": [4.0], "b": [0.0]}) == pytest.approx([2 * 2 / math.sqrt(8 / 3)])


def test_a_multiplier_rises_while_the_mean_is_below_its_bound():
    mix = RewardMix([source("a", scale="none"), source("b", scale="none", at_least=0.5)], (), 0.4, 0.5)
    scores = {"a": [1.0, 3.0], "b": [0.0, 0.5]}  # the mean of b is 0.25, so that each batch adds 0.4 * 0.25 = 0.1
    assert mix.combine(scores) == [1.0, 3.0]  # not before the first batch
    assert mix.multipliers["b"] == pytest.approx(0.1)
    assert mix.combine(scores) == pytest.approx([1.0 / 1.1, (3.0 + 0.1 * 0.5) / 1.1])
    for _ in range(5):
        mix.combine(scores)
    assert mix.multipliers["b"] == 0.5  # the largest
    mix.combine({"a": [1.0], "b": [1.0]})  # 0.5 above the bound: 0.4 * 0.5 = 0.2 less
    assert mix.multipliers["b"] == pytest.approx(0.3)
    mix.combine({"a": [1.0], "b": [5.0]})
    assert mix.multipliers["b"] == 0.0  # never below
    mix.combine({"a": [1.0], "b": [None]})
    assert mix.multipliers["b"] == 0.0


def test_scores_that_are_not_finite_leave_the_state():
    mix = RewardMix([source("a"), source("b", at_least=1.0)])
    mix.combine({"a": [1.0, 2.0], "b": [0.0, 0.0]})
    before = mix.state()
    before = {"stats": dict(before["stats"]), "multipliers": dict(before["multipliers"])}
    assert math.isnan(mix.combine({"a": [math.nan, 2.0], "b": [0.0, 0.0]})[0])
    assert mix.state() == before


def test_the_state_goes_through_json():
    import json

    sources = [source("a"), source("b", at_least=1.0)]
    one, two = RewardMix(sources), RewardMix(sources)
    batch = {"a": [1.0, 2.5], "b": [0.0, 0.3]}
    one.combine(batch)
    assert two.restore(json.loads(json.dumps(one.state()))) == []
    assert two.combine(batch) == one.combine(batch) and two.multipliers == one.multipliers


def test_the_state_of_other_sources_is_restored_by_name():
    """b was not there before and c is gone: a goes on with 1, 3 (mean 2, deviation 1), b begins."""
    before, now = RewardMix([source("a"), source("c")]), RewardMix([source("a"), source("b", at_least=1.0)])
    before.combine({"a": [1.0, 3.0], "c": [5.0, 5.0]})
    assert now.restore(before.state()) == ["b"]
    assert now.stats["a"].scaled(4.0) == 2.0 and now.stats["b"] == ScoreStats() and now.multipliers == {"b": 0.0}
    assert now.restore({}) == ["a", "b"]
