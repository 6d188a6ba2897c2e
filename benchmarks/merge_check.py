"""Exactness of merged weights: distance to the exact sum in float64, and to the bits of another merger."""

import json
from pathlib import Path
from typing import Any

BLOCK = 2**20  # elements read at once


def weights_in(folder: str) -> dict[str, Any]:
    """Every weight of a safetensors folder, to be read row by row."""
    from safetensors import safe_open

    files = [safe_open(path, framework="pt") for path in sorted(Path(folder).glob("*.safetensors"))]
    return {name: file.get_slice(name) for file in files for name in file.keys()}  # noqa: SIM118, no mapping


def check(instruct: str, adapter: str, outs: dict[str, str]) -> dict[str, Any]:
    """How far each output is from the exact sum, and how many of our elements have other bits than PEFT's."""
    import torch

    config = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    instruct_weights, factors = weights_in(instruct), weights_in(adapter)
    merged = {name: weights_in(folder) for name, folder in outs.items()}
    for name, weights in merged.items():
        if weights.keys() != instruct_weights.keys():
            raise SystemExit(
                f"the weights of {name} are not those of instruct: {weights.keys() ^ instruct_weights.keys()}"
            )
    worst = {name: [0.0, 0.0] for name in merged}  # in spacings at the exact value; at the weight where wider
    misrounded, different, elements = dict.fromkeys(merged, 0), 0, 0
    for name, weight in instruct_weights.items():
        shape, module = weight.get_shape(), f"base_model.model.{name.removesuffix('.weight')}"
        down = factors.get(f"{module}.lora_A.weight")
        down = None if down is None else down[:].double()
        step = max(1, BLOCK * len(shape) // shape[-1])
        for first in range(0, shape[0], step):
            rows = slice(first, first + step)
            stored = weight[rows].double()
            written = {side: weights[name][rows] for side, weights in merged.items()}
            exact = stored
            if down is not None:
                exact = stored + scaling_of(config, module) * (factors[f"{module}.lora_B.weight"][rows].double() @ down)
            elements += exact.numel()
            at_sum, at_weight = spacing(exact), spacing(stored)
            for side, values in written.items():
                if values.dtype != torch.bfloat16 or not values.isfinite().all():
                    raise SystemExit(f"'{name}' of {side} is {values.dtype}: expected finite bfloat16")
                error = (values.double() - exact).abs_()
                misrounded[side] += int((error > at_sum / 2).sum())
                largest = (error / at_sum).max(), (error / torch.maximum(at_sum, at_weight)).max()
                worst[side] = [max(before, float(now)) for before, now in zip(worst[side], largest, strict=True)]
            if "peft" in written:
                different += int((written["ours"].view(torch.int16) != written["peft"].view(torch.int16)).sum())
    rounding = {
        side: {
            "max_error": float(f"{at_sum:.4g}"),
            "max_error_of_weight": float(f"{at_weight:.4g}"),
            "misrounded": float(f"{misrounded[side] / elements:.3g}"),
        }
        for side, (at_sum, at_weight) in worst.items()
    }
    return {"rounding": rounding, "different_from_peft": different if "peft" in merged else None}


def scaling_of(config: dict[str, Any], module: str) -> float:
    """alpha / r of one module, alpha / sqrt(r) with rsLoRA."""
    name = module.rpartition(".")[2]
    rank = config.get("rank_pattern", {}).get(name, config["r"])
    alpha = config.get("alpha_pattern", {}).get(name, config["lora_alpha"])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def spacing(values: Any) -> Any:
    """The distance of bfloat16 numbers (8 bits) around each value, float64; 2^-133 around 0."""
    import torch

    exponent = values.abs().clamp_(min=2.0**-126).frexp().exponent  # of a fraction in [1/2, 1)
    return torch.ldexp(torch.ones_like(values), exponent - 8)
