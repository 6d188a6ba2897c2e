"""The clipped losses, every branch by hand."""

import math

import pytest
import torch

from lite_c2f.coarse.loss import adapt_kl, policy_loss, value_loss


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 2.0, -2.4, True),  # 1.2 * 2: no more to gain beyond the clip
        (0.5, 2.0, -1.0, False),  # worse than the clip would say: full gradient
        (0.5, -2.0, 1.6, True),  # 0.8 * 2
        (1.5, -2.0, 3.0, False),
    ],
)
def test_policy_loss(ratio, advantage, loss, clipped):
    old = torch.tensor([-1.0])
    result, was_clipped = policy_loss(old + math.log(ratio), old, torch.tensor([advantage]), 0.2)
    assert result.item() == pytest.approx(loss, abs=1e-6)
    assert was_clipped.item() is clipped


def test_policy_gradient_raises_what_was_good():
    logprobs = torch.tensor([-1.0, -1.0], requires_grad=True)
    policy_loss(logprobs, torch.tensor([-1.0, -1.0]), torch.tensor([3.0, -3.0]), 0.2)[0].sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([-3.0, 3.0]))


@pytest.mark.parametrize(
    ("value", "old", "target", "loss"),
    [
        (1.0, 1.0, 3.0, 2.0),  # 0.5 * 4
        (2.0, 1.0, 3.0, 0.5 * 1.8**2),  # moved by 1 but only 0.2 counts
        (1.1, 1.0, 3.0, 0.5 * 1.9**2),
        (0.0, 1.0, 3.0, 4.5),  # moving away is not clipped
    ],
)
def test_value_loss(value, old, target, loss):
    result = value_loss(torch.tensor([value]), torch.tensor([old]), torch.tensor([target]), 0.2)
    assert result.item() == pytest.approx(loss, abs=1e-6)


def test_kl_coefficient_moves_towards_the_target():
    assert adapt_kl(0.1, 8.0, None, 64) == 0.1
    assert adapt_kl(0.1, 8.0, 4.0, 1000) == pytest.approx(0.1 * (1 + 0.2 * 0.1))  # error clipped to 0.2
    assert adapt_kl(0.1, 3.6, 4.0, 1000) == pytest.approx(0.1 * (1 - 0.1 * 0.1))
