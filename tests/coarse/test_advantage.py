"""Token rewards by hand, GAE against a brute-force sum in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_c2f.coarse.advantage import gae, token_rewards


def test_rewards_are_the_kl_penalty_and_the_score_at_the_last_response_token():
    logprobs = torch.tensor([[0.0, -1.0, -2.0, -9.0], [-1.0, -1.0, -9.0, -9.0]])
    reference = torch.tensor([[0.0, -1.5, -1.0, -9.0], [-3.0, -1.0, -5.0, -5.0]])
    mask = torch.tensor([[False, True, True, False], [True, True, False, False]])
    rewards = token_rewards(torch.tensor([2.0, -1.0]), logprobs, reference, mask, kl_coef=0.1)
    # row 0: -0.1 * 0.5 = -0.05, then -0.1 * -1 + 2 = 2.1; row 1: -0.1 * 2 = -0.2, then 0 - 1 = -1
    expected = torch.tensor([[0.0, -0.05, 2.1, 0.0], [-0.2, -1.0, 0.0, 0.0]])
    torch.testing.assert_close(rewards, expected, atol=1e-6, rtol=0)


def test_gae_by_hand():
    rewards = torch.tensor([[0.0, 1.0, 0.0]])
    values = torch.tensor([[0.5, 0.25, 99.0]])
    mask = torch.tensor([[True, True, False]])
    result = gae(rewards, values, mask, gamma=1.0, lam=0.5)
    # delta_1 = 1 - 0.25 = 0.75; delta_0 = 0 + 0.25 - 0.5 = -0.25; A_1 = 0.75; A_0 = -0.25 + 0.5 * 0.75 = 0.125
    torch.testing.assert_close(result.returns, torch.tensor([[0.625, 1.0, 0.0]]))
    torch.testing.assert_close(result.advantages, torch.tensor([[-1.0, 1.0, 0.0]]), atol=1e-5, rtol=0)  # whitened


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1.0, 0.9]), st.sampled_from([0.0, 0.95, 1.0]))
def test_gae_is_the_discounted_sum_of_temporal_differences(seed, gamma, lam):
    random = np.random.default_rng(seed)
    rows, width = 3, 7
    rewards, values = random.normal(size=(2, rows, width))
    mask = np.zeros((rows, width), bool)
    for row in range(rows):
        first = random.integers(0, width - 1)
        mask[row, first : random.integers(first + 1, width + 1)] = True
    returns = np.zeros((rows, width))
    for row in range(rows):
        indices = np.flatnonzero(mask[row])
        for t in indices:
            total = 0.0
            for later in indices[indices >= t]:
                following = values[row, later + 1] if later + 1 in indices else 0.0
                delta = rewards[row, later] + gamma * following - values[row, later]
                total += (gamma * lam) ** (later - t) * delta
            returns[row, t] = total + values[row, t]
    result = gae(torch.tensor(rewards), torch.tensor(values), torch.tensor(mask), gamma, lam)
    np.testing.assert_allclose(result.returns.numpy(), returns, atol=1e-9)
    whitened = result.advantages.numpy()[mask]
    if len(whitened) > 1 and whitened.std() > 0:
        assert abs(whitened.mean()) < 1e-6 and whitened.std() == pytest.approx(1.0, abs=1e-3)
