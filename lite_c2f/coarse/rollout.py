"""Sample, score, value: what one PPO update learns from."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lite_c2f.backbone.roles import Roles
from lite_c2f.config.settings import Coarse, resolved
from lite_c2f.data.encode import pad_right
from lite_c2f.errors import NonFiniteError
from lite_c2f.ops import token_logprobs
from lite_c2f.reward.score import Normalizer, score, scored_row
from lite_c2f.runtime import distributed
from lite_c2f.runtime.batch_size import BatchSize, groups, retry_smaller
from lite_c2f.sampling import Responses, Sampling, Stops, sample


class Rollout(NamedTuple):
    """A batch of responses. Rows are prompt + response, right-padded; (B, T) entries speak of token t + 1."""

    tokens: Tensor  # (B, T + 1) int64
    mask: Tensor  # (B, T) bool, True where token t + 1 is the response's
    lengths: list[int]  # tokens of each row, without its padding
    sampled: Tensor  # (B, T) float32, log-probabilities as they were when sampled
    logprobs: Tensor | None  # (B, T) float32, the same by the update's kernels; None where the update computes them
    reference: Tensor  # (B, T) float32, under the base
    values: Tensor  # (B, T) float32, the critic's
    scores: Tensor  # (B,) float32, normalised, not clipped
    responses: Responses

    @property
    def old_logprobs(self) -> Tensor:
        """Under the policy that sampled: by the update's kernels where they were computed already."""
        return self.sampled if self.logprobs is None else self.logprobs

    @property
    def sampling_gap(self) -> float | None:
        """Mean |sampled - recomputed log-probability|, in nats a token; None where the update recomputes them."""
        if self.logprobs is None:
            return None
        return float((self.sampled - self.logprobs)[self.mask].abs().mean())

    @property
    def kl(self) -> float:
        """Mean KL estimate (k1) to the base, in nats a response."""
        gap = torch.where(self.mask, self.old_logprobs - self.reference, 0.0)
        return float(gap.sum(1).mean())


class ResponseEnds(NamedTuple):
    """Token ids that end or pad a row."""

    eos_id: int  # `answer_end`: what the reward model reads behind a response that has ended
    pad_id: int
    stops: Stops | None = None  # texts that end a response as EOS does
    others: tuple[int, ...] = ()  # more end tokens: some models have several

    @property
    def eos_ids(self) -> list[int]:
        return [self.eos_id, *self.others]


class RolloutBatches(NamedTuple):
    """How many rows each part of an update works on at once. They shrink where memory runs out, for the whole run."""

    sampling: BatchSize
    scoring: BatchSize
    update: BatchSize

    @classmethod
    def of(cls, settings: Coarse, tell: Callable[[str], None] | None = None) -> "RolloutBatches":
        """The configured sizes; scoring builds no graph, so twice the update's rows fit."""
        sampling, update = resolved(settings.sampling_batch), resolved(settings.micro_batch)
        return cls(
            BatchSize("coarse.sampling_batch", sampling, tell),
            BatchSize("coarse.micro_batch (scoring)", 2 * update, tell),
            BatchSize("coarse.micro_batch", update, tell),
        )


def needs_old_logprobs(settings: Coarse) -> bool:
    """With one minibatch, every row's first forward in the update is still under the old policy: it serves as both."""
    return settings.minibatches > 1


def collect(
    roles: Roles,
    prompts: Sequence[list[int]],
    settings: Coarse,
    limit: int,
    ends: ResponseEnds,
    normalizer: Normalizer,
    seed: int,
    batches: RolloutBatches | None = None,
    expected: Sequence[float] | None = None,
    on_tokens: Callable[[int], None] | None = None,
) -> Rollout:
    """Sample a response to every prompt, score it, and evaluate it under policy, reference and critic, once each.

    expected: tokens that earlier responses to these prompts had, to sample the longest first. With several processes
    each does a part of the rows, and all have the whole rollout. Raises NonFiniteError for numbers that are not finite.
    """
    batches = batches or RolloutBatches.of(settings)
    mine = distributed.share(range(len(prompts)), [len(prompt) for prompt in prompts] if expected is None else expected)
    responses = say(
        roles, prompts, mine, Sampling(limit, settings.temperature, seed=seed), ends, batches, expected, on_tokens
    )
    rows = [prompt + said for prompt, said in zip(prompts, responses.tokens, strict=True)]
    tokens, real = (part.to(roles.device) for part in pad_right(rows, ends.pad_id))
    mask = real[:, 1:].clone()
    for row, prompt in enumerate(prompts):
        mask[row, : len(prompt) - 1] = False
    lengths = [len(row) for row in rows]
    mine = distributed.share(range(len(prompts)), lengths)
    to_score = [
        scored_row(prompts[row], responses.text_tokens(row), responses.finish[row] != "limit", ends.eos_id)
        for row in mine
    ]
    scores = torch.zeros(len(prompts), device=roles.device)
    raw = score(roles, to_score, pad_id=ends.pad_id, batch=batches.scoring)
    scores[mine] = torch.tensor([normalizer(float(value)) for value in raw], device=roles.device)
    sampled = torch.zeros(mask.shape, device=roles.device)
    sampled[mask] = torch.tensor([value for row in responses.logprobs for value in row], device=roles.device)

    def under(role: str) -> Tensor:
        return evaluate(roles, role, tokens, mask, lengths, mine, settings.temperature, batches.scoring)

    logprobs = under("policy") if needs_old_logprobs(settings) else None
    reference, values = under("reference"), under("critic")
    distributed.add([scores, reference, values, *([] if logprobs is None else [logprobs])])
    rollout = Rollout(tokens, mask, lengths, sampled, logprobs, reference, values, scores, responses)
    check_numbers(rollout)
    return rollout


def say(
    roles: Roles,
    prompts: Sequence[list[int]],
    mine: Sequence[int],
    sampling: Sampling,
    ends: ResponseEnds,
    batches: RolloutBatches,
    expected: Sequence[float] | None,
    on_tokens: Callable[[int], None] | None,
) -> Responses:
    """Responses to all prompts, each said by the process whose row it is. Raises NonFiniteError on all of them."""
    said, problem = None, None
    try:
        with roles.sampling("policy"):
            said = sample(
                roles.model,
                [prompts[row] for row in mine],
                sampling,
                eos_ids=ends.eos_ids,
                stops=ends.stops,
                pad_id=ends.pad_id,
                batch=batches.sampling,
                expected=None if expected is None else [expected[row] for row in mine],
                numbers=mine,
                on_tokens=on_tokens,
            )
    except NonFiniteError as error:
        problem = str(error)
    gathered = distributed.gather((list(mine), said, problem))
    for _, _, found in gathered:
        if found is not None:
            raise NonFiniteError(found)
    by_row = {
        row: parts for rows, part, _ in gathered for row, parts in zip(rows, zip(*part, strict=True), strict=True)
    }
    columns = zip(*(by_row[row] for row in range(len(prompts))), strict=True)
    return Responses(*(list(column) for column in columns))


def check_numbers(rollout: Rollout) -> None:
    """Raise NonFiniteError naming what is not finite in a rollout."""
    parts = {
        "reward": rollout.scores,
        "log-probability": rollout.old_logprobs,
        "reference log-probability": rollout.reference,
        "value": rollout.values,
    }
    fine = torch.stack([part.isfinite().all() for part in parts.values()]).tolist()
    for name, is_fine in zip(parts, fine, strict=True):
        if not is_fine:
            raise NonFiniteError.because(f"a {name} that is not finite", "finite numbers", "lower the learning rates")


def micro_batches(lengths: Sequence[int], rows: Sequence[int], at_once: int) -> Iterator[tuple[list[int], int]]:
    """Rows in groups of like length, each with the width (in tokens) its longest row needs.

    A group holds as many tokens, padding included, as `at_once` rows of the greatest length of all: short rows go
    through many at a time, with no padding beyond the longest of their group.
    """
    budget = at_once * max(lengths)
    order = sorted(rows, key=lambda row: lengths[row])
    for group in groups(order, lengths, budget):
        yield group, lengths[group[-1]]


def evaluate(
    roles: Roles,
    role: str,
    tokens: Tensor,
    mask: Tensor,
    lengths: Sequence[int],
    mine: Sequence[int],
    temperature: float,
    batch: BatchSize,
) -> Tensor:
    """Log-probabilities (policy, reference) or values (critic) of the response tokens: (B, T), 0 elsewhere.

    mine: the rows to do here; those of other processes stay 0.
    """

    @torch.no_grad()
    def work(at_once: int) -> Tensor:
        result = torch.zeros(mask.shape, device=mask.device)
        with roles.use(role):
            for rows, width in micro_batches(lengths, mine, at_once):
                part, kept = tokens[rows, :width], mask[rows, : width - 1]
                if role == "critic":
                    found = roles.value(part)[:, :-1][kept]
                else:
                    found, _ = response_logprobs(roles, part, kept, temperature, entropy=False)
                filled = torch.zeros(kept.shape, device=mask.device)
                filled[kept] = found
                result[rows, : width - 1] = filled
        return result

    return retry_smaller(batch, work)


def response_logprobs(
    roles: Roles, tokens: Tensor, mask: Tensor, temperature: float, *, entropy: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Log-probability and, if asked for, entropy of the response tokens alone, (N,) each, under the active role.

    tokens: (B, T + 1); mask: (B, T). The head is applied at the N kept positions only.
    """
    hidden = roles.hidden(tokens)[:, :-1][mask]
    return token_logprobs(hidden, roles.lm_head, tokens[:, 1:][mask], temperature, entropy=entropy)
