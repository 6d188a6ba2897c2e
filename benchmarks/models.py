"""Models the benchmarks make themselves: random weights, saved as a Hugging Face folder and loaded the real way."""

import json
import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

EOS, PAD = 2, 0
# Shapes that benchmarks measure at, all of Mistral's architecture.
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "sliding_window": None,
}
SMOLLM2 = {  # of SmolLM2-135M; its vocabulary is 49,152
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "sliding_window": None,
}
SHAPES = {"toy": SMALL, "smollm2": SMOLLM2}


def small_mistral(folder: Path, vocabulary: int, mean_length: float = 40.0, seed: int = 0, shape: str = "toy") -> Path:
    """Random weights of a shape in SHAPES that end a response with probability 1 / mean_length at every step.

    Lengths then vary as widely as a geometric distribution. Dimension 0 of the residual stream is kept at a constant
    (no layer writes to it), and the head's EOS row reads that dimension alone: its logit stands well above the others.
    """
    torch.manual_seed(seed)
    model = MistralForCausalLM(MistralConfig(vocab_size=vocabulary, bos_token_id=1, eos_token_id=EOS, **SHAPES[shape]))
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(std=0.1)
        model.model.embed_tokens.weight[:, 0] = 2.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        tokens = torch.randint(3, vocabulary, (8, 64))
        hidden = model.model(input_ids=tokens).last_hidden_state[:, 16:]
        logits = model.lm_head(hidden)
        logits[..., EOS] = -math.inf
        wanted = logits.logsumexp(-1).mean() - math.log(mean_length - 1)
        model.lm_head.weight[EOS] = 0
        model.lm_head.weight[EOS, 0] = wanted / hidden[..., 0].mean()
    model.save_pretrained(folder)
    save_tokenizer(folder, vocabulary)
    return folder


def save_tokenizer(folder: Path, vocabulary: int) -> None:
    """Words w3, w4, ... for the ids behind <unk>, <s>, </s>."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    ).save_pretrained(folder)


def machine() -> dict[str, Any]:
    """Where and with what a figure was measured."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "machine": gpu or f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "trl")},
    }


def report(result: dict[str, Any], out: Path | None) -> None:
    """The one JSON line, and the same as a file."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result), flush=True)
