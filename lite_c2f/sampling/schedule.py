"""Schedule of the sampler: which prompt gets which slot, and when; free slots are refilled from the queue."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from lite_c2f.backbone.context import context_length
from lite_c2f.backbone.lm_head import LanguageHead
from lite_c2f.errors import ConfigError, ModelError, NonFiniteError
from lite_c2f.runtime.batch_size import BatchSize, retry_smaller
from lite_c2f.sampling.cache import FULL, SLIDING
from lite_c2f.sampling.draw import Sampling
from lite_c2f.sampling.slots import ResponseBuffer, SlotJob, SlotRow, Slots, SlotSnapshot
from lite_c2f.sampling.stops import Stops

REFILL_AT = (
    1 / 8
)  # share of the slots that must be free before a prefill: one of few prompts takes as long as one of many
SHRINK_AT = 0.75  # with an empty queue, idle slots are released once at most this share is active


class Responses(NamedTuple):
    """Sampled responses, in the order of the prompts."""

    tokens: list[list[int]]  # response tokens, the ending (EOS or stop sequence) included
    logprobs: list[list[float]]  # log-probability of each under the sampling distribution, in nats
    finish: list[str]  # "eos" | "stop" | "limit"
    # tokens of the text without the ending; encoded again where one token holds text and stop text
    text: list[list[int]]
    ending: list[int]  # how many of the last tokens are the ending, or hold something of it: 1 for EOS, 0 at the limit

    def text_tokens(self, row: int) -> list[int]:
        """The response without its ending."""
        return self.text[row]


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    eos_ids: Sequence[int],
    stops: Stops | None = None,
    pad_id: int,
    batch: int | BatchSize = 64,
    limits: Sequence[int] | None = None,
    expected: Sequence[float] | None = None,
    row_ids: Sequence[int] | None = None,
    on_tokens: Callable[[int], None] | None = None,
) -> Responses:
    """Answer every prompt, at most `batch` of them at a time; a slot whose response has ended takes the next prompt.

    model: a causal language model in eval mode (adapters as they are active); prompts: token ids of any length.
    stops: texts that end a response as EOS does.
    limits: most tokens of each response, where they differ (default: sampling.limit). expected: estimated tokens of
    each response, where known: the longest start first, so that no long one runs alone at the end.
    row_ids: select each row's random numbers, with the seed (default: its index): a prompt gets the same response in a
    part of the prompts as among all of them.
    on_tokens(n) is called while sampling with the number of new tokens. A response depends on its own prompt and
    random numbers: neither on `batch` nor on its neighbours, up to the rounding of differently shaped products.
    Out of GPU memory, unfinished rows are sampled again in half as many slots.

    Raises ConfigError for a limit below 1 or a prompt that leaves no room in the context;
    NonFiniteError for logits that are not finite, naming row and step; MemoryFullError when not even one row fits.

    >>> sample(model, [[1, 5, 9]], Sampling(limit=20), eos_ids=[2], pad_id=0).finish
    ['eos']
    """
    if not prompts:
        return Responses([], [], [], [], [])
    size = batch if isinstance(batch, BatchSize) else BatchSize("batch", batch)
    size.size = min(size.size, len(prompts))  # halving must make a difference
    limits, row_ids = limits or [sampling.limit] * len(prompts), row_ids or range(len(prompts))
    job = SlotJob(prompts, limits, sampling, eos_ids, stops, pad_id, row_ids)
    _check(model, job, size.size)
    if expected is not None and len(expected) != len(prompts):
        raise ConfigError.because(
            f"{len(expected)} expected lengths for {len(prompts)} prompts", "one each", "give as many as prompts"
        )
    order = list(range(len(prompts)))
    if expected is not None:
        order.sort(key=lambda row: -expected[row])
    done: dict[int, SlotRow] = {}
    retry_smaller(
        size,
        lambda at_once: _answer_rows(model, job, [row for row in order if row not in done], at_once, done, on_tokens),
    )
    rows = [done[row] for row in range(len(prompts))]
    return Responses(
        [row.tokens for row in rows],
        [row.logprobs for row in rows],
        [row.finish for row in rows],
        [row.text for row in rows],
        [row.ending for row in rows],
    )


@torch.no_grad()
def _answer_rows(
    model: Any,
    job: SlotJob,
    rows: Sequence[int],
    at_once: int,
    done: dict[int, SlotRow],
    on_tokens: Callable[[int], None] | None,
) -> None:
    """Answer these rows of the job, `at_once` at a time; finished rows go into `done`, also after an error."""
    decoder, head = decoder_and_head(model)
    device = next(decoder.parameters()).device
    buffer = ResponseBuffer(job, rows, device)
    length = max(len(job.prompts[row]) + job.limits[row] for row in rows)
    length = -(-length // 8) * 8  # attention kernels need aligned masks
    slots = Slots(decoder, head, job, buffer, min(at_once, len(rows)), length)
    queue = deque(range(len(rows)))
    steps = steps_per_snapshot(device)

    def read_slots() -> SlotSnapshot:
        snapshot = slots.snapshot()
        if snapshot.non_finite is not None:
            raise NonFiniteError.because(
                f"logits of row {buffer.rows[snapshot.non_finite[0]]} at step {snapshot.non_finite[1]} are not finite",
                "finite logits",
                "lower coarse.lr, or check the model's weights",
            )
        if on_tokens and snapshot.drawn:
            on_tokens(snapshot.drawn)
        return snapshot

    try:
        snapshot = slots.snapshot()
        while queue or snapshot.active:
            # 1. fill free slots once there are enough of them; with an empty queue, release them
            free = sorted({*range(slots.size)} - {*snapshot.active})
            if queue and (not snapshot.active or len(free) >= max(1, REFILL_AT * slots.size)):
                count = min(len(free), len(queue))
                slots.start(free[:count], [queue.popleft() for _ in range(count)])
                snapshot = read_slots()
            elif not queue and len(snapshot.active) <= SHRINK_AT * slots.size and _shrink(slots, snapshot.active, free):
                snapshot = read_slots()
            # 2. decode a few steps, then see which responses have ended
            if snapshot.active:
                slots.advance(steps, snapshot.deepest)
                snapshot = read_slots()
    finally:
        done.update(buffer.finished())


def _shrink(slots: Slots, active: Sequence[int], free: Sequence[int]) -> bool:
    """Release idle slots: all of them on a CPU; on a GPU only by halves, since each size needs its own CUDA graphs.

    Returns whether there are fewer slots now.
    """
    size = len(active)
    if slots.graphs is not None:
        size = slots.size
        while size // 2 >= max(len(active), 1):
            size //= 2
    if size == slots.size:
        return False
    slots.select([*active, *free][:size])
    return True


def steps_per_snapshot(device: torch.device) -> int:
    """Steps between two snapshots: on a GPU a snapshot waits for the device, on a CPU it costs nothing."""
    return 8 if device.type == "cuda" else 1


def decoder_and_head(model: Any) -> tuple[Any, LanguageHead]:
    """The transformer and the language-model head of a causal language model, with or without adapters."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.get_decoder(), LanguageHead.of(inner)


def _check(model: Any, job: SlotJob, slots: int) -> None:
    sampling = job.sampling
    ranges = {
        "temperature": (
            sampling.temperature == 0 or 1e-3 <= sampling.temperature < math.inf,
            "0 (greedy), or from 0.001",
        ),
        "top_k": (sampling.top_k >= 0, "0 (off) or more"),
        "top_p": (0 <= sampling.top_p <= 1, "0 to 1"),
    }
    for name, (valid, expected) in ranges.items():
        if not valid:
            raise ConfigError.because(f"{name} {getattr(sampling, name)}", expected, f"correct {name}")
    if slots < 1:
        raise ConfigError.because(f"a sampling batch of {slots}", "at least 1", "raise coarse.sampling_batch")
    if min(job.limits, default=1) < 1:
        raise ConfigError.because(
            f"response limit {min(job.limits)}", "at least 1 token", "raise coarse.length.start or the limit"
        )
    if not all(job.prompts):
        raise ConfigError.because("an empty prompt", "at least one token per prompt", "remove empty prompts")
    if len(job.limits) != len(job.prompts):
        raise ConfigError.because(
            f"{len(job.limits)} limits for {len(job.prompts)} prompts", "one each", "give as many limits as prompts"
        )
    _check_model(model)
    context = context_length(model.config)
    needed = [len(prompt) + limit for prompt, limit in zip(job.prompts, job.limits, strict=True)]
    if context is not None and max(needed) > context:
        row = needed.index(max(needed))
        raise ConfigError.because(
            f"row {row}: prompt of {len(job.prompts[row])} + response limit {job.limits[row]} tokens",
            f"at most the model's context of {context}",
            "lower data.max_prompt_tokens or the limit",
        )


def _check_model(model: Any) -> None:
    """Raise ModelError for a model in training mode, or with layers or an attention that `SlotCache` does not serve."""
    if model.training:
        raise ModelError.because("a model in training mode", "one in eval mode", "call model.eval() first")
    kinds = set(getattr(model.config, "layer_types", None) or ())
    if kinds - {FULL, SLIDING}:
        raise ModelError.because(
            f"a model with layers of {', '.join(sorted(kinds))}",
            f"{FULL} and {SLIDING}",
            "use a model of a family in docs/models.md",
        )
    attention = getattr(model.config, "_attn_implementation", "sdpa")
    if attention not in ("sdpa", "eager"):
        raise ModelError.because(
            f"a model with attention '{attention}'", "sdpa", 'load it with attn_implementation="sdpa"'
        )
