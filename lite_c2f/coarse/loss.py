"""The clipped losses of PPO (arXiv 1707.06347, equation 7, and its common clipped value loss), one value per token."""

import torch
from torch import Tensor


def policy_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """-min(ratio * A, clip(ratio, 1 - clip, 1 + clip) * A), and whether the clipped side was the smaller.

    All (N,), one entry per response token; ratio = exp(logprobs - old). Returns (N,) losses and (N,) booleans.
    """
    ratio = torch.exp(logprobs - old)
    plain = ratio * advantages
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages
    return -torch.minimum(plain, clipped), clipped < plain


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """0.5 * max((V - R)^2, (clip(V, old - clip, old + clip) - R)^2). All (N,); returns (N,)."""
    clipped = torch.clamp(values, old - clip, old + clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def adapt_kl(kl_coef: float, kl: float, target: float | None, rollouts: int, horizon: int = 10_000) -> float:
    """Move the KL coefficient towards a target KL (arXiv 1909.08593, section 2.2); as it is without a target.

    kl, target: nats per response; the proportional error is clipped to 0.2 and divided over `horizon` responses.
    """
    if target is None:
        return kl_coef
    error = max(-0.2, min(0.2, kl / target - 1))
    return kl_coef * (1 + error * rollouts / horizon)
