"""Models of the merge benchmark: a Mistral-7B-shaped pair and an adapter of every linear layer, from random weights."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

# No torch up here: a child's peak resident set starts from that of the process it is started by.

VARIANTS = ("plain", "rslora", "tied")
STD, TUNED = 0.02, 0.01  # standard deviation of weights; of what tuning added, relative to it
BLOCK = 2**21  # elements made at once


def make(folder: str, gib: float, shards: int, rank: int, vocabulary: int, variant: str) -> dict[str, Any]:
    """`base`, `instruct` and `adapter` below the folder, written block by block. variant: one of VARIANTS."""
    import torch
    from models import EOS, save_tokenizer
    from safetensors.torch import save_file
    from transformers import MistralConfig, MistralForCausalLM

    def empty(layers: int) -> MistralForCausalLM:
        """A model of the default sizes, which are those of the 7B, without memory."""
        settings = {
            "architectures": ["MistralForCausalLM"],
            "dtype": "bfloat16",
            "bos_token_id": 1,
            "eos_token_id": EOS,
            "tie_word_embeddings": variant == "tied",
        }
        with torch.device("meta"):
            return MistralForCausalLM(MistralConfig(vocab_size=vocabulary, num_hidden_layers=layers, **settings))

    least = empty(1)
    layer = sum(weight.numel() for weight in least.model.layers[0].parameters())
    layers = 1 + round((gib * 2**29 - least.num_parameters()) / layer)
    model = empty(min(max(layers, 1), 32))
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    draw, root = torch.Generator().manual_seed(0), Path(folder)
    pair = [root / "base", root / "instruct"]
    for folder_of in pair:
        model.config.save_pretrained(folder_of)
        save_tokenizer(folder_of, vocabulary)

    # 1. base and instruct, the second a little away from the first
    parts, done = defaultdict(list), 0
    for name, shape in shapes.items():  # by where the middle of each weight falls
        parts[(done + math.prod(shape) // 2) * shards // model.num_parameters()].append((name, shape))
        done += math.prod(shape)
    weight_map = {}
    for number, part in enumerate(parts.values(), 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in part:
            weight_map[name], start, end = file, end, end + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (pair[0] / file).open("wb") as base, (pair[1] / file).open("wb") as instruct:
            for target in (base, instruct):
                target.write(len(text).to_bytes(8, "little") + text)
            for _, shape in part:
                for first in range(0, math.prod(shape), BLOCK):
                    count = min(BLOCK, math.prod(shape) - first)
                    block = torch.randn(count, generator=draw).mul_(STD).add_(float(len(shape) == 1))  # norms: 1
                    base.write(block.bfloat16().view(torch.uint8).numpy())
                    block.add_(torch.randn(count, generator=draw), alpha=STD * TUNED)
                    instruct.write(block.bfloat16().view(torch.uint8).numpy())
    for folder_of in pair:
        index = {"metadata": {"total_size": 2 * done}, "weight_map": weight_map}
        (folder_of / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")

    # 2. the adapter, as PEFT saves it
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    if variant == "rslora":
        settings |= {"use_rslora": True, "rank_pattern": {"q_proj": 4 * rank, "down_proj": rank // 2}}
        settings |= {"alpha_pattern": {"o_proj": rank}}
    factors, modules = {}, set()
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if module.endswith("_proj"):
            r = settings.get("rank_pattern", {}).get(module.rpartition(".")[2], rank)
            factors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(r, shape[1], generator=draw) * 0.01
            factors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(shape[0], r, generator=draw) * 0.005
            modules.add(module.rpartition(".")[2])
    (root / "adapter").mkdir(exist_ok=True)
    save_file(factors, root / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    settings |= {"base_model_name_or_path": str(pair[0]), "target_modules": sorted(modules), "inference_mode": True}
    (root / "adapter" / "adapter_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return {"bytes": 2 * done, "shards": len(parts), "layers": model.config.num_hidden_layers}
