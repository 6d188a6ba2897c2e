"""One PPO update: optimiser steps of critic and policy over a rollout, a micro-batch of like lengths at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lite_c2f.backbone.roles import Roles
from lite_c2f.batches import fitting
from lite_c2f.coarse.advantage import Advantages
from lite_c2f.coarse.loss import policy_loss, value_loss
from lite_c2f.coarse.rollout import Batches, Rollout, micro_batches, response_logprobs
from lite_c2f.config import Coarse

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
    batches: Batches | None = None,
) -> dict[str, float]:
    """`epochs` passes of `minibatches` optimiser steps for the critic and, once warm, the policy.

    Losses are means over the tokens of a minibatch. Returns token-weighted means of the losses, the entropy and the
    clip fraction, and the mean gradient norms; with a single step also the sampling gap, measured on its forward.
    """
    batches = batches or Batches.of(settings)
    names = ("critic", "policy") if warm else ("critic",)
    totals: Sums = {}
    norms: dict[str, list[Tensor]] = {name: [] for name in ("critic", "policy")}
    counted = 0
    for _ in range(settings.epochs):
        order = torch.randperm(settings.rollouts, generator=shuffler)
        for chunk in order.chunk(settings.minibatches):
            rows = chunk.tolist()
            tokens = int(rollout.mask[rows].sum())
            counted += tokens
            for name in names:
                add(totals, gradients(roles, name, rollout, advantages, rows, tokens, settings, batches))
                norms[name].append(_step(optimizers[name], roles.trainable(name), settings.max_grad_norm))
    figures = {name: float(total) / counted for name, total in totals.items()}
    if not warm:
        figures |= dict.fromkeys(("policy_loss", "entropy", "clip_fraction"), 0.0)
    return figures | {
        f"{name}_grad_norm": float(torch.stack(found).mean()) if found else 0.0 for name, found in norms.items()
    }


def gradients(
    roles: Roles,
    name: str,
    rollout: Rollout,
    advantages: Advantages,
    rows: Sequence[int],
    tokens: int,
    settings: Coarse,
    batches: Batches,
) -> Sums:
    """Gradients of a minibatch's mean loss into one role's parameters, and the sums for the log.

    Out of GPU memory, the whole minibatch is done again in smaller micro-batches: half-made gradients do not count.
    """

    def work(at_once: int) -> Sums:
        for parameter in roles.trainable(name):
            parameter.grad = None
        sums: Sums = {}
        with roles.use(name, train=True):
            for group, width in micro_batches(rollout.lengths, rows, at_once):
                loss, found = _loss(roles, name, rollout, advantages, group, width, settings)
                (loss / tokens).backward()
                add(sums, found)
        return sums

    return fitting(batches.update, work)


def _loss(
    roles: Roles,
    name: str,
    rollout: Rollout,
    advantages: Advantages,
    rows: list[int],
    width: int,
    settings: Coarse,
) -> tuple[Tensor, Sums]:
    """Summed loss of a micro-batch under the active role, and its parts."""
    tokens, mask = rollout.tokens[rows, :width], rollout.mask[rows, : width - 1]

    def kept(values: Tensor) -> Tensor:
        return values[rows, : width - 1][mask]

    if name == "critic":
        values = roles.value(tokens)[:, :-1][mask]
        loss = value_loss(values, kept(rollout.values), kept(advantages.returns), settings.value_clip).sum()
        return loss, {"value_loss": loss.detach()}
    logprobs, entropy = response_logprobs(roles, tokens, mask, settings.temperature)
    assert entropy is not None
    # a single step an update: the old policy is this one, and the ratio is 1
    old = logprobs.detach() if rollout.logprobs is None else kept(rollout.logprobs)
    losses, clipped = policy_loss(logprobs, old, kept(advantages.advantages), settings.clip)
    loss = losses.sum()
    found = {"policy_loss": loss.detach(), "entropy": entropy.detach().sum(), "clip_fraction": clipped.sum()}
    if rollout.logprobs is None:
        found["sampling_gap"] = (old - kept(rollout.sampled)).abs().sum()
    return loss, found


def add(totals: Sums, more: Sums) -> None:
    """Add sums by name."""
    for name, value in more.items():
        totals[name] = totals[name] + value if name in totals else value


def _step(optimizer: torch.optim.Optimizer, parameters: list, max_norm: float) -> Tensor:
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
