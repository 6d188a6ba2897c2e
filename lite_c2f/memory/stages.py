"""Memory of each stage: what it holds on the card at once, in bytes."""

from collections.abc import Callable
from typing import NamedTuple

from lite_c2f.config.settings import Config
from lite_c2f.memory.sizes import PROMPT_TOKENS, WORKSPACE, Bytes

JUDGED_ROWS = 8  # answers of the comparison that the reward model reads at once, no more than are sampled at once


class Lengths(NamedTuple):
    """The longest prompt and the longest answer of a stage, in tokens."""

    prompt: int
    answer: int


class Need(NamedTuple):
    """One stage on the card, in bytes."""

    stage: str
    setting: str  # the batch size it depends on
    batch: int
    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def reward(config: Config, sizes: Bytes, micro_batch: int, lengths: Lengths) -> Need:
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


def trained_adapters(config: Config) -> int:
    """How many adapters PPO trains: the policy's, and the critic's where it has its own."""
    return 1 if config.coarse.critic == "shared" else 2


def _coarse_static(config: Config, sizes: Bytes) -> dict[str, float]:
    """What stays on the card for the whole coarse stage: the adapters, the reward model's too, and AdamW."""
    trained = trained_adapters(config)
    return {"base": sizes.base, "adapters": (trained + 1) * sizes.adapter, "AdamW": 2 * trained * sizes.adapter}


def sampling(config: Config, sizes: Bytes, batch: int, lengths: Lengths) -> Need:
    """Responses sampled side by side, with their KV cache."""
    prompt = lengths.prompt
    reading = sizes.forward(min(batch * prompt, max(PROMPT_TOKENS, prompt)))
    parts = _coarse_static(config, sizes) | {
        "adapter copy": sizes.adapter_copy,
        "KV cache": sizes.cache(batch * sum(lengths)),
        "activations": max(reading, sizes.drawing(batch)) + WORKSPACE,
    }
    return Need("coarse_sampling", "coarse.sampling_batch", batch, parts)


def scoring(config: Config, sizes: Bytes, micro_batch: int, lengths: Lengths) -> Need:
    """Log-probabilities, values and rewards of the responses, without gradients."""
    rows = 2 * micro_batch
    parts = _coarse_static(config, sizes) | {
        "activations": sizes.forward(rows * sum(lengths)) + sizes.adapter_copy + WORKSPACE,
        "log-prob tile": sizes.head(rows * lengths.answer, gradients=False),
    }
    return Need("coarse_scoring", "coarse.micro_batch", micro_batch, parts)


def update(config: Config, sizes: Bytes, micro_batch: int, lengths: Lengths) -> Need:
    """A forward and a backward pass of PPO."""
    tokens = micro_batch * sum(lengths)
    checkpointed = sizes.dtype * sizes.shape.layers * sizes.shape.hidden * tokens if sizes.checkpointing else 0.0
    # Layers and head have their widest moments one after the other: only what the tile adds to the layers' counts.
    layers, tile = sizes.backward(tokens), sizes.head(micro_batch * lengths.answer, gradients=True)
    parts = _coarse_static(config, sizes) | {
        "gradients": sizes.adapter,
        "activations": layers + WORKSPACE,
        "log-prob tile": max(checkpointed + tile - layers, 0.0),
    }
    return Need("coarse_update", "coarse.micro_batch", micro_batch, parts)


def comparison(config: Config, sizes: Bytes, batch: int, lengths: Lengths) -> Need:
    """Base with policy and reward adapters, and the instruct model with the residue: both at once."""
    prompt = lengths.prompt
    reading = sizes.forward(min(batch * prompt, max(PROMPT_TOKENS, prompt)))
    judging = sizes.forward(min(JUDGED_ROWS, batch) * sum(lengths))
    parts = {
        "base and instruct": 2 * sizes.base,
        "adapters": 2 * sizes.adapter + 2 * sizes.adapter_copy,
        "KV cache": sizes.cache(batch * sum(lengths)),
        "activations": max(reading, sizes.drawing(batch), judging) + WORKSPACE,
    }
    return Need("comparison", "evaluation.batch", batch, parts)


class StageMemory(NamedTuple):
    """A part of a run that holds memory of its own."""

    command: str  # the stage as `train --stage` names it: "reward" | "coarse" | "fine"
    need: Callable[[Config, Bytes, int, Lengths], Need]


STAGES = {
    "reward": StageMemory("reward", reward),
    "coarse_sampling": StageMemory("coarse", sampling),
    "coarse_scoring": StageMemory("coarse", scoring),
    "coarse_update": StageMemory("coarse", update),
    "comparison": StageMemory("fine", comparison),
}


def answer_settings(config: Config, command: str) -> dict[str, int]:
    """The settings that make a stage's answers long, with their tokens."""
    if command == "reward":
        return {"data.max_answer_tokens": config.data.max_answer_tokens}
    if command == "fine":
        return {"evaluation.max_tokens": config.evaluation.max_tokens, "fine.max_tokens": config.fine.max_tokens}
    length, samples = config.coarse.length, config.coarse.sample_tokens
    limits = {length.largest_key: length.largest, "coarse.length.start": length.start}
    return limits | ({} if samples is None else {"coarse.sample_tokens": samples})


def lengths_of(config: Config, command: str) -> Lengths:
    """The longest prompt and answer of a stage; of the coarse stage at its largest limit."""
    return Lengths(config.data.max_prompt_tokens, max(answer_settings(config, command).values()))


def largest(most: int, fits: Callable[[int], bool], least: int = 1) -> int:
    """The largest number from 1 to `most` that fits, by bisection; `least` where none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return max(low, least)
