"""Continuous Maximization: a run worked out by hand, and what must hold for every run."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite_c2f.coarse.length import LengthState, RunningStats, advance, round_to, sigmoid, start
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Length

PLAIN = Length(start=16, max=64, step=8, multiple=4, tau=0.2, w_reward=1.0, w_value=0.5, decay=0.5)


def test_first_update_opens_the_gate_half_way():
    state = advance(start(PLAIN), PLAIN, reward=-1.0, value_loss=3.0, hit_share=1.0)
    assert (state.limit, state.gate) == (20, 0.5)  # 16 + round_to(8 * 0.5, 4)


def test_a_run_by_hand():
    state = start(PLAIN)
    for reward in (0.0, 1.0):  # mean 0 then 0.5, variance 0 then 0.25; both gates half open
        state = advance(state, PLAIN, reward, 1.0, 1.0)
    assert state.reward == RunningStats(2, 0.5, 0.25)
    assert state.limit == 24
    state = advance(state, PLAIN, 1.5, 1.0, 1.0)  # z = (1.5 - 0.5) / 0.5 = 2, the critic loss never moved
    assert state.gate == pytest.approx(0.8808, abs=5e-5)  # 1 / (1 + e^-2), e^-2 = 0.1353
    assert state.limit == 32  # 24 + round_to(8 * 0.88, 4) = 24 + 8


@pytest.mark.parametrize(
    ("value_loss", "gate", "limit"),
    [
        (1.0, 0.8176, 24),  # z = -3, x = 1.5, e^-1.5 = 0.2231; 8 * 0.8176 = 6.5, nearest multiple of 4: 8
        (4.0, 0.5, 20),  # as usual: 8 * 0.5 = 4
        (5.0, 0.3775, 20),  # z = 1, x = -0.5, e^0.5 = 1.6487; 8 * 0.3775 = 3.02: 4
        (7.0, 0.1824, 16),  # z = 3, x = -1.5, e^1.5 = 4.4817; 8 * 0.1824 = 1.46: 0
    ],
)
def test_a_rising_critic_loss_closes_the_gate(value_loss, gate, limit):
    """The reward is as usual, z = 0; the critic's loss weighs a half."""
    state = LengthState(16, reward=RunningStats(5, 0.0, 1.0), value_loss=RunningStats(5, 4.0, 1.0))
    after = advance(state, PLAIN, 0.0, value_loss, 1.0)
    assert after.gate == pytest.approx(gate, abs=5e-5) and after.limit == limit


def test_grows_only_while_responses_hit_the_limit():
    assert advance(start(PLAIN), PLAIN, 1.0, 1.0, 0.19).limit == 16
    assert advance(start(PLAIN), PLAIN, 1.0, 1.0, 0.2).limit == 20


def test_modes():
    fixed = PLAIN.model_copy(update={"mode": "fixed"})
    assert advance(start(fixed), fixed, 5.0, 0.0, 1.0).limit == 16
    linear = PLAIN.model_copy(update={"mode": "linear"})
    state = LengthState(16, reward=RunningStats(5, 0.0, 1.0))
    assert advance(state, linear, 1.0, 0.0, 1.0).gate == 0.75  # 0.5 + 1 / 4
    assert advance(state, linear, 3.0, 0.0, 1.0).gate == 1.0


def test_numbers_that_are_not_finite_change_nothing():
    state = LengthState(16, reward=RunningStats(5, 0.0, 1.0))
    assert advance(state, PLAIN, math.nan, 1.0, 1.0) == state
    assert advance(state, PLAIN, 1.0, math.inf, 1.0) == state


@pytest.mark.parametrize(("value", "expected"), [(0.0, 0), (1.9, 0), (2.0, 4), (5.9, 4), (6.0, 8)])
def test_rounding(value, expected):
    assert round_to(value, 4) == expected


def test_sigmoid_does_not_overflow():
    assert sigmoid(-1000.0) == 0.0 and sigmoid(1000.0) == 1.0 and sigmoid(0.0) == 0.5


numbers = st.floats(-1e6, 1e6)


@given(st.lists(st.tuples(numbers, numbers, st.floats(0, 1)), max_size=30), st.integers(16, 40), st.integers(1, 16))
def test_bounded_and_monotone(updates, step, multiple):
    settings = load_config(
        {"coarse": {"length": {"start": 10, "max": 50, "step": step, "multiple": multiple}}}
    ).coarse.length
    state = start(settings)
    for reward, loss, hit in updates:
        after = advance(state, settings, reward, loss, hit)
        assert state.limit <= after.limit <= 50
        assert after.limit - state.limit <= step + multiple
        assert 0 <= after.gate <= 1
        state = after
