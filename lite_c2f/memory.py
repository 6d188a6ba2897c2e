"""What a run needs, in bytes, from its configuration alone: estimates, no weights are loaded.

Figures a token and a parameter are those of the NF4 format, of LoRA and of AdamW, plus 0.54 MiB of activations a token
measured with checkpointing on Mistral-7B's shape and scaled by width and depth. Until they are checked on a card,
read them as estimates.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.config import Config
from lite_c2f.errors import ModelError

GIBIBYTE = 2**30
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight, its 8-bit block scale, the scale's own scale
ACTIVATION_BYTES = 0.54 * 2**20 / (4096 * 32)  # a token, hidden unit and layer


class Shape(NamedTuple):
    """What matters of a model's config.json."""

    hidden: int
    layers: int
    intermediate: int
    key_value: int  # width of keys, and of values
    vocabulary: int

    @property
    def linear(self) -> int:
        """Weights of all linear layers but the head."""
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.key_value
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def embeddings(self) -> int:
        """Weights of embeddings and head."""
        return 2 * self.vocabulary * self.hidden

    def adapter(self, rank: int) -> int:
        """Weights of one LoRA on all linear layers."""
        h, i, kv = self.hidden, self.intermediate, self.key_value
        return self.layers * rank * (2 * (h + h) + 2 * (h + kv) + 3 * (h + i))


MISTRAL_7B = Shape(4096, 32, 14336, 1024, 32000)
TOY = Shape(128, 3, 256, 64, 576)


def model_shape(model: str) -> tuple[Shape, str]:
    """Shape of a local model, and where it came from; a hub name that is not here yet is taken for Mistral-7B's."""
    if model == "toy":
        return TOY, "the toy world"
    file = Path(model) / "config.json"
    if not file.is_file():
        if Path(model).is_dir() or model.startswith((".", "/", "~")):
            raise ModelError.because(f"model '{model}': no config.json", "a model folder", "check model.base")
        return MISTRAL_7B, "Mistral-7B's shape, assumed for a hub name"
    config = json.loads(file.read_text(encoding="utf-8"))
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    return Shape(
        config["hidden_size"],
        config["num_hidden_layers"],
        config["intermediate_size"],
        width * config.get("num_key_value_heads", heads),
        config["vocab_size"],
    ), str(file)


def estimate(config: Config, vram_gib: float | None) -> dict[str, Any]:
    """Bytes by part and stage, in GiB, and whether they fit the card.

    Parts: the base (4-bit or not), adapters and optimiser in float32, the KV cache of a sampling batch at the largest
    limit, the activations of a micro-batch at the largest limit; disk for the merged model and its partial copy.
    """
    shape, source = model_shape(config.model.base)
    half = 4 if config.model.base == "toy" else 2
    per_weight = NF4_BYTES if config.model.quantization == "nf4" else half
    base = shape.linear * per_weight + shape.embeddings * half
    adapter = shape.adapter(config.lora.r) * 4
    limit = config.coarse.length.start if config.coarse.length.mode == "fixed" else config.coarse.length.max
    length = config.data.max_prompt_tokens + limit
    reward_length = config.data.max_prompt_tokens + config.data.max_answer_tokens
    kv = 2 * shape.layers * shape.key_value * half
    activation = ACTIVATION_BYTES * shape.hidden * shape.layers
    stages = {
        "reward": {
            "base": base,
            "adapters and AdamW": 4 * adapter,
            "activations": 2 * config.reward.micro_batch * reward_length * activation,
        },
        "coarse sampling": {
            "base": base,
            "adapters and AdamW": (3 + 2 * 2) * adapter,
            "KV cache": config.coarse.sampling_batch * length * kv,
        },
        "coarse update": {
            "base": base,
            "adapters, gradients and AdamW": (3 + 2 * 3) * adapter,
            "activations": config.coarse.micro_batch * length * activation,
        },
        "fine and comparison": {
            "base and instruct": 2 * base,
            "adapters": 3 * adapter,
            "KV cache": config.evaluation.batch * (config.data.max_prompt_tokens + config.evaluation.max_tokens) * kv,
        },
    }
    totals = {name: sum(parts.values()) for name, parts in stages.items()}
    vram = vram_gib or config.hardware.vram_gib
    return {
        "shape": {**shape._asdict(), "from": source},
        "limit": limit,
        "vram_gib": vram,
        "stages": {
            name: {**{part: round(size / GIBIBYTE, 3) for part, size in parts.items()}, "total": _gib(totals[name])}
            for name, parts in stages.items()
        },
        "fits": None if vram is None else max(totals.values()) / GIBIBYTE <= vram - 1.0,  # 1 GiB for CUDA itself
        "disk_gib": round((shape.linear + shape.embeddings) * half / GIBIBYTE + 3 * adapter / GIBIBYTE, 3),
    }


def explain(found: dict[str, Any]) -> str:
    """The estimate as a few readable lines."""
    lines = [f"memory, estimated in GiB ({found['shape']['from']}; limit {found['limit']} tokens):"]
    for stage, parts in found["stages"].items():
        inner = ", ".join(f"{part} {size:.2f}" for part, size in parts.items() if part != "total")
        lines.append(f"  {stage:<20} {parts['total']:>6.2f}  ({inner})")
    lines.append(f"  disk                 {found['disk_gib']:>6.2f}  (merged model and adapters)")
    if found["fits"] is not None:
        verdict = "fits" if found["fits"] else "does not fit: lower coarse.length.max, sampling_batch or micro_batch"
        lines.append(f"a card of {found['vram_gib']:g} GiB: {verdict}")
    return "\n".join(lines)


def _gib(size: float) -> float:
    return round(size / GIBIBYTE, 3)
