"""Batched sampling: responses to many prompts at once, each under one limit, ended by EOS or a stop sequence.

Rows that have ended leave the batch once enough of them have, so that left-over rows do not pay for finished ones.
Every row draws from random numbers of its own: what a row says does not depend on when its neighbours end.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from lite_c2f.data.encode import pad_left
from lite_c2f.errors import ConfigError, ModelError

FINISH = ("limit", "eos", "stop")
SHRINK_AT = 0.75  # rows leave once at most this share is still going


class Sampling(NamedTuple):
    """How tokens are drawn."""

    limit: int  # most tokens of a response, the ending included
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    seed: int = 0


class Responses(NamedTuple):
    """What was said, in the order of the prompts."""

    tokens: list[list[int]]  # response tokens, the ending (EOS or stop sequence) included
    logprobs: list[list[float]]  # log-probability of each under the sampling distribution, in nats
    finish: list[str]  # "eos" | "stop" | "limit"
    ending: list[int]  # how many of the last tokens are the ending: 1 for EOS, the marker's length, or 0

    def text_tokens(self, row: int) -> list[int]:
        """The response without its ending."""
        tokens = self.tokens[row]
        return tokens[: len(tokens) - self.ending[row]]


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    eos_ids: Sequence[int],
    stop_ids: Sequence[Sequence[int]] = (),
    pad_id: int,
    batch: int = 64,
    tick: Callable[[int], None] | None = None,
) -> Responses:
    """Answer every prompt, `batch` rows at a time.

    model: a causal language model in eval mode (adapters as they are active); prompts: token ids, ending rows of any
    length. tick(n) is called after every step with the number of new tokens. Raises ConfigError for a limit below 1
    or a prompt that leaves no room in the context, ModelError for logits that are not finite.
    """
    _check(model, prompts, sampling)
    rows: list[tuple[list[int], list[float], str, int]] = []
    for first in range(0, len(prompts), batch):
        chunk = prompts[first : first + batch]
        uniforms = torch.stack(
            [
                torch.rand(sampling.limit, generator=torch.Generator().manual_seed(_row_seed(sampling.seed, first + i)))
                for i in range(len(chunk))
            ]
        )
        rows += _sample_batch(
            model, chunk, sampling, uniforms, list(eos_ids), stop_ids, pad_id, tick or (lambda _: None)
        )
    tokens, logprobs, finish, ending = zip(*rows, strict=True)
    return Responses(list(tokens), list(logprobs), list(finish), list(ending))


def _row_seed(seed: int, row: int) -> int:
    """One generator a row; the multiplier only keeps neighbouring seeds apart."""
    return (seed * 0x9E3779B97F4A7C15 + row * 0xBF58476D1CE4E5B9) % (1 << 63)


def _check(model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
    if sampling.limit < 1:
        raise ConfigError.because(f"response limit {sampling.limit}", "at least 1 token", "raise coarse.length.start")
    if not prompts or not all(prompts):
        raise ConfigError.because("an empty prompt", "at least one token a prompt", "remove empty prompts")
    context = getattr(model.config, "max_position_embeddings", None)
    longest = max(len(prompt) for prompt in prompts)
    if context is not None and longest + sampling.limit > context:
        raise ConfigError.because(
            f"prompt of {longest} + response limit {sampling.limit} tokens",
            f"at most the model's context of {context}",
            "lower data.max_prompt_tokens or the limit",
        )


@torch.no_grad()
def _sample_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    uniforms: Tensor,
    eos_ids: list[int],
    stop_ids: Sequence[Sequence[int]],
    pad_id: int,
    tick: Callable[[int], None],
) -> list[tuple[list[int], list[float], str, int]]:
    """One batch. Tensors of the loop keep only the rows still going; `alive` maps them to prompts."""
    device = next(model.parameters()).device
    inputs, mask = (part.to(device) for part in pad_left([list(prompt) for prompt in prompts], pad_id))
    uniforms = uniforms.to(device)
    eos = torch.tensor(eos_ids, device=device)
    stops = [torch.tensor(list(stop), device=device) for stop in stop_ids]
    cache = DynamicCache(config=model.config)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    alive = torch.arange(len(prompts), device=device)
    going = torch.ones(len(prompts), dtype=torch.bool, device=device)
    said = torch.full((len(prompts), sampling.limit), pad_id, device=device)
    logprobs = torch.zeros((len(prompts), sampling.limit), device=device)
    lengths = torch.zeros(len(prompts), dtype=torch.long, device=device)
    finish = torch.zeros(len(prompts), dtype=torch.long, device=device)  # index into FINISH
    ending = torch.zeros(len(prompts), dtype=torch.long, device=device)

    for step in range(sampling.limit):
        # 1. one forward over the rows that are left
        output = model(
            input_ids=inputs,
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        # 2. draw a token for each
        drawn, logprob = draw(output.logits[:, -1].float(), uniforms[alive, step], sampling)
        if not bool(torch.isfinite(logprob[going]).all()):
            row = int(alive[going][~torch.isfinite(logprob[going])][0])
            raise ModelError.because(
                f"logits of row {row} at step {step} are not finite", "finite logits", "lower coarse.lr"
            )
        said[alive[going], step] = drawn[going]
        logprobs[alive[going], step] = logprob[going]
        lengths[alive[going]] += 1
        # 3. see who has ended
        ended = torch.isin(drawn, eos) & going
        finish[alive[ended]], ending[alive[ended]] = 1, 1
        for stop in stops:
            if step + 1 >= len(stop):
                matched = (said[alive, step + 1 - len(stop) : step + 1] == stop).all(1) & going & ~ended
                finish[alive[matched]], ending[alive[matched]] = 2, len(stop)
                ended = ended | matched
        tick(int(going.sum()))
        going = going & ~ended
        left = int(going.sum())
        if left == 0:
            break
        # 4. drop ended rows once there are enough of them
        inputs, positions = drawn[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        if left <= SHRINK_AT * len(alive):
            cache.batch_select_indices(going.nonzero().squeeze(1))
            alive, inputs, positions, mask = alive[going], inputs[going], positions[going], mask[going]
            going = going[going]

    counts = lengths.tolist()
    return [
        (tokens[:count], values[:count], FINISH[how], cut)
        for tokens, values, count, how, cut in zip(
            said.tolist(), logprobs.tolist(), counts, finish.tolist(), ending.tolist(), strict=True
        )
    ]


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
    threshold = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]  # float32 sums end a little beside 1
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
