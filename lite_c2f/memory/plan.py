"""The planner: which batches fit the card, which limit fits, and what to change where a run does not fit."""

from collections.abc import Callable
from typing import NamedTuple

from lite_c2f.config import Config
from lite_c2f.errors import ConfigError
from lite_c2f.memory.sizes import GIBIBYTE, Bytes, Shape, model_shape
from lite_c2f.memory.stages import Need, comparison, last_limit, reward, sampling, scoring, update

TOKENS_AT_ONCE = 16384  # more tokens in a micro-batch do not make an update faster, they only take memory
CPU_TOKENS_AT_ONCE = 5376
ROWS_AT_ONCE = 64  # answers of the comparison side by side
HUB_BYTES = 2  # a weight as it is downloaded


class Batches(NamedTuple):
    """What `auto` stands for on this card."""

    reward_micro_batch: int
    sampling_batch: int
    micro_batch: int
    evaluation_batch: int


class Plan(NamedTuple):
    """What a run needs, and what it gets."""

    shape: Shape
    source: str  # where the shape came from
    vram_gib: float | None
    batches: Batches
    needs: list[Need]  # at the largest limit
    growth: list[tuple[int, Need, Need]]  # limit, and what sampling and update take under it
    largest_limit: int | None  # the largest response limit that fits with these batches; None without a card
    refusals: list[str]  # one line for each stage that does not fit
    disk: dict[str, float]  # bytes

    @property
    def fits(self) -> bool | None:
        """None where no card is named."""
        return None if self.vram_gib is None else not self.refusals


def usable(vram_gib: float) -> float:
    """Bytes a run may allocate of a card: the CUDA context takes about 1 GiB, fragments of blocks some 4%.

    >>> round(usable(24) / 2**30, 1)
    22.0
    """
    return (vram_gib - 1 - 0.04 * vram_gib) * GIBIBYTE


def make_plan(config: Config, vram_gib: float | None = None, *, model: str | None = None) -> Plan:
    """Plan a run for a card of so many GiB (default: `hardware.vram_gib`; without either, only count).

    model: folder or name of the base, where it is not `model.base`. Nothing is loaded or downloaded. Raises ModelError
    for a folder without configuration.
    """
    vram = vram_gib or config.hardware.vram_gib
    shape, source = model_shape(model or config.model.base)
    on_gpu = vram is not None and config.model.base != "toy"
    dtype = {"float32": 4, "auto": 2 if on_gpu else 4}.get(config.model.compute_dtype, 2)
    checkpointing = config.hardware.gradient_checkpointing
    sizes = Bytes(
        shape,
        config.lora.r,
        dtype,
        config.model.quantization == "nf4",
        on_gpu if checkpointing == "auto" else bool(checkpointing),
        on_gpu,
    )
    room = usable(vram) if vram is not None else None
    batches = choose(config, sizes, room)
    limit = last_limit(config)
    needs = stages(config, sizes, batches, limit)
    return Plan(
        shape,
        source,
        vram,
        batches,
        needs,
        [
            (
                each,
                sampling(config, sizes, batches.sampling_batch, each),
                update(config, sizes, batches.micro_batch, each),
            )
            for each in growth(config)
        ],
        None if room is None else largest_limit(config, sizes, batches, room),
        [] if room is None else [line for need in needs if (line := refusal(config, sizes, batches, need, room))],
        disk(config, shape, sizes),
    )


def settle(config: Config, plan: Plan) -> Config:
    """The configuration with every `auto` batch replaced by the planned number."""
    b = plan.batches
    return config.model_copy(
        update={
            "reward": config.reward.model_copy(update={"micro_batch": b.reward_micro_batch}),
            "coarse": config.coarse.model_copy(
                update={"sampling_batch": b.sampling_batch, "micro_batch": b.micro_batch}
            ),
            "evaluation": config.evaluation.model_copy(update={"batch": b.evaluation_batch}),
        }
    )


def check(plan: Plan) -> None:
    """Raise ConfigError with the first reason why the plan cannot fit."""
    if plan.refusals:
        raise ConfigError(plan.refusals[0])


def choose(config: Config, sizes: Bytes, room: float | None) -> Batches:
    """The batches given, and for `auto` the largest that fit and still make a difference."""
    prompt, limit = config.data.max_prompt_tokens, last_limit(config)
    at_once = TOKENS_AT_ONCE if room is not None else CPU_TOKENS_AT_ONCE

    def most(given: int | str, rows: int, enough: int, need: Callable[[int], float]) -> int:
        """rows: how many there are at all; enough: more make no difference."""
        if given != "auto":
            return min(int(given), rows)
        return largest(max(min(rows, enough), 1), lambda size: room is None or need(size) <= room)

    pair = 2 * (prompt + config.data.max_answer_tokens)
    micro = most(
        config.reward.micro_batch,
        config.reward.batch,
        at_once // pair,
        lambda size: reward(config, sizes, size).total,
    )
    if config.reward.micro_batch == "auto":  # whole micro-batches make up the batch
        micro = next(size for size in range(micro, 0, -1) if config.reward.batch % size == 0)
    return Batches(
        micro,
        most(
            config.coarse.sampling_batch,
            config.coarse.rollouts,
            config.coarse.rollouts,
            lambda size: sampling(config, sizes, size, limit).total,
        ),
        most(
            config.coarse.micro_batch,
            config.coarse.rollouts // config.coarse.minibatches,
            at_once // (prompt + limit),
            lambda size: max(update(config, sizes, size, limit).total, scoring(config, sizes, size, limit).total),
        ),
        most(
            config.evaluation.batch,
            max(config.evaluation.prompts, config.fine.prompts),
            ROWS_AT_ONCE if room is not None else 4 * ROWS_AT_ONCE,
            lambda size: comparison(config, sizes, size).total,
        ),
    )


def stages(config: Config, sizes: Bytes, batches: Batches, limit: int) -> list[Need]:
    """Every stage with these batches, the coarse stage at this limit."""
    return [
        reward(config, sizes, batches.reward_micro_batch),
        sampling(config, sizes, batches.sampling_batch, limit),
        scoring(config, sizes, batches.micro_batch, limit),
        update(config, sizes, batches.micro_batch, limit),
        comparison(config, sizes, batches.evaluation_batch),
    ]


def growth(config: Config) -> list[int]:
    """Limits along the growth: the first, each doubling, the last."""
    last = last_limit(config)
    found = [min(config.coarse.length.start, last)]
    while found[-1] < last:
        found.append(min(2 * found[-1], last))
    return found


def largest_limit(config: Config, sizes: Bytes, batches: Batches, room: float) -> int:
    """The largest response limit at which sampling, scoring and update fit with these batches; 0 where none does."""
    context = max(sizes.shape.context - config.data.max_prompt_tokens, 1)
    parts = (
        (sampling, batches.sampling_batch),
        (scoring, batches.micro_batch),
        (update, batches.micro_batch),
    )
    return largest(context, lambda limit: all(need(config, sizes, b, limit).total <= room for need, b in parts), 0)


def refusal(config: Config, sizes: Bytes, batches: Batches, need: Need, room: float) -> str | None:
    """One line on a stage that does not fit: what it needs, what there is, which setting to change to what."""
    if need.total <= room:
        return None
    limit = last_limit(config)
    builders: dict[str, Callable[[int], Need]] = {
        "reward": lambda size: reward(config, sizes, size),
        "coarse_sampling": lambda size: sampling(config, sizes, size, limit),
        "coarse_scoring": lambda size: scoring(config, sizes, size, limit),
        "coarse_update": lambda size: update(config, sizes, size, limit),
        "comparison": lambda size: comparison(config, sizes, size),
    }
    size = largest(need.batch, lambda batch: builders[need.stage](batch).total <= room, 0)
    if size:
        remedy = f"set {need.setting} to {size} or auto"
    elif need.stage.startswith("coarse") and (fitting := largest_limit(config, sizes, _ones(batches), room)):
        key = "start" if config.coarse.length.mode == "fixed" else "max"
        remedy = f"lower coarse.length.{key} to {fitting}, or data.max_prompt_tokens"
    elif need.stage == "reward":
        remedy = "lower data.max_answer_tokens, data.max_prompt_tokens or lora.r"
    elif need.stage.startswith("coarse"):
        remedy = "lower lora.r or data.max_prompt_tokens, or use a smaller model"
    elif need.parts["base and instruct"] + need.parts["adapters"] > room:
        remedy = "base and instruct model are held at once: use smaller models or a larger card"
    else:
        remedy = "lower evaluation.max_tokens and fine.max_tokens"
    return (
        f"{need.stage.replace('_', ' ')} needs {need.total / GIBIBYTE:.1f} GiB with {need.setting}={need.batch}; "
        f"expected at most {room / GIBIBYTE:.1f} GiB; {remedy}"
    )


def disk(config: Config, shape: Shape, sizes: Bytes) -> dict[str, float]:
    """Bytes on disk: the downloads of hub models, the merged model, the adapters."""
    whole = (shape.linear + shape.embeddings) * (4 if config.model.base == "toy" else HUB_BYTES)
    names = (config.model.base, config.model.instruct)
    remote = [name for name in names if name != "toy" and not name.startswith(("/", ".", "~")) and name.count("/") == 1]
    return {"downloads": len(remote) * whole, "merged model": whole, "adapters": 3 * sizes.adapter}


def _ones(batches: Batches) -> Batches:
    return Batches(*(1 for _ in batches))


def largest(most: int, fits: Callable[[int], bool], least: int = 1) -> int:
    """The largest number from 1 to `most` that fits, by bisection; `least` where none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return max(low, least)
