"""What each stage holds on the card at once, in bytes."""

from typing import NamedTuple

from lite_c2f.config.settings import Config
from lite_c2f.memory.sizes import PROMPT_TOKENS, WORKSPACE, Bytes

JUDGED_ROWS = 8  # answers of the comparison that the reward model reads at once, no more than are sampled at once


class Need(NamedTuple):
    """One stage on the card, in bytes."""

    stage: str
    setting: str  # the batch size it depends on
    batch: int
    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def reward(config: Config, sizes: Bytes, micro_batch: int) -> Need:
    """Both sides of each pair in one pass; with an attention mask, keys and values are spread over all heads."""
    tokens = 2 * micro_batch * (config.data.max_prompt_tokens + config.data.max_answer_tokens)
    spread = 2 * sizes.dtype * sizes.shape.hidden * tokens
    parts = {
        "base": sizes.classifier,
        "adapter": sizes.adapter,
        "gradients": sizes.adapter,
        "AdamW": 2 * sizes.adapter,
        "activations": sizes.backward(tokens) + spread + WORKSPACE,
    }
    return Need("reward", "reward.micro_batch", micro_batch, parts)


def trained_adapters(config: Config) -> int:
    """How many adapters PPO trains: the policy's, and the critic's where it has its own."""
    return 1 if config.coarse.critic == "shared" else 2


def _held(config: Config, sizes: Bytes) -> dict[str, float]:
    """What stays on the card for the whole coarse stage: the adapters, the reward model's too, and AdamW."""
    trained = trained_adapters(config)
    return {"base": sizes.base, "adapters": (trained + 1) * sizes.adapter, "AdamW": 2 * trained * sizes.adapter}


def sampling(config: Config, sizes: Bytes, batch: int, limit: int) -> Need:
    prompt = config.data.max_prompt_tokens
    reading = sizes.forward(min(batch * prompt, max(PROMPT_TOKENS, prompt)))
    parts = _held(config, sizes) | {
        "adapter copy": sizes.adapter_copy,
        "KV cache": sizes.cache(batch * (prompt + limit)),
        "activations": max(reading, sizes.drawing(batch)) + WORKSPACE,
    }
    return Need("coarse_sampling", "coarse.sampling_batch", batch, parts)


def scoring(config: Config, sizes: Bytes, micro_batch: int, limit: int) -> Need:
    rows = 2 * micro_batch
    tokens = rows * (config.data.max_prompt_tokens + limit)
    parts = _held(config, sizes) | {
        "activations": sizes.forward(tokens) + sizes.adapter_copy + WORKSPACE,
        "log-prob tile": sizes.head(rows * limit, gradients=False),
    }
    return Need("coarse_scoring", "coarse.micro_batch", micro_batch, parts)


def update(config: Config, sizes: Bytes, micro_batch: int, limit: int) -> Need:
    tokens = micro_batch * (config.data.max_prompt_tokens + limit)
    kept = sizes.dtype * sizes.shape.layers * sizes.shape.hidden * tokens if sizes.checkpointing else 0.0
    # Layers and head have their widest moments one after the other: only what the tile adds to the layers' counts.
    layers, tile = sizes.backward(tokens), sizes.head(micro_batch * limit, gradients=True)
    parts = _held(config, sizes) | {
        "gradients": sizes.adapter,
        "activations": layers + WORKSPACE,
        "log-prob tile": max(kept + tile - layers, 0.0),
    }
    return Need("coarse_update", "coarse.micro_batch", micro_batch, parts)


def comparison(config: Config, sizes: Bytes, batch: int) -> Need:
    """Base with policy and reward adapters, the instruct model with the residue: both at once."""
    prompt = config.data.max_prompt_tokens
    answer = max(config.evaluation.max_tokens, config.fine.max_tokens)
    reading = sizes.forward(min(batch * prompt, max(PROMPT_TOKENS, prompt)))
    parts = {
        "base and instruct": 2 * sizes.base,
        "adapters": 2 * sizes.adapter + 2 * sizes.adapter_copy,
        "KV cache": sizes.cache(batch * (prompt + answer)),
        "activations": max(reading, sizes.drawing(batch), sizes.forward(min(JUDGED_ROWS, batch) * (prompt + answer)))
        + WORKSPACE,
    }
    return Need("comparison", "evaluation.batch", batch, parts)


def last_limit(config: Config, *, samples: bool = True) -> int:
    """The largest limit a run can reach. samples: also of the stored samples, which go through the same batches."""
    length = config.coarse.length
    limit = length.start if length.mode == "fixed" else length.max
    return max(limit, config.coarse.sample_tokens or 0) if samples else limit
