"""Tensor maths, and the wrapper of TRL's log-probability kernel. Masks are boolean, True = keep."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
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
    Returns two (N,) float32 tensors, None instead of the entropy unless `entropy`. Gradients flow to `hidden`, from the
    log-probabilities alone. Logits of 32,000 words cost 125 KiB per token in float32, so they are computed in tiles: by
    TRL's kernel, or on a CPU, under a frozen head without a softcap, by `FrozenHeadLogprobs`.
    """
    if hidden.device.type == "cpu" and head.softcap is None and not head.weight.requires_grad:
        factor = head.scale / temperature
        logprobs, entropies = FrozenHeadLogprobs.apply(hidden, head.weight, head.bias, targets, factor, entropy)
        return logprobs, entropies if entropy else None
    tile = min(4096, head.weight.shape[0])
    outputs = ("entropy",) if entropy else ()
    logprobs, entropies, *_ = ChunkedLogProbFunction.apply(
        hidden, head.weight, head.bias, targets, temperature, tile, head.softcap, head.scale, outputs
    )
    return logprobs, None if entropies is None else entropies.detach()


class FrozenHeadLogprobs(torch.autograd.Function):
    """Log-probabilities and entropies of `token_logprobs` through a head that gets no gradient, for a CPU. Our own.

    With logits z = s (W h + b), s = scale / temperature, and p their softmax, the gradient to h of a target's
    log-probability is s ((1 - p[target]) W[target] - M). M, the sum of p W over all other words, is added up tile by
    tile beside their exponentials, under a running maximum (arXiv 1805.02867), as attention does with W as its keys and
    values. So every logit is computed once, and the backward pass is one product per entry of h. The target is left out
    of the sums: in bfloat16 the gradient of a word with p near 1 would be lost in them.
    """

    TILE = (256, 2048)  # rows, words: 2 MiB of float32, a core's cache

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        factor: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        with_means = entropy or ctx.needs_input_grad[0]
        sums = [
            sums_of_others(rows.to(dtype), weight, bias, words, factor, with_means=with_means)
            for rows, words in zip(
                hidden.split(FrozenHeadLogprobs.TILE[0]), targets.split(FrozenHeadLogprobs.TILE[0]), strict=True
            )
        ]
        log_others, means, mean_biases = (torch.cat(column) for column in zip(*sums, strict=True))
        states, chosen = hidden.float(), weight[targets].float()
        products = (states * chosen).sum(1)
        target_logits = factor * (products if bias is None else products + bias[targets].float())
        log_total = torch.logaddexp(log_others, target_logits)
        share_of_others = torch.exp(log_others - log_total)  # 1 - p[target], exact where p is near 1
        entropies = torch.empty(0)
        if entropy:
            logits_of_others = factor * ((states * means).sum(1) + mean_biases)
            entropies = log_total - target_logits - share_of_others * (logits_of_others - target_logits)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(chosen.sub_(means).mul_(factor * share_of_others[:, None]))
        ctx.dtype = hidden.dtype
        ctx.mark_non_differentiable(entropies)
        return -functional.softplus(log_others - target_logits), entropies

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (direction,) = ctx.saved_tensors
        return (grad_logprobs[:, None] * direction).to(ctx.dtype), *([None] * 5)


def sums_of_others(
    states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, factor: float, *, with_means: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Over all words but each row's target: log of the summed exponentials of its logits, means of W and b under p.

    states: (n, H), in the type of the products; weight: (V, H); factor: of the logits. Returns (n,), (n, H), (n,)
    float32; without `with_means`, (n, 0) in place of the second.
    """
    n, words = len(states), min(FrozenHeadLogprobs.TILE[1], len(weight))
    buffers = torch.empty(n, words, dtype=states.dtype), torch.empty(n, words)
    lowest = torch.finfo(torch.float32).min  # finite: a tile may have no word but the target
    maximum, total, mean_bias = torch.full((n,), lowest), torch.zeros(n), torch.zeros(n)
    mean = torch.zeros(n, weight.shape[1] if with_means else 0)
    for start in range(0, len(weight), words):
        part = weight[start : start + words].to(states.dtype)
        part_bias = None if bias is None else bias[start : start + words].float()
        product, logits = (buffer[:, : len(part)] for buffer in buffers)
        logits.copy_(torch.mm(states, part.T, out=product))
        if part_bias is not None:
            logits += part_bias
        logits *= factor
        inside = ((targets >= start) & (targets < start + len(part))).nonzero()[:, 0]
        logits[inside, targets[inside] - start] = -torch.inf
        larger = torch.maximum(maximum, logits.amax(1))
        shrink, maximum = torch.exp(maximum - larger), larger
        exponentials = logits.sub_(larger[:, None]).exp_()
        total.mul_(shrink).add_(exponentials.sum(1))
        if with_means:
            mean.mul_(shrink[:, None]).add_(product.copy_(exponentials) @ part)
            if part_bias is not None:
                mean_bias.mul_(shrink).add_(exponentials @ part_bias)
    return maximum + total.log(), mean.div_(total[:, None]), mean_bias.div_(total)
