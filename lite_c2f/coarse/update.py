"""One PPO update: optimiser steps of critic and policy over a rollout, a micro-batch of like lengths at a time."""

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
    warm: bool,
    batches: RolloutBatches | None = None,
    scales: Mapping[str, LossScale] | None,
) -> dict[str, float]:
    """`epochs` passes of `minibatches` optimiser steps for the critic and, once warm, the policy.

    A critic that shares the policy's adapter learns in the policy's pass, once that is warm, and alone before.
    Losses are means over the tokens of a minibatch. Returns token-weighted means of the losses, the entropy and the
    clip fraction, and the mean gradient norms. With several processes each does a part of every minibatch, and their
    gradients are summed. Raises NonFiniteError at the first step whose loss or gradient is not finite, without taking
    it. Where the rollout left out the pass under the old policy, the first
    epoch's forward takes its place, and the gap to the sampled log-probabilities is among the figures. scales: of the
    losses of each pass, in float16.
    """
    batches = batches or RolloutBatches.of(settings)
    computed = rollout.logprobs is not None
    old = torch.zeros_like(rollout.sampled) if rollout.logprobs is None else rollout.logprobs
    passes = ("critic",) if not warm else ("policy",) if "critic" in roles.shares else ("critic", "policy")
    totals: Sums = {}
    norms: dict[str, list[Tensor]] = {name: [] for name in ("critic", "policy")}
    counted = 0
    for epoch in range(settings.epochs):
        learns_old = epoch == 0 and not computed
        order = torch.randperm(settings.rollouts, generator=shuffler)
        for chunk in order.chunk(settings.minibatches):
            rows = chunk.tolist()
            tokens = int(rollout.mask[rows].sum())
            counted += tokens
            for name in passes:
                mine = distributed.share(rows, rollout.lengths)
                work = Minibatch(rollout, advantages, old, learns_old, mine, tokens)
                sums = gradients(roles, name, work, settings, batches, scales[name] if scales else None)
                learners = {learner: roles.trainable(learner) for learner in roles.learners(name)}
                add(totals, sums)
                for learner, parameters in learners.items():
                    norms[learner].append(_step(learner, optimizers[learner], parameters, sums, settings.max_grad_norm))
        if learns_old:
            distributed.add([old])  # every process wrote down its own rows
    figures = {name: float(total) / counted for name, total in totals.items()}
    if warm and not computed:
        figures["sampling_gap"] = float((old - rollout.sampled)[rollout.mask].abs().mean())
    if not warm:
        figures |= dict.fromkeys(("policy_loss", "entropy", "clip_fraction"), 0.0)
    return figures | {
        f"{name}_grad_norm": float(torch.stack(found).mean()) if found else 0.0 for name, found in norms.items()
    }


class Minibatch(NamedTuple):
    """What one optimiser step learns from."""

    rollout: Rollout
    advantages: Advantages
    old: Tensor  # (B, T) float32, log-probabilities under the policy that sampled
    learns_old: bool  # this step's forward is still under that policy, and writes them down
    rows: Sequence[int]
    tokens: int  # response tokens of these rows


def gradients(
    roles: Roles,
    name: str,
    minibatch: Minibatch,
    settings: Coarse,
    batches: RolloutBatches,
    scale: LossScale | None = None,
) -> Sums:
    """Gradients of a minibatch's mean loss into the parameters that learn in a role's pass, and the sums for the log.

    Of all processes together. Out of GPU memory, the whole minibatch is done again in smaller micro-batches: half-made
    gradients do not count. In float16 it is done again with a smaller scale where gradients overflow.
    """
    weights = [weight for learner in roles.learners(name) for weight in roles.trainable(learner)]

    def work(at_once: int) -> Sums:
        for parameter in weights:
            parameter.grad = None
        sums: Sums = {}
        factor = 1.0 if scale is None else scale.value
        with roles.use(name, train=True):
            for group, width in micro_batches(minibatch.rollout.lengths, minibatch.rows, at_once):
                loss, found = _loss(roles, name, minibatch, group, width, settings)
                (loss / minibatch.tokens * factor).backward()
                add(sums, found)
        return sums

    while True:
        sums = retry_smaller(batches.update, work)
        grads = [weight.grad for weight in weights if weight.grad is not None]
        distributed.add([*grads, *sums.values()])
        if scale is None or scale.accept(grads, sums):
            return sums


def _loss(
    roles: Roles, name: str, minibatch: Minibatch, rows: list[int], width: int, settings: Coarse
) -> tuple[Tensor, Sums]:
    """Summed loss of a micro-batch under the active role, and its parts."""
    rollout, advantages, old = minibatch.rollout, minibatch.advantages, minibatch.old
    tokens, mask = rollout.tokens[rows, :width], rollout.mask[rows, : width - 1]

    def kept(values: Tensor) -> Tensor:
        return values[rows, : width - 1][mask]

    def of_values(values: Tensor) -> Tensor:
        return value_loss(values, kept(rollout.values), kept(advantages.returns), settings.value_clip).sum()

    if name == "critic":
        loss = of_values(roles.value(tokens)[:, :-1][mask])
        return loss, {"value_loss": loss.detach()}
    hidden = roles.hidden(tokens)[:, :-1][mask]
    logprobs, entropy = token_logprobs(hidden, roles.lm_head, tokens[:, 1:][mask], settings.temperature)
    assert entropy is not None
    if minibatch.learns_old:
        part = torch.zeros(mask.shape, device=mask.device)
        part[mask] = logprobs.detach()
        old[rows, : width - 1] = part
    losses, clipped = policy_loss(logprobs, kept(old), kept(advantages.advantages), settings.clip)
    loss = losses.sum()
    sums = {
        "policy_loss": loss.detach(),
        "entropy": entropy.detach().sum(),
        "clip_fraction": clipped.sum().float(),
    }
    if "critic" in roles.shares:
        of_critic = of_values(roles.heads["critic"](hidden))
        loss = loss + settings.value_coef * of_critic
        sums["value_loss"] = of_critic.detach()
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
