"""The device of a run on this machine, its arithmetic and its plan. PyTorch is imported only where it is asked."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lite_c2f.config.settings import Config
from lite_c2f.errors import ConfigError
from lite_c2f.memory import Plan, make_plan
from lite_c2f.memory.compute import Compute, pick_compute
from lite_c2f.memory.sizes import GIBIBYTE

if TYPE_CHECKING:
    import torch

# What Linux has where PyTorch may find a GPU by itself: NVIDIA's driver, also on boards and in WSL, and AMD's.
GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvmap", "/dev/dxg", "/dev/kfd")


def may_have_gpu() -> bool:
    """Whether `hardware.device=auto` could be a GPU; False only where Linux has no driver's file."""
    return sys.platform != "linux" or any(Path(file).exists() for file in GPU_FILES)


def pick_device(config: Config) -> "torch.device":
    """The device of a run; `auto` is CUDA or the CPU. Raises ConfigError when torch does not find the one required."""
    import torch

    from lite_c2f.backbone.device import UNTRIED

    device = config.hardware.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not torch.get_device_module(device).is_available():
        got = f"hardware.device={device}: torch finds no {UNTRIED.get(device, 'CUDA GPU')}"
        raise ConfigError.because(got, "a GPU", "set hardware.device=cpu or auto")
    return torch.device(device)


def card_gib(config: Config) -> float | None:
    """GPU memory to plan for, in GiB: the total, or `hardware.vram_gib` if that is less; None without a GPU."""
    from lite_c2f.backbone.device import total_bytes

    size = total_bytes(pick_device(config))
    return None if size is None else min(size / GIBIBYTE, config.hardware.vram_gib or math.inf)


def compute_on(config: Config, device: "torch.device") -> Compute:
    """Arithmetic of a run on a device of this machine; emulated bfloat16 is slower than float32 and does not count.

    Raises ConfigError for float16 on a CPU.
    """
    from lite_c2f.backbone.device import has_bfloat16

    return pick_compute(config, on_gpu=device.type != "cpu", bfloat16=has_bfloat16(device))


def plan_here(config: Config, model: str | None = None) -> Plan:
    """The plan of a run on this machine. model: as for `make_plan`."""
    from lite_c2f.backbone.device import untried

    device = pick_device(config)
    plan = make_plan(config, card_gib(config), model=model, compute=compute_on(config, device))
    if warning := untried(device):
        plan = plan._replace(warnings=[*plan.warnings, warning])
    return plan if plan.compute.on_gpu else _without_card(plan, config)


def plan_named(config: Config) -> Plan:
    """The plan for this machine's GPU; without one, for a GPU of `hardware.vram_gib`."""
    asked = config.hardware.device
    if asked != "cpu" and (asked != "auto" or may_have_gpu()) and pick_device(config).type != "cpu":
        return plan_here(config)
    return _without_card(make_plan(config), config)


def _without_card(plan: Plan, config: Config) -> Plan:
    if config.hardware.vram_gib is None or config.hardware.device == "cpu":
        return plan
    warning = f"hardware.vram_gib={config.hardware.vram_gib:g}, but no GPU is found here: a run here is on the CPU"
    return plan._replace(warnings=[*plan.warnings, warning])


def pick_dtype(config: Config, device: "torch.device") -> "torch.dtype":
    """Arithmetic of the base; see `pick_compute`."""
    import torch

    return getattr(torch, compute_on(config, device).dtype)


def uses_checkpointing(config: Config, device: "torch.device") -> bool:
    """Whether activations are recomputed in the backward pass; auto: on a GPU only."""
    return compute_on(config, device).checkpointing
