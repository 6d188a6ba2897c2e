"""Rollouts: sampled responses with their rewards, log-probabilities and values, from which one PPO update learns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from lite_c2f.backbone.roles import Roles
from lite_c2f.config.rewards import Watched
from lite_c2f.config.settings import Coarse, resolved
from lite_c2f.data.encode import pad_right
from lite_c2f.data.records import Prompt
from lite_c2f.errors import FollowerError, NonFiniteError
from lite_c2f.ops import token_logprobs
from lite_c2f.reward.calls import RewardError, Scores
from lite_c2f.reward.files import Normalizer
from lite_c2f.reward.functions import RewardInputs
from lite_c2f.reward.score import scored_row
from lite_c2f.reward.sources import Judges, check_scores, inputs_of
from lite_c2f.runtime import distributed
from lite_c2f.runtime.batch_size import BatchSize, groups_by_length, retry_smaller
from lite_c2f.sampling import Responses, Sampling, Stops, sample


class Rollout(NamedTuple):
    """Scored responses. Rows are prompt + response, right-padded; entry t of a (B, T) field belongs to token t + 1."""

    tokens: Tensor  # (B, T + 1) int64
    mask: Tensor  # (B, T) bool, True where token t + 1 is the response's
    lengths: list[int]  # tokens of each row, without its padding
    sampled: Tensor  # (B, T) float32, log-probabilities as the sampler computed them
    logprobs: Tensor  # (B, T) float32, the same recomputed with the update's kernels
    reference: Tensor  # (B, T) float32, under the base
    values: Tensor  # (B, T) float32, the critic's
    scores: Tensor  # (B,) float32, the mix of all sources, not clipped
    responses: Responses
    by_source: Mapping[str, Scores] = MappingProxyType({})  # of each source of reward, before it is scaled

    @property
    def reward(self) -> float:
        """Mean normalised reward."""
        return float(self.scores.mean())

    @property
    def hit_limit(self) -> float:
        """Share of responses that ran into the limit, 0 to 1."""
        return self.responses.finish.count("limit") / len(self.responses.finish)

    @property
    def sampling_gap(self) -> float:
        """Mean |sampled - recomputed log-probability|, in nats per token."""
        return float((self.sampled - self.logprobs)[self.mask].abs().mean())

    @property
    def kl(self) -> float:
        """Mean KL estimate (k1) to the base, in nats per response."""
        gap = torch.where(self.mask, self.logprobs - self.reference, 0.0)
        return float(gap.sum(1).mean())


class ResponseEnds(NamedTuple):
    """Token ids that end or pad a row."""

    eos_id: int  # `answer_end`: what the reward model reads after a response that has ended
    pad_id: int
    stops: Stops | None = None  # texts that end a response as EOS does
    other_eos_ids: tuple[int, ...] = ()  # some models have several end tokens

    @property
    def eos_ids(self) -> list[int]:
        """All token ids that end a response."""
        return [self.eos_id, *self.other_eos_ids]


class RolloutBatches(NamedTuple):
    """Rows that each part of an update computes at once; halved for the rest of the run where memory runs out."""

    sampling: BatchSize
    scoring: BatchSize
    update: BatchSize

    @classmethod
    def of(cls, settings: Coarse, on_message: Callable[[str], None] | None = None) -> "RolloutBatches":
        """The configured sizes; scoring builds no graph, so twice the update's rows fit."""
        sampling, update = resolved(settings.sampling_batch), resolved(settings.micro_batch)
        return cls(
            BatchSize("coarse.sampling_batch", sampling, on_message),
            BatchSize("coarse.micro_batch (scoring)", 2 * update, on_message),
            BatchSize("coarse.micro_batch", update, on_message),
        )


class RolloutContext(NamedTuple):
    """What all rollouts of a run share."""

    roles: Roles
    settings: Coarse
    ends: ResponseEnds
    normalizer: Normalizer
    batches: RolloutBatches
    on_tokens: Callable[[int], None] | None = None  # called while sampling, with the number of new tokens
    judges: Judges | None = None  # None: the reward model alone, with `normalizer`


class RolloutRequest(NamedTuple):
    """Request for the responses of one update, one per prompt."""

    prompts: Sequence[list[int]]  # token ids
    limit: int  # most tokens of a response
    seed: int
    expected: Sequence[float] | None = None  # tokens of earlier responses to these prompts: the longest start first
    rows: Sequence[Prompt] | None = None  # the prompts with the columns of their data, for reward functions
    temperature: float | None = None  # None: that of the rollouts


def collect(context: RolloutContext, request: RolloutRequest) -> Rollout:
    """Sample a response to every prompt and score it: `sample_responses`, then `score_responses`."""
    return score_responses(context, request.prompts, sample_responses(context, request), request.rows)


def sample_responses(context: RolloutContext, request: RolloutRequest) -> Responses:
    """A response of the policy to every prompt. With several processes each samples a part, and all get the whole.

    Raises NonFiniteError, in all processes, for logits that are not finite.
    """
    prompts, expected = request.prompts, request.expected
    temperature = context.settings.temperature if request.temperature is None else request.temperature
    sizes = [len(prompt) for prompt in prompts] if expected is None else expected
    local_rows = distributed.share(range(len(prompts)), sizes)
    responses, problem = None, None
    try:
        with context.roles.sampling("policy"):
            responses = sample(
                context.roles.model,
                [prompts[row] for row in local_rows],
                Sampling(request.limit, temperature, seed=request.seed),
                eos_ids=context.ends.eos_ids,
                stops=context.ends.stops,
                pad_id=context.ends.pad_id,
                batch=context.batches.sampling,
                expected=None if expected is None else [expected[row] for row in local_rows],
                row_ids=local_rows,
                on_tokens=context.on_tokens,
            )
    except NonFiniteError as error:
        problem = str(error)
    gathered = distributed.gather((local_rows, responses, problem))
    for _, _, message in gathered:
        if message is not None:
            raise NonFiniteError(message)
    by_row = {
        row: fields for rows, part, _ in gathered for row, fields in zip(rows, zip(*part, strict=True), strict=True)
    }
    columns = zip(*(by_row[row] for row in range(len(prompts))), strict=True)
    return Responses(*(list(column) for column in columns))


def score_responses(
    context: RolloutContext,
    prompts: Sequence[list[int]],
    responses: Responses,
    data_rows: Sequence[Prompt] | None = None,
) -> Rollout:
    """Rewards of the responses, their log-probabilities under policy and reference, and the critic's values.

    data_rows: the prompts with the columns of their data, for reward functions. With several processes each computes a
    part of the rows, and all get the whole rollout. Raises NonFiniteError for numbers that are not finite, RewardError
    where a function fails; the running statistics of the mix are then as before.
    """
    roles, ends, batches = context.roles, context.ends, context.batches
    rows = [prompt + response for prompt, response in zip(prompts, responses.tokens, strict=True)]
    tokens, real = (part.to(roles.device) for part in pad_right(rows, ends.pad_id))
    mask = real[:, 1:].clone()
    for row, prompt in enumerate(prompts):
        mask[row, : len(prompt) - 1] = False
    lengths = [len(row) for row in rows]
    local_rows = distributed.share(range(len(prompts)), lengths)
    judges = context.judges or Judges.of_reward_model(context.normalizer)
    by_source = source_scores(context, judges, judges.rewards, prompts, responses, data_rows, local_rows)
    scores = torch.tensor(judges.mix.combine(by_source), device=roles.device)
    sampled = torch.zeros(mask.shape, device=roles.device)
    sampled[mask] = torch.tensor([value for row in responses.logprobs for value in row], device=roles.device)
    logprobs, reference, values = (
        role_outputs(roles, role, tokens, mask, lengths, local_rows, context.settings.temperature, batches.scoring)
        for role in ("policy", "reference", "critic")
    )
    distributed.add([reference, values, logprobs])
    rollout = Rollout(tokens, mask, lengths, sampled, logprobs, reference, values, scores, responses, by_source)
    check_numbers(rollout)
    return rollout


def source_scores(
    context: RolloutContext,
    judges: Judges,
    sources: Sequence[Watched],
    prompts: Sequence[list[int]],
    responses: Responses,
    data_rows: Sequence[Prompt] | None,
    local_rows: Sequence[int],
) -> dict[str, Scores]:
    """Scores of every response by each of these sources, before the mix; the same in all processes.

    local_rows: those that this process reads with the reward models. The functions come first: where one fails, no
    time was spent on the models. Raises as `function_scores`, and NonFiniteError naming a source and its row.
    """
    data_rows = data_rows or ()
    texts = [responses.text_tokens(row) for row in range(len(prompts))]
    inputs = inputs_of(judges.tokenizer, data_rows, texts, responses.finish) if data_rows and judges.tokenizer else None
    scores = function_scores(judges, inputs, data_rows, sources)
    ends, device = context.ends, context.roles.device
    to_score = [
        scored_row(prompts[row], texts[row], responses.finish[row] != "limit", ends.eos_id) for row in local_rows
    ]
    models = judges.model_scores(context.roles, to_score, ends.pad_id, context.batches.scoring, sources)
    for name, values in models.items():
        whole = torch.zeros(len(prompts), device=device)
        whole[list(local_rows)] = torch.tensor(values, device=device)
        distributed.add([whole])
        scores[name] = judges.where_applicable(name, whole.tolist(), data_rows)
    check_scores(scores)
    return scores


def function_scores(
    judges: Judges, inputs: RewardInputs | None, prompts: Sequence[Prompt], sources: Sequence[Watched]
) -> dict[str, Scores]:
    """Scores by the functions, which the first process calls, and all get.

    Raises RewardError where one fails, FollowerError in the other processes.
    """
    scores, problem = {}, None
    if distributed.is_first():
        try:
            scores = judges.function_scores(inputs, prompts, sources)
        except RewardError as error:
            problem = str(error)
    scores, problem = distributed.gather((scores, problem))[0]
    if problem is not None:
        raise (RewardError if distributed.is_first() else FollowerError)(problem)
    return scores


def check_numbers(rollout: Rollout) -> None:
    """Raise NonFiniteError naming what is not finite in a rollout."""
    parts = {
        "reward": rollout.scores,
        "log-probability": rollout.logprobs,
        "reference log-probability": rollout.reference,
        "value": rollout.values,
    }
    finite = torch.stack([part.isfinite().all() for part in parts.values()]).tolist()
    for name, is_finite in zip(parts, finite, strict=True):
        if not is_finite:
            raise NonFiniteError.because(f"a {name} that is not finite", "finite numbers", "lower the learning rates")


def micro_batches(lengths: Sequence[int], rows: Sequence[int], at_once: int) -> Iterator[tuple[list[int], int]]:
    """Rows in groups of similar length, each with the width (in tokens) of its longest row.

    A group holds at most as many tokens, padding included, as `at_once` rows of the greatest length of all: the shorter
    the rows, the more of them in a group, and none is padded beyond the longest of its group.
    """
    budget = at_once * max(lengths)
    order = sorted(rows, key=lambda row: lengths[row])
    for group in groups_by_length(order, lengths, budget):
        yield group, lengths[group[-1]]


def role_outputs(
    roles: Roles,
    role: str,
    tokens: Tensor,
    mask: Tensor,
    lengths: Sequence[int],
    rows: Sequence[int],
    temperature: float,
    batch: BatchSize,
) -> Tensor:
    """Log-probabilities (policy, reference) or values (critic) of the response tokens: (B, T), 0 elsewhere.

    rows: those to compute here; the others, of other processes, stay 0.
    """

    @torch.no_grad()
    def compute(at_once: int) -> Tensor:
        outputs = torch.zeros(mask.shape, device=mask.device)
        with roles.use(role):
            for group, width in micro_batches(lengths, rows, at_once):
                group_tokens, group_mask = tokens[group, :width], mask[group, : width - 1]
                if role == "critic":
                    values = roles.value(group_tokens)[:, :-1][group_mask]
                else:
                    values = response_logprobs(roles, group_tokens, group_mask, temperature)
                part = torch.zeros(group_mask.shape, device=mask.device)
                part[group_mask] = values
                outputs[group, : width - 1] = part
        return outputs

    return retry_smaller(batch, compute)


def response_logprobs(roles: Roles, tokens: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (N,) of the response tokens alone, under the active role.

    tokens: (B, T + 1); mask: (B, T). The head is applied at the N positions of the mask only.
    """
    hidden = roles.hidden(tokens)[:, :-1][mask]
    return token_logprobs(hidden, roles.lm_head, tokens[:, 1:][mask], temperature, entropy=False)[0]
