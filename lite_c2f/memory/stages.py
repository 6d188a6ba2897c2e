"""Memory of each stage on the card, in bytes."""

from collections.abc import Callable
from typing import NamedTuple

from lite_c2f.config.settings import Config
from lite_c2f.memory.sizes import PROMPT_TOKENS, WORKSPACE, Bytes

SCORED_ROWS = 8  # answers that the reward model scores together; never more than the sampling batch


class Lengths(NamedTuple):
    """The longest prompt and the longest answer of a stage, in tokens."""

    prompt: int
    answer: int


class Need(NamedTuple):
    """Memory that one stage needs, in bytes."""

    stage: str
    setting: str  # the batch size it depends on
    batch: int
    parts: dict[str, float]

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return sum(self.parts.values())


def reward_need(config: Config, sizes: Bytes, micro_batch: int, lengths: Lengths) -> Need:
    """Both sides of each pair in one pass; with an attention mask, keys and values are repeated for all heads."""
    tokens = 2 * micro_batch * sum(lengths)
    repeated = 2 * sizes.dtype * sizes.shape.hidden * tokens
    parts = {
        "base": sizes.classifier,
        "adapter": sizes.adapter,
        "gradients": sizes.adapter,
        "AdamW": 2 * sizes.adapter,
        "activations": sizes.backward(tokens) + repeated + WORKSPACE,
    }
    return Need("reward", "reward.micro_batch", micro_batch, parts)


def dpo_need(config: Config, sizes: Bytes, micro_batch: int, lengths: Lengths) -> Need:
    """Both sides of each pair in one pass as in `reward_need`, and the reference's pass while that one is held."""
    tokens = 2 * micro_batch * sum(lengths)
    repeated = 2 * sizes.dtype * sizes.shape.hidden * tokens
    parts = {
        "base": sizes.base,
        "adapter": sizes.adapter,
        "gradients": sizes.adapter,
        "AdamW": 2 * sizes.adapter,
        "activations": sizes.backward(tokens) + sizes.forward(tokens) + repeated + WORKSPACE,
        "log-prob tile": sizes.head(tokens, gradients=True),
    }
    return Need("coarse_dpo", "coarse.dpo.micro_batch", micro_batch, parts)


def trained_adapters(config: Config) -> int:
    """How many adapters the coarse stage trains: the policy's, and in PPO the critic's where it has its own."""
    return 1 if config.coarse.algorithm == "dpo" or config.coarse.critic == "shared" else 2


def reward_adapters(config: Config) -> int:
    """How many reward models the coarse stage and the comparison hold; DPO's comparison has that of stage 1."""
    return sum(source.function is None for source in config.coarse.judges)


def _coarse_static(config: Config, sizes: Bytes) -> dict[str, float]:
    """Memory for the whole coarse stage: base, adapters with the reward models', and AdamW."""
    trained = trained_adapters(config)
    adapters = trained + reward_adapters(config)
    return {"base": sizes.base, "adapters": adapters * sizes.adapter, "AdamW": 2 * trained * sizes.adapter}


def sampling_need(config: Config, sizes: Bytes, batch: int, lengths: Lengths) -> Need:
    """Sampling of a batch of responses, with their KV cache."""
    prompt = lengths.prompt
    reading = sizes.forward(min(batch * prompt, max(PROMPT_TOKENS, prompt)))
    parts = _coarse_static(config, sizes) | {
        "adapter copy": sizes.adapter_copy,
        "KV cache": sizes.cache(batch * sum(lengths)),
        "activations": max(reading, sizes.drawing(batch)) + WORKSPACE,
    }
    return Need("coarse_sampling", "coarse.sampling_batch", batch, parts)


def scoring_need(config: Config, sizes: Bytes, micro_batch: int, lengths: Lengths) -> Need:
    """Log-probabilities, values and rewards of the responses, without gradients."""
    rows = 2 * micro_batch
    parts = _coarse_static(config, sizes) | {
        "activations": sizes.forward(rows * sum(lengths)) + sizes.adapter_copy + WORKSPACE,
        "log-prob tile": sizes.head(rows * lengths.answer, gradients=False),
    }
    return Need("coarse_scoring", "coarse.micro_batch", micro_batch, parts)


def update_need(config: Config, sizes: Bytes, micro_batch: int, lengths: Lengths) -> Need:
    """A forward and a backward pass of PPO."""
    tokens = micro_batch * sum(lengths)
    checkpointed = sizes.dtype * sizes.shape.layers * sizes.shape.hidden * tokens if sizes.checkpointing else 0.0
    # The peaks of layers and head follow each other: only what the head's peak exceeds the layers' counts.
    layers, tile = sizes.backward(tokens), sizes.head(micro_batch * lengths.answer, gradients=True)
    parts = _coarse_static(config, sizes) | {
        "gradients": sizes.adapter,
        "activations": layers + WORKSPACE,
        "log-prob tile": max(checkpointed + tile - layers, 0.0),
    }
    return Need("coarse_update", "coarse.micro_batch", micro_batch, parts)


def comparison_need(config: Config, sizes: Bytes, batch: int, lengths: Lengths) -> Need:
    """Base with policy and reward adapters, and the instruct model with the residue: both at once."""
    prompt = lengths.prompt
    reading = sizes.forward(min(batch * prompt, max(PROMPT_TOKENS, prompt)))
    judging = sizes.forward(min(SCORED_ROWS, batch) * sum(lengths))
    parts = {
        "base and instruct": 2 * sizes.base,
        "adapters": (1 + reward_adapters(config)) * sizes.adapter + 2 * sizes.adapter_copy,
        "KV cache": sizes.cache(batch * sum(lengths)),
        "activations": max(reading, sizes.drawing(batch), judging) + WORKSPACE,
    }
    return Need("comparison", "evaluation.batch", batch, parts)


class StageMemory(NamedTuple):
    """A part of a run with its own memory."""

    command: str  # the stage as `train --stage` names it: "reward" | "coarse" | "fine"
    need: Callable[[Config, Bytes, int, Lengths], Need]


STAGES = {
    "reward": StageMemory("reward", reward_need),
    "coarse_sampling": StageMemory("coarse", sampling_need),
    "coarse_scoring": StageMemory("coarse", scoring_need),
    "coarse_update": StageMemory("coarse", update_need),
    "coarse_dpo": StageMemory("coarse", dpo_need),
    "comparison": StageMemory("fine", comparison_need),
}


def answer_settings(config: Config, command: str) -> dict[str, int]:
    """{setting: tokens} of the settings that bound a stage's answers."""
    if command == "reward" or (command == "coarse" and config.coarse.algorithm == "dpo"):
        return {"data.max_answer_tokens": config.data.max_answer_tokens}
    if command == "fine":
        return {"evaluation.max_tokens": config.evaluation.max_tokens, "fine.max_tokens": config.fine.max_tokens}
    length, samples = config.coarse.length, config.coarse.sample_tokens
    limits = {length.largest_key: length.largest, "coarse.length.start": length.start}
    return limits | ({} if samples is None else {"coarse.sample_tokens": samples})


def lengths_of(config: Config, command: str) -> Lengths:
    """The longest prompt and answer of a stage; for the coarse stage at its largest limit."""
    return Lengths(config.data.max_prompt_tokens, max(answer_settings(config, command).values()))


def largest_fitting(top: int, fits: Callable[[int], bool], default: int = 1) -> int:
    """The largest number from 1 to `top` that fits, by bisection; `default` if none does."""
    low, high = 0, top
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return max(low, default)
