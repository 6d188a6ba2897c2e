"""Plan of a run: the batches that fit the card, the largest limit that fits, disk, refusals and warnings."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lite_c2f.config.settings import Config
from lite_c2f.errors import ConfigError
from lite_c2f.memory.compute import Compute, pick_compute
from lite_c2f.memory.remedies import PlanRefusal, refuse, refuse_context
from lite_c2f.memory.sizes import ASSUMED, GIBIBYTE, Bytes, Shape, model_shape
from lite_c2f.memory.stages import (
    STAGES,
    Lengths,
    Need,
    largest,
    lengths_of,
    sampling,
    trained_adapters,
    update,
)

TOKENS_AT_ONCE = 16384  # more tokens in a micro-batch do not make an update faster, they only take memory
CPU_TOKENS_AT_ONCE = 5376
ROWS_AT_ONCE = 64  # answers of the comparison side by side
SAME_MODEL = (
    "model.base and model.instruct are the same model: the residue will be merged into the weights that it was trained "
    "on, so that there is no instruction tuning for it to keep"
)
HUB_BYTES = 2  # a weight as it is downloaded


class BatchPlan(NamedTuple):
    """Batch sizes: those that are set, and what `auto` stands for on this card."""

    reward_micro_batch: int
    sampling_batch: int
    micro_batch: int
    evaluation_batch: int


class Plan(NamedTuple):
    """What a run needs in memory and on disk, and the batches that were chosen."""

    shape: Shape
    source: str  # where the shape came from
    vram_gib: float | None
    compute: Compute
    batches: BatchPlan
    needs: list[Need]  # at the largest limit
    growth: list[tuple[int, Need, Need]]  # limit, and what sampling and update take under it
    largest_limit: int | None  # the largest response limit that fits with these batches; None without a card
    refusals: list[PlanRefusal]  # what does not fit, and what to change
    assumed: bool  # the shape is a guess: nothing is refused because of it
    disk: dict[str, float]  # bytes
    warnings: list[str]  # what is possible, and hardly intended

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


def make_plan(
    config: Config, vram_gib: float | None = None, *, model: str | None = None, compute: Compute | None = None
) -> Plan:
    """Plan a run for a card of so many GiB (default: `hardware.vram_gib`; without either, only count).

    model: folder or name of the base, where it is not `model.base`. compute: what the run will compute in, as
    `backbone.load.plan_here` finds it; on a CPU no card matters. By default that of a card with bfloat16. Nothing is
    loaded or downloaded. Raises ModelError for a folder without configuration.
    """
    if vram_gib is not None and not 0 < vram_gib < float("inf"):
        raise ConfigError.because(f"a card of {vram_gib:g} GiB", "GiB above 0", "write e.g. --vram 24")
    on_cpu = config.hardware.device == "cpu" and vram_gib is None if compute is None else not compute.on_gpu
    vram = None if on_cpu else vram_gib or config.hardware.vram_gib
    if compute is None:
        compute = pick_compute(config, on_gpu=vram is not None, bfloat16=True)
    shape, source = model_shape(model or config.model.base)
    sizes = Bytes(
        shape,
        config.lora.r,
        None if isinstance(config.lora.target_modules, str) else config.lora.target_modules,
        compute.itemsize,
        config.model.quantization == "nf4",
        compute.checkpointing,
        compute.on_gpu,
        config.longest_row,
    )
    room = usable(vram) if vram is not None else None
    batches = choose(config, sizes, room)
    needs = stages(config, sizes, batches)
    unfit = [] if room is None else [refuse(config, sizes, need, room) for need in needs]
    return Plan(
        shape,
        source,
        vram,
        compute,
        batches,
        needs,
        growth(config, sizes, batches),
        None if room is None else largest_limit(config, sizes, batches, room),
        [refusal for refusal in (refuse_context(config, sizes), *unfit) if refusal],
        source == ASSUMED,
        disk(config, shape, sizes),
        warnings(config, compute),
    )


def resolve(config: Config, plan: Plan) -> Config:
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


def check(plan: Plan, stages: Sequence[str] = ("reward", "coarse", "fine")) -> None:
    """Raise ConfigError with the first reason why these stages cannot be run; a guessed shape refuses nothing."""
    lines = [refusal.line for refusal in plan.refusals if refusal.stage in ("", *stages)]
    if lines and not plan.assumed:
        more = f" (and {len(lines) - 1} more: lite-c2f plan shows them)" if len(lines) > 1 else ""
        raise ConfigError(lines[0] + more)


def warnings(config: Config, compute: Compute) -> list[str]:
    """Warnings, one line each, about what a configuration allows and hardly intends."""
    messages = [
        f"model.{key}: no folder '{name}' here, so it is taken as a name on the hub; if it is a folder, correct it"
        for key, name in (("base", config.model.base), ("instruct", config.model.instruct))
        if "/" in name and not Path(name).exists() and Path(name).parent.is_dir()
    ]
    read = config.data.max_answer_tokens
    length = config.coarse.length
    answers = {
        length.largest_key: length.largest,
        "coarse.sample_tokens": config.coarse.sample_tokens or 0,
        "fine.max_tokens": config.fine.max_tokens,
        "evaluation.max_tokens": config.evaluation.max_tokens,
    }
    longer = {key: tokens for key, tokens in answers.items() if tokens > read}
    if longer:
        messages.append(
            f"{', '.join(f'{key}={tokens}' for key, tokens in longer.items())}: longer than any answer that the reward "
            f"model is trained on (data.max_answer_tokens={read}), so that its scores there are guesses; set "
            f"data.max_answer_tokens={max(longer.values())}, or lower the limits"
        )
    if same_model(config):
        messages.append(SAME_MODEL)
    if compute.on_gpu and compute.dtype == "float32" and config.model.compute_dtype == "auto":
        messages.append(
            "this GPU has no bfloat16, so that auto computes in float32; model.compute_dtype=float16 is several times "
            "faster and takes less memory, where the model's activations stay within its range"
        )
    return messages


def same_model(config: Config) -> bool:
    """Are base and instruct model named alike? `toy` names a pair of two."""
    model = config.model
    if model.base == "toy" or model.base_revision != model.instruct_revision:
        return False
    return model.base == model.instruct or Path(model.base).resolve() == Path(model.instruct).resolve()


def choose(config: Config, sizes: Bytes, room: float | None) -> BatchPlan:
    """The batches that are set, and for `auto` the largest that fit and still make a difference. room: bytes."""
    at_once = TOKENS_AT_ONCE if room is not None else CPU_TOKENS_AT_ONCE

    def most(batch: int | str, rows: int, enough: int, *names: str) -> int:
        """rows: how many there are at all; enough: more make no difference; names: the stages that use the batch."""
        if batch != "auto":
            return min(int(batch), rows)
        top = max(min(rows, enough), 1)
        return largest(
            top, lambda size: room is None or all(_need(config, sizes, n, size).total <= room for n in names)
        )

    reward, coarse, evaluation = config.reward, config.coarse, config.evaluation
    micro = most(reward.micro_batch, reward.batch, at_once // (2 * sum(lengths_of(config, "reward"))), "reward")
    if reward.micro_batch == "auto":  # whole micro-batches make up the batch
        micro = next(size for size in range(micro, 0, -1) if reward.batch % size == 0)
    rows, enough = coarse.rollouts // coarse.minibatches, at_once // sum(lengths_of(config, "coarse"))
    prompts, side_by_side = max(evaluation.prompts, config.fine.prompts), ROWS_AT_ONCE * (4 if room is None else 1)
    return BatchPlan(
        micro,
        most(coarse.sampling_batch, coarse.rollouts, coarse.rollouts, "coarse_sampling"),
        most(coarse.micro_batch, rows, enough, "coarse_update", "coarse_scoring"),
        most(evaluation.batch, prompts, side_by_side, "comparison"),
    )


def stages(config: Config, sizes: Bytes, batches: BatchPlan) -> list[Need]:
    """Every stage with these batches, the coarse stage at its largest limit."""
    sizes_of = (
        batches.reward_micro_batch,
        batches.sampling_batch,
        batches.micro_batch,
        batches.micro_batch,
        batches.evaluation_batch,
    )
    return [_need(config, sizes, name, batch) for name, batch in zip(STAGES, sizes_of, strict=True)]


def growth(config: Config, sizes: Bytes, batches: BatchPlan) -> list[tuple[int, Need, Need]]:
    """Limits along the growth (the first, each doubling, the last), with what sampling and update take under each."""
    prompt, last = lengths_of(config, "coarse")
    limits = [min(config.coarse.length.start, last)]
    while limits[-1] < last:
        limits.append(min(2 * limits[-1], last))
    return [
        (
            limit,
            sampling(config, sizes, batches.sampling_batch, Lengths(prompt, limit)),
            update(config, sizes, batches.micro_batch, Lengths(prompt, limit)),
        )
        for limit in limits
    ]


def largest_limit(config: Config, sizes: Bytes, batches: BatchPlan, room: float) -> int:
    """The largest response limit at which sampling, scoring and update fit with these batches; 0 where none does."""
    prompt = config.data.max_prompt_tokens
    sizes_of = {name: batches.micro_batch for name in ("coarse_scoring", "coarse_update")}
    sizes_of["coarse_sampling"] = batches.sampling_batch

    def fits(limit: int) -> bool:
        return all(
            STAGES[name].need(config, sizes, size, Lengths(prompt, limit)).total <= room
            for name, size in sizes_of.items()
        )

    return largest(max(sizes.shape.context - prompt, 1), fits, 0)


def _need(config: Config, sizes: Bytes, name: str, batch: int) -> Need:
    """What a stage takes with a batch, at the lengths of the configuration."""
    command, count = STAGES[name]
    return count(config, sizes, batch, lengths_of(config, command))


def disk(config: Config, shape: Shape, sizes: Bytes) -> dict[str, float]:
    """Bytes on disk: the downloads of hub models, the merged model, the adapters, and a stage's checkpoints.

    A checkpoint is the adapters that PPO trains with both moments of each; beside those that are kept there is the best
    one, and one that is being written.
    """
    whole = shape.weights * (4 if config.model.base == "toy" else HUB_BYTES)
    names = (config.model.base, config.model.instruct)
    remote = [name for name in names if name != "toy" and not name.startswith(("/", ".", "~")) and name.count("/") == 1]
    return {
        "downloads": len(remote) * whole,
        "merged model": whole,
        "adapters": (trained_adapters(config) + 1) * sizes.adapter,
        "checkpoints": (config.run.keep_checkpoints + 2) * trained_adapters(config) * 3 * sizes.adapter,
    }
