"""Tensor maths, and the wrapper of TRL's log-probability kernel. Masks are boolean, True = keep."""

from typing import Any

import torch
from torch import Tensor
from trl.kernels.chunked_logprob import ChunkedLogProbFunction


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values under the mask, a scalar; 0 where the mask is empty. values, mask: one shape."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    """Population variance of the values under the mask, a scalar."""
    return masked_mean((values - masked_mean(values, mask)) ** 2, mask)


def masked_whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Values under the mask at mean 0 (if `shift_mean`) and variance 1; 0 elsewhere. values, mask: one shape."""
    mean = masked_mean(values, mask)
    whitened = (values - mean) * torch.rsqrt(masked_var(values, mask) + eps)
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0.0)


def explained_variance(predicted: Tensor, target: Tensor, mask: Tensor) -> float:
    """1 - Var(target - predicted) / Var(target) over the mask's entries: 1 for a perfect critic, 0 a constant one."""
    variance = masked_var(target, mask)
    if variance <= 1e-12:
        return 0.0
    return float(1 - masked_var(target - predicted, mask) / variance)


def token_logprobs(
    hidden: Tensor, head: Any, targets: Tensor, temperature: float, *, entropy: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target and the entropy of its distribution, in nats, without the (N, V) logits.

    hidden: (N, H) final hidden states; head: the language-model head, with weight (V, H), bias,
    scale and softcap (`backbone.lm_head.LanguageHead`); targets: (N,) token ids.
    Returns two (N,) float32 tensors, None instead of the entropy unless `entropy`; gradients flow to `hidden`.
    Logits of 32,000 words cost 125 KiB per token in float32; TRL's kernel works on tiles of them.
    """
    tile = min(4096, head.weight.shape[0])
    outputs = ("entropy",) if entropy else ()
    logprobs, entropies, *_ = ChunkedLogProbFunction.apply(
        hidden, head.weight, head.bias, targets, temperature, tile, head.softcap, head.scale, outputs
    )
    return logprobs, entropies
