"""Drawing of a token from logits: temperature, top-k, top-p, and one uniform number per row."""

from typing import NamedTuple

import torch
from torch import Tensor


class Sampling(NamedTuple):
    """Settings by which tokens are drawn."""

    limit: int  # most tokens of a response, the ending included
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    seed: int = 0


def draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw by inverse transform: the first token whose cumulative probability exceeds the row's uniform number.

    logits: (B, V) float32; uniforms: (B,) in [0, 1). Returns token ids (B,) and their log-probabilities (B,).
    Greedy (temperature 0) takes the largest logit, with its log-probability at temperature 1.
    """
    if sampling.temperature == 0:
        drawn = logits.argmax(-1)
        return drawn, logits.log_softmax(-1).gather(1, drawn[:, None]).squeeze(1)
    logits = filter_logits(logits / sampling.temperature, sampling.top_k, sampling.top_p)
    logprobs = logits.log_softmax(-1)
    cumulative = logprobs.exp().cumsum(-1)
    threshold = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]  # float32 sums are not exactly 1
    drawn = torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
    return drawn, logprobs.gather(1, drawn[:, None]).squeeze(1)


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Keep the `top_k` largest logits (0: all), then the smallest set with probability `top_p`; the rest is -inf."""
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1.0:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        dropped = (before >= top_p).scatter(-1, order, before >= top_p)
        dropped.scatter_(-1, order[..., :1], False)
        logits = logits.masked_fill(dropped, -torch.inf)
    return logits


def penalize(logits: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    """Make these tokens, (n,) ids, less likely in logits (V,): positive ones are divided, negative ones multiplied.

    Source: Keskar et al. 2019 (CTRL), section 4.1, in the form Transformers gives it. A penalty of 1 changes nothing.
    """
    seen = logits[tokens]
    return logits.scatter(0, tokens, torch.where(seen < 0, seen * penalty, seen / penalty))


def uniforms(seed: int, row: int, count: int) -> Tensor:
    """The random numbers of one row, (count,) float32: one generator per row, independent of the other rows."""
    generator = torch.Generator().manual_seed(_row_seed(seed, row))
    return torch.rand(count, dtype=torch.float32, generator=generator)  # a model that is loaded sets another default


def _row_seed(seed: int, row: int) -> int:
    """A generator's seed; the multipliers keep those of neighbouring seeds and rows apart."""
    return (seed * 0x9E3779B97F4A7C15 + row * 0xBF58476D1CE4E5B9) % (1 << 63)
