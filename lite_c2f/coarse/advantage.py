"""Rewards per token, and generalised advantage estimation.

Everything is (B, T): entry t belongs to the row's token t + 1, which the policy drew after reading tokens 0..t; `mask`
is True where that token belongs to the response.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lite_c2f.ops import masked_whiten


class Advantages(NamedTuple):
    """(B, T) each; 0 where the mask is False."""

    advantages: Tensor  # whitened over the whole batch
    returns: Tensor  # targets of the critic


def token_rewards(scores: Tensor, logprobs: Tensor, reference: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Per-token reward: -kl_coef * (log pi - log pi_ref), and the score at the last response token.

    scores: (B,) normalised and clipped; the rest (B, T). The KL estimate is k1 of Schulman's "Approximating KL
    divergence"; the penalty is that of InstructGPT (arXiv 2203.02155, equation 2).
    """
    rewards = torch.where(mask, -kl_coef * (logprobs - reference), 0.0)
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, positions, -1).max(1).values
    rows = torch.nonzero(last >= 0).squeeze(1)
    rewards[rows, last[rows]] += scores[rows]
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Advantages:
    """Generalised advantage estimation (arXiv 1506.02438, equation 16), over each row's response.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}; beyond the last response token V and A
    are 0, for a response that ran into the limit too: its score is that of the cut response.
    """
    values = torch.where(mask, values, 0.0)
    rewards = torch.where(mask, rewards, 0.0)
    advantages = torch.zeros_like(values)
    following_value = torch.zeros_like(values[:, 0])
    following = torch.zeros_like(values[:, 0])
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following = torch.where(mask[:, t], delta + gamma * lam * following, 0.0)
        following_value = values[:, t]
        advantages[:, t] = following
    return Advantages(masked_whiten(advantages, mask), torch.where(mask, advantages + values, 0.0))
