"""Plan of a run: the batches and the largest response limit that fit into memory, disk, refusals and warnings."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lite_c2f.config.settings import Config, Dpo, Reward
from lite_c2f.errors import ConfigError
from lite_c2f.gguf import is_packed
from lite_c2f.memory.compute import Compute, pick_compute
from lite_c2f.memory.remedies import PlanRefusal, context_plan_refusal, stage_refusal
from lite_c2f.memory.sizes import ASSUMED, GIBIBYTE, Bytes, Shape, model_shape
from lite_c2f.memory.stages import (
    STAGES,
    Lengths,
    Need,
    largest_fitting,
    lengths_of,
    sampling_need,
    trained_adapters,
    update_need,
)

MAX_MICRO_BATCH_TOKENS = 16384  # more tokens in a micro-batch take memory and do not make an update faster
CPU_MAX_MICRO_BATCH_TOKENS = 5376
EVALUATION_ROWS = 64  # answers of the comparison sampled together
SAME_MODEL = (
    "model.base and model.instruct are the same model: the residue will be merged into the weights that it was trained "
    "on, so that there is no instruction tuning for it to keep"
)
QUANTIZED_TWICE = (
    "model.base comes from a GGUF file: where its weights were quantised, model.quantization=nf4 quantises them once "
    "more. A model of 135 million parameters then seldom ended an answer (docs/smollm2.md); compare with "
    "model.quantization=none"
)
HUB_BYTES = 2  # a weight as it is downloaded


class BatchPlan(NamedTuple):
    """Batch sizes: those that are set, and what `auto` stands for on this card."""

    reward_micro_batch: int
    sampling_batch: int
    micro_batch: int
    evaluation_batch: int
    dpo_micro_batch: int | None = None  # with coarse.algorithm=dpo


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
    refusals: list[PlanRefusal]  # one per stage that does not fit, with what to change
    assumed: bool  # the shape is a guess: then nothing is refused
    disk: dict[str, float]  # bytes
    warnings: list[str]  # settings that are valid and probably not intended

    @property
    def fits(self) -> bool | None:
        """Whether every stage fits; None if no card is given."""
        return None if self.vram_gib is None else not self.refusals


def usable_bytes(vram_gib: float) -> float:
    """Bytes of a card that a run may allocate: the CUDA context takes about 1 GiB, fragmentation about 4%.

    >>> round(usable(24) / 2**30, 1)
    22.0
    """
    return (vram_gib - 1 - 0.04 * vram_gib) * GIBIBYTE


def make_plan(
    config: Config, vram_gib: float | None = None, *, model: str | None = None, compute: Compute | None = None
) -> Plan:
    """Plan a run for a card of so many GiB (default: `hardware.vram_gib`; without either, only count).

    model: folder or name of the base, if it is not `model.base`. compute: device and dtype of the run, as of
    `backbone.machine.plan_here` (default: a card with bfloat16); on a CPU nothing is limited. Nothing is loaded or
    downloaded. Raises ModelError for a folder without configuration.
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
    available = usable_bytes(vram) if vram is not None else None
    batches = choose_batches(config, sizes, available)
    needs = stage_needs(config, sizes, batches)
    unfit = [] if available is None else [stage_refusal(config, sizes, need, available) for need in needs]
    return Plan(
        shape,
        source,
        vram,
        compute,
        batches,
        needs,
        needs_by_limit(config, sizes, batches),
        None
        if available is None or config.coarse.algorithm == "dpo"
        else largest_limit(config, sizes, batches, available),
        [refusal for refusal in (context_plan_refusal(config, sizes), *unfit) if refusal],
        source == ASSUMED,
        disk_bytes(config, shape, sizes),
        plan_warnings(config, compute),
    )


def resolve(config: Config, plan: Plan) -> Config:
    """The configuration with every `auto` batch replaced by the planned number."""
    batches = plan.batches
    dpo = config.coarse.dpo
    if batches.dpo_micro_batch is not None:
        dpo = dpo.model_copy(update={"micro_batch": batches.dpo_micro_batch})
    return config.model_copy(
        update={
            "reward": config.reward.model_copy(update={"micro_batch": batches.reward_micro_batch}),
            "coarse": config.coarse.model_copy(
                update={"sampling_batch": batches.sampling_batch, "micro_batch": batches.micro_batch, "dpo": dpo}
            ),
            "evaluation": config.evaluation.model_copy(update={"batch": batches.evaluation_batch}),
        }
    )


def check(plan: Plan, stages: Sequence[str] = ("reward", "coarse", "fine")) -> None:
    """Raise ConfigError with the first refusal of these stages; a guessed shape raises nothing."""
    lines = [refusal.message for refusal in plan.refusals if refusal.stage in ("", *stages)]
    if lines and not plan.assumed:
        more = f" (and {len(lines) - 1} more: lite-c2f plan shows them)" if len(lines) > 1 else ""
        raise ConfigError(lines[0] + more)


def plan_warnings(config: Config, compute: Compute) -> list[str]:
    """Warnings, one line each, about settings that are valid and probably not intended."""
    messages = [
        f"model.{key}: no folder '{name}' here, so it is taken as a name on the hub; if it is a folder, correct it"
        for key, name in (("base", config.model.base), ("instruct", config.model.instruct))
        if "/" in name and not Path(name).exists() and Path(name).parent.is_dir()
    ]
    trained_tokens = config.data.max_answer_tokens
    answers = {
        **config.coarse.sampled_tokens,
        "fine.max_tokens": config.fine.max_tokens,
        "evaluation.max_tokens": config.evaluation.max_tokens,
    }
    longer = {key: tokens for key, tokens in answers.items() if tokens > trained_tokens}
    longer = longer if config.coarse.needs_reward_model else {}
    if longer:
        messages.append(
            f"{', '.join(f'{key}={tokens}' for key, tokens in longer.items())}: longer than any answer that the reward "
            f"model is trained on (data.max_answer_tokens={trained_tokens}), so that its scores there are guesses; set "
            f"data.max_answer_tokens={max(longer.values())}, or lower the limits"
        )
    if (note := evaluation_cost(config)) is not None:
        messages.append(note)
    if same_model(config):
        messages.append(SAME_MODEL)
    if config.model.quantization == "nf4" and is_packed(config.model.base):
        messages.append(QUANTIZED_TWICE)
    if compute.on_gpu and compute.dtype == "float32" and config.model.compute_dtype == "auto":
        messages.append(
            "this GPU has no bfloat16, so that auto computes in float32; model.compute_dtype=float16 is several times "
            "faster and takes less memory, where the model's activations stay within its range"
        )
    return messages


def evaluation_cost(config: Config) -> str | None:
    """A message about what evaluations while training cost; None without them."""
    coarse = config.coarse
    if coarse.evaluate_every is None:
        return None
    count, largest = coarse.evaluate_prompts, coarse.length.largest
    often = "update" if coarse.evaluate_every == 1 else f"{coarse.evaluate_every} updates"
    share = count / (coarse.evaluate_every * coarse.rollouts)
    sources = "1 source" if len(coarse.judges) == 1 else f"{len(coarse.judges)} sources"
    return (
        f"every {often} {count} held-out prompts are answered, with up to {largest} tokens "
        f"each, and scored by {sources}: {share:.0%} more responses than without"
    )


def same_model(config: Config) -> bool:
    """Whether base and instruct model have the same name; `toy` is a pair of two models."""
    model = config.model
    if model.base == "toy" or model.base_revision != model.instruct_revision:
        return False
    return model.base == model.instruct or Path(model.base).resolve() == Path(model.instruct).resolve()


def choose_batches(config: Config, sizes: Bytes, available: float | None) -> BatchPlan:
    """The configured batches; for `auto`, the largest that fit into `room` bytes and are useful."""
    max_tokens = MAX_MICRO_BATCH_TOKENS if available is not None else CPU_MAX_MICRO_BATCH_TOKENS

    def fitting(batch: int | str, rows: int, useful: int, *names: str) -> int:
        """rows: number of all rows; useful: more make nothing faster; names: the stages that use the batch."""
        if batch != "auto":
            return min(int(batch), rows)
        top = max(min(rows, useful), 1)

        def fits(size: int) -> bool:
            return available is None or all(_stage_need(config, sizes, n, size).total <= available for n in names)

        return largest_fitting(top, fits)

    def pairs_at_once(settings: Reward | Dpo, name: str) -> int:
        tokens = 2 * sum(lengths_of(config, STAGES[name].command))
        micro = fitting(settings.micro_batch, settings.batch, max_tokens // tokens, name)
        if settings.micro_batch == "auto":  # whole micro-batches make up the batch
            micro = next(size for size in range(micro, 0, -1) if settings.batch % size == 0)
        return micro

    reward, coarse, evaluation = config.reward, config.coarse, config.evaluation
    micro, dpo = pairs_at_once(reward, "reward"), coarse.algorithm == "dpo"
    rows, useful = coarse.rollouts // coarse.minibatches, max_tokens // sum(lengths_of(config, "coarse"))
    prompts = max(evaluation.prompts, config.fine.prompts)
    evaluation_rows = EVALUATION_ROWS * (4 if available is None else 1)
    return BatchPlan(
        micro,
        1 if dpo else fitting(coarse.sampling_batch, coarse.rollouts, coarse.rollouts, "coarse_sampling"),
        1 if dpo else fitting(coarse.micro_batch, rows, useful, "coarse_update", "coarse_scoring"),
        fitting(evaluation.batch, prompts, evaluation_rows, "comparison"),
        pairs_at_once(coarse.dpo, "coarse_dpo") if dpo else None,
    )


def stage_needs(config: Config, sizes: Bytes, batches: BatchPlan) -> list[Need]:
    """Memory of every stage with these batches, at the largest limit of the coarse stage."""
    sizes_of = {"reward": batches.reward_micro_batch} if config.coarse.needs_reward_model else {}
    if batches.dpo_micro_batch is None:
        sizes_of |= {"coarse_sampling": batches.sampling_batch, "coarse_scoring": batches.micro_batch}
        sizes_of["coarse_update"] = batches.micro_batch
    else:
        sizes_of["coarse_dpo"] = batches.dpo_micro_batch
    sizes_of["comparison"] = batches.evaluation_batch
    return [_stage_need(config, sizes, name, batch) for name, batch in sizes_of.items()]


def needs_by_limit(config: Config, sizes: Bytes, batches: BatchPlan) -> list[tuple[int, Need, Need]]:
    """(limit, memory of sampling, memory of the update) for the first limit, each doubling, the last; [] for DPO."""
    if config.coarse.algorithm == "dpo":
        return []
    prompt, last = lengths_of(config, "coarse")
    limits = [min(config.coarse.length.start, last)]
    while limits[-1] < last:
        limits.append(min(2 * limits[-1], last))
    return [
        (
            limit,
            sampling_need(config, sizes, batches.sampling_batch, Lengths(prompt, limit)),
            update_need(config, sizes, batches.micro_batch, Lengths(prompt, limit)),
        )
        for limit in limits
    ]


def largest_limit(config: Config, sizes: Bytes, batches: BatchPlan, available: float) -> int:
    """The largest response limit at which sampling, scoring and update fit with these batches; 0 if none does."""
    prompt = config.data.max_prompt_tokens
    sizes_of = {name: batches.micro_batch for name in ("coarse_scoring", "coarse_update")}
    sizes_of["coarse_sampling"] = batches.sampling_batch

    def fits(limit: int) -> bool:
        return all(
            STAGES[name].need(config, sizes, size, Lengths(prompt, limit)).total <= available
            for name, size in sizes_of.items()
        )

    return largest_fitting(max(sizes.shape.context - prompt, 1), fits, 0)


def _stage_need(config: Config, sizes: Bytes, name: str, batch: int) -> Need:
    """Memory of a stage with a batch, at the configured lengths."""
    command, count = STAGES[name]
    return count(config, sizes, batch, lengths_of(config, command))


def disk_bytes(config: Config, shape: Shape, sizes: Bytes) -> dict[str, float]:
    """Bytes on disk: the downloads of hub models, the merged model, the adapters, and a stage's checkpoints.

    A checkpoint holds the adapters that PPO trains with both moments of each; besides `run.keep_checkpoints` there are
    the best one and one that is being written.
    """
    kept_best = config.coarse.evaluate_every is not None  # the best policy's adapter, also in each checkpoint
    whole = shape.weights * (4 if config.model.base == "toy" else HUB_BYTES)
    names = (config.model.base, config.model.instruct)
    remote = [name for name in names if name != "toy" and not name.startswith(("/", ".", "~")) and name.count("/") == 1]
    return {
        "downloads": len(remote) * whole,
        "merged model": whole,
        "adapters": (trained_adapters(config) + config.coarse.needs_reward_model + kept_best) * sizes.adapter,
        "checkpoints": (config.run.keep_checkpoints + 2) * (trained_adapters(config) * 3 + kept_best) * sizes.adapter,
    }
