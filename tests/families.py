"""Model families as people bring them: config.json with each family's own switches, at a size that trains in a second.

A family is a name in the table of docs/models.md and what its configuration says beside the sizes. The tests write a
base and an instruct model of each and run all stages, or see it refused; the table in docs/ is made from that.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizer_kinds import made
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

GATED = {  # widths of whole blocks of NF4: on a CPU bitsandbytes unpacks others wrongly
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
ALL_HEADS = {**GATED, "num_key_value_heads": 4}
MIXED = {"head_dim": 16, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}


TEXT = "its text model alone: the published ones read images too, and are refused"
EAGER = "caps its attention's scores, so that they are kept whole: more memory, which `plan` counts"


class Family(NamedTuple):
    """A row of the table."""

    model_type: str
    config: dict[str, Any]
    refused: str | None = None  # the reason, as the error has it; None: it trains
    examples: str = ""
    note: str = ""


FAMILIES = {
    "Mistral": Family("mistral", GATED, examples="Mistral-7B"),
    "Llama": Family("llama", {**GATED, "tie_word_embeddings": True}, examples="Llama 2 and 3, SmolLM2, TinyLlama"),
    "Qwen2": Family("qwen2", GATED, examples="Qwen2, Qwen2.5"),
    "Qwen3": Family("qwen3", {**GATED, "head_dim": 32}, examples="Qwen3, dense"),
    "Gemma 1": Family("gemma", {**GATED, "num_key_value_heads": 1, "head_dim": 32}, examples="Gemma 2B, 7B"),
    "Gemma 2": Family("gemma2", {**GATED, **MIXED, "query_pre_attn_scalar": 16}, examples="Gemma 2 2B, 9B", note=EAGER),
    "Gemma 3": Family("gemma3_text", {**GATED, **MIXED}, examples="Gemma 3 270M, 1B"),
    "Phi": Family("phi", {**ALL_HEADS, "partial_rotary_factor": 0.4, "hidden_size": 80}, examples="Phi-2"),
    "Phi-3": Family("phi3", {**GATED, "pad_token_id": 0}, examples="Phi-3, Phi-4-mini"),
    "OLMo 2": Family("olmo2", GATED, examples="OLMo 2 1B, 7B"),
    "StableLM": Family("stablelm", {**ALL_HEADS, "partial_rotary_factor": 0.25}, examples="StableLM 2 1.6B"),
    "GPT-NeoX": Family(
        "gpt_neox", {**ALL_HEADS, "intermediate_size": 256, "rotary_pct": 0.25}, examples="Pythia, GPT-NeoX"
    ),
    "OPT": Family(
        "opt", {**ALL_HEADS, "ffn_dim": 128, "word_embed_proj_dim": 64, "intermediate_size": None}, examples="OPT"
    ),
    "GPT-2": Family("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}, examples="GPT-2"),
    "Ministral 3": Family("ministral3", {**GATED, "head_dim": 16}, examples="Ministral 3", note=TEXT),
}
NO_CLASSIFIER = "Transformers has no sequence classifier for it, which the reward stage trains"
REFUSED = {
    "Granite": Family(
        "granite", {**GATED, "logits_scaling": 8.0}, "no sequence classifier", "Granite 3", NO_CLASSIFIER
    ),
    "Cohere": Family("cohere", {**GATED, "logit_scale": 0.25}, "no sequence classifier", "Command R", NO_CLASSIFIER),
    "Falcon": Family(
        "falcon",
        ALL_HEADS,
        "FalconLinear",
        "Falcon 7B",
        "its linear layers stay unquantised; with `model.quantization=none` it is not refused",
    ),
    "Mixtral": Family(
        "mixtral",
        {**GATED, "num_local_experts": 4},
        "experts",
        "Mixtral 8x7B",
        "experts can neither be 4-bit nor adapted here; an adapter on its attention merges",
    ),
}


def write_config(folder: Path, family: Family, **more: Any) -> Any:
    """config.json of a model of this family, for the tokenizer of the tests."""
    tokenizer = made("qwen")
    given = {name: value for name, value in family.config.items() if value is not None}
    config = AutoConfig.for_model(
        family.model_type,
        **{
            "vocab_size": len(tokenizer),
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": None,
            **given,
            **more,
        },
    )
    config.save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    content["architectures"] = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
    (folder / "config.json").write_text(json.dumps(content))
    return config


def write_pair(folder: Path, family: Family) -> tuple[Path, Path]:
    """A base and an instruct model that is near to it, with tokenizer, chat template and generation config."""
    base, instruct = folder / "base", folder / "instruct"
    config = write_config(base, family)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(eos_token_id=config.eos_token_id)
    for place in (base, instruct):
        model.save_pretrained(place)
        made("qwen").save_pretrained(place)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.01 * torch.randn_like(weight))
    return base, instruct


def data_file(folder: Path) -> Path:
    """Forty preference pairs, about words that the tokenizer of the tests knows."""
    words = ("apples", "left", "now", "step", "think", "five", "seven", "answer")
    rows = [
        {
            "prompt": f"How many {word} {number}?",
            "chosen": f"Let us think. It is {number} {word}. Good.",
            "rejected": f"{word}.",
        }
        for number in range(5)
        for word in words
    ]
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


TABLE = "| family | `model_type` | such as | trains | merges | |\n|---|---|---|---|---|---|\n"


def table() -> str:
    """The table of docs/models.md."""
    lines = []
    for name, family in {**FAMILIES, **REFUSED}.items():
        trains = "no" if family.refused else "yes"
        lines.append(f"| {name} | `{family.model_type}` | {family.examples} | {trains} | yes | {family.note} |\n")
    return TABLE + "".join(sorted(lines, key=str.casefold))


if __name__ == "__main__":
    print(table())
