"""What somebody needs to know to help: versions, GPU, whether 4-bit works, disk."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "trl", "accelerate", "datasets", "gradio")


def examine() -> dict[str, Any]:
    """A flat block of facts; nothing in it is secret."""
    import torch

    from lite_c2f import __version__

    found: dict[str, Any] = {
        "lite_c2f": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    found["cpu threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found["gpu"] = torch.cuda.get_device_name()
        found["gpu memory"] = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        found["bfloat16"] = torch.cuda.is_bf16_supported()
    else:
        found["gpu"] = "none"
    found["4-bit"] = four_bit_error()
    found["disk free"] = f"{shutil.disk_usage(os.getcwd()).free / 2**30:.1f} GiB"  # noqa: PTH109
    return found


def four_bit_error() -> str:
    """Quantise a matrix to NF4 and back: the largest relative error, or why it failed."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    try:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(device)
        packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        gap = float((dequantize_4bit(packed, state) - weight).norm() / weight.norm())
    except Exception as error:
        return f"fails: {' '.join(str(error).split())[:120]}"
    return f"{'works' if gap < 0.15 else 'wrong'} (relative error {gap:.3f})"
