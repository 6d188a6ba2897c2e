"""PPO update: optimiser steps of critic and policy over a rollout, in micro-batches of rows of similar length."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lite_c2f.backbone.roles import Roles
from lite_c2f.coarse.advantage import Advantages
from lite_c2f.coarse.loss import policy_loss, value_loss
from lite_c2f.coarse.loss_scale import LossScale
from lite_c2f.coarse.rollout import Rollout, RolloutBatches, micro_batches
from lite_c2f.config.settings import Coarse
from lite_c2f.errors import NonFiniteError
from lite_c2f.ops import token_logprobs
from lite_c2f.runtime import distributed
from lite_c2f.runtime.batch_size import retry_smaller

Sums = dict[str, Tensor]  # over response tokens, on the device: reading them waits for it, so they are read once


def update(
    roles: Roles,
    optimizers: dict[str, torch.optim.Optimizer],
    rollout: Rollout,
    advantages: Advantages,
    settings: Coarse,
    shuffler: torch.Generator,
    *,
    train_policy: bool,
    batches: RolloutBatches | None = None,
    loss_scales: Mapping[str, LossScale] | None = None,
) -> dict[str, float]:
    """`epochs` passes of `minibatches` optimiser steps for the critic and, with `train_policy`, the policy.

    A critic that shares the policy's adapter trains in the policy's pass with `train_policy`, and alone without.
    Losses are means over the tokens of a minibatch. Returns token-weighted means of the losses, the entropy and the
    clip fraction, and the mean gradient norms. With several processes each does a part of every minibatch, and their
    gradients are summed. loss_scales: one per pass, for float16. Raises NonFiniteError at the first step whose loss or
    gradient is not finite, without taking it.
    """
    batches = batches or RolloutBatches.of(settings)
    passes = ("critic",) if not train_policy else ("policy",) if "critic" in roles.shares else ("critic", "policy")
    totals: Sums = {}
    norms: dict[str, list[Tensor]] = {name: [] for name in ("critic", "policy")}
    counted = 0
    for _ in range(settings.epochs):
        order = torch.randperm(settings.rollouts, generator=shuffler)
        for chunk in order.chunk(settings.minibatches):
            rows = chunk.tolist()
            tokens = int(rollout.mask[rows].sum())
            counted += tokens
            for name in passes:
                minibatch = Minibatch(rollout, advantages, distributed.share(rows, rollout.lengths), tokens)
                sums = gradients(roles, name, minibatch, settings, batches, loss_scales[name] if loss_scales else None)
                learners = {learner: roles.trainable(learner) for learner in roles.learners(name)}
                add(totals, sums)
                for learner, parameters in learners.items():
                    norms[learner].append(_step(learner, optimizers[learner], parameters, sums, settings.max_grad_norm))
    means = {name: float(total) / counted for name, total in totals.items()}
    if not train_policy:
        means |= dict.fromkeys(("policy_loss", "entropy", "clip_fraction"), 0.0)
    return means | {
        f"{name}_grad_norm": float(torch.stack(values).mean()) if values else 0.0 for name, values in norms.items()
    }


class Minibatch(NamedTuple):
    """Rows of the rollout for one optimiser step."""

    rollout: Rollout
    advantages: Advantages
    rows: Sequence[int]  # of the rollout, those of this process
    tokens: int  # response tokens of the whole minibatch


def gradients(
    roles: Roles,
    name: str,
    minibatch: Minibatch,
    settings: Coarse,
    batches: RolloutBatches,
    scale: LossScale | None = None,
) -> Sums:
    """Gradients of a minibatch's mean loss into the parameters that learn in a role's pass, and the sums for the log.

    Summed over all processes. Out of GPU memory, the whole minibatch is computed again in smaller micro-batches,
    from zero gradients. In float16 it is computed again with a smaller scale where gradients overflow.
    """
    weights = [weight for learner in roles.learners(name) for weight in roles.trainable(learner)]

    def compute(at_once: int) -> Sums:
        for parameter in weights:
            parameter.grad = None
        sums: Sums = {}
        factor = 1.0 if scale is None else scale.value
        with roles.use(name, train=True):
            for group, width in micro_batches(minibatch.rollout.lengths, minibatch.rows, at_once):
                loss, parts = _loss(roles, name, minibatch, group, width, settings)
                (loss / minibatch.tokens * factor).backward()
                add(sums, parts)
        return sums

    while True:
        sums = retry_smaller(batches.update, compute)
        grads = [weight.grad for weight in weights if weight.grad is not None]
        distributed.add([*grads, *sums.values()])
        if scale is None or scale.accept(grads, sums):
            return sums


def _loss(
    roles: Roles, name: str, minibatch: Minibatch, rows: list[int], width: int, settings: Coarse
) -> tuple[Tensor, Sums]:
    """Summed loss of a micro-batch under the active role, and its parts."""
    rollout, advantages = minibatch.rollout, minibatch.advantages
    tokens, mask = rollout.tokens[rows, :width], rollout.mask[rows, : width - 1]

    def masked(values: Tensor) -> Tensor:
        return values[rows, : width - 1][mask]

    def critic_loss(values: Tensor) -> Tensor:
        return value_loss(values, masked(rollout.values), masked(advantages.returns), settings.value_clip).sum()

    if name == "critic":
        loss = critic_loss(roles.value(tokens)[:, :-1][mask])
        return loss, {"value_loss": loss.detach()}
    hidden = roles.hidden(tokens)[:, :-1][mask]
    logprobs, entropy = token_logprobs(hidden, roles.lm_head, tokens[:, 1:][mask], settings.temperature)
    assert entropy is not None
    losses, clipped = policy_loss(logprobs, masked(rollout.logprobs), masked(advantages.advantages), settings.clip)
    loss = losses.sum()
    sums = {
        "policy_loss": loss.detach(),
        "entropy": entropy.detach().sum(),
        "clip_fraction": clipped.sum().float(),
    }
    if "critic" in roles.shares:
        shared_loss = critic_loss(roles.heads["critic"](hidden))
        loss = loss + settings.value_coef * shared_loss
        sums["value_loss"] = shared_loss.detach()
    return loss, sums


def add(totals: Sums, more: Sums) -> None:
    """Add sums by name."""
    for name, value in more.items():
        totals[name] = totals[name] + value if name in totals else value


def _step(name: str, optimizer: torch.optim.Optimizer, parameters: list, sums: Sums, max_norm: float) -> Tensor:
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    if not bool(torch.stack([norm, *sums.values()]).isfinite().all()):
        optimizer.zero_grad(set_to_none=True)
        raise NonFiniteError.because(
            f"a loss or a gradient of the {name} that is not finite", "finite numbers", "lower the learning rates"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
