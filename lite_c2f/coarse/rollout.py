"""Sample, score, value: what one PPO update learns from."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lite_c2f.backbone.roles import Roles
from lite_c2f.config import Coarse
from lite_c2f.data.encode import pad_right
from lite_c2f.ops import token_logprobs
from lite_c2f.reward.score import Normalizer, score, scored_row
from lite_c2f.sampling import Responses, Sampling, sample


class Rollout(NamedTuple):
    """A batch of responses. Rows are prompt + response, right-padded; (B, T) entries speak of token t + 1."""

    tokens: Tensor  # (B, T + 1) int64
    mask: Tensor  # (B, T) bool, True where token t + 1 is the response's
    logprobs: Tensor  # (B, T) float32, under the policy that sampled, by the update's kernels
    reference: Tensor  # (B, T) float32, under the base
    values: Tensor  # (B, T) float32, the critic's
    scores: Tensor  # (B,) float32, normalised, not clipped
    responses: Responses
    sampling_gap: float  # mean |sampled - recomputed log-probability|, nats a token

    @property
    def kl(self) -> float:
        """Mean KL estimate (k1) to the base, in nats a response."""
        gap = torch.where(self.mask, self.logprobs - self.reference, 0.0)
        return float(gap.sum(1).mean())


class Ends(NamedTuple):
    """Token ids that end or pad a row."""

    eos_id: int
    pad_id: int
    stop_ids: list[list[int]]


def collect(
    roles: Roles,
    prompts: Sequence[list[int]],
    settings: Coarse,
    limit: int,
    ends: Ends,
    normalizer: Normalizer,
    seed: int,
    tick: Callable[[int], None] | None = None,
) -> Rollout:
    """Sample a response to every prompt, score it, and evaluate it under policy, reference and critic."""
    with roles.use("policy"):
        responses = sample(
            roles.model,
            prompts,
            Sampling(limit, settings.temperature, seed=seed),
            eos_ids=[ends.eos_id],
            stop_ids=ends.stop_ids,
            pad_id=ends.pad_id,
            batch=settings.sampling_batch,
            tick=tick,
        )
    rows = [prompt + said for prompt, said in zip(prompts, responses.tokens, strict=True)]
    tokens, real = (part.to(roles.device) for part in pad_right(rows, ends.pad_id))
    mask = real[:, 1:].clone()
    for row, prompt in enumerate(prompts):
        mask[row, : len(prompt) - 1] = False
    ended = [how != "limit" for how in responses.finish]
    to_score = [
        scored_row(prompt, responses.text_tokens(row), ended[row], ends.eos_id) for row, prompt in enumerate(prompts)
    ]
    raw = score(roles, to_score, pad_id=ends.pad_id, batch=2 * settings.micro_batch)
    logprobs = evaluate(roles, "policy", tokens, mask, settings)
    sampled = torch.zeros_like(logprobs)
    sampled[mask] = torch.tensor([value for row in responses.logprobs for value in row], device=roles.device)
    return Rollout(
        tokens,
        mask,
        logprobs,
        evaluate(roles, "reference", tokens, mask, settings),
        evaluate(roles, "critic", tokens, mask, settings),
        torch.tensor([normalizer(float(value)) for value in raw], device=roles.device),
        responses,
        float((sampled - logprobs).abs().sum() / mask.sum()),
    )


def micro_batches(mask: Tensor, rows: Tensor, size: int) -> Iterator[tuple[Tensor, int]]:
    """Rows in groups of `size` of like length, each with the width (in tokens) its longest row needs."""
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    lengths = (mask[rows] * positions).max(1).values + 1
    for group in torch.argsort(lengths, stable=True).split(size):
        yield rows[group], int(lengths[group].max())


@torch.no_grad()
def evaluate(roles: Roles, role: str, tokens: Tensor, mask: Tensor, settings: Coarse) -> Tensor:
    """Log-probabilities (policy, reference) or values (critic) of the response tokens: (B, T), 0 elsewhere."""
    result = torch.zeros(mask.shape, device=mask.device)
    with roles.use(role):
        for rows, width in micro_batches(
            mask, torch.arange(len(tokens), device=tokens.device), 2 * settings.micro_batch
        ):
            part, kept = tokens[rows, :width], mask[rows, : width - 1]
            if role == "critic":
                found = roles.value(part)[:, :-1][kept]
            else:
                found, _ = response_logprobs(roles, part, kept, settings.temperature)
            filled = torch.zeros(kept.shape, device=mask.device)
            filled[kept] = found
            result[rows, : width - 1] = filled
    return result


def response_logprobs(roles: Roles, tokens: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of the response tokens alone, (N,) each, under the active role.

    tokens: (B, T + 1); mask: (B, T). The head is applied at the N kept positions only.
    """
    hidden = roles.hidden(tokens)[:, :-1][mask]
    return token_logprobs(hidden, roles.lm_head, tokens[:, 1:][mask], temperature)
