"""Figures of one device: memory, name, bfloat16; and which devices were never tried."""

import torch

UNTRIED = {"xpu": "Intel GPU", "mps": "Apple GPU"}


def untried(device: torch.device) -> str | None:
    """The warning about a kind of device that nobody has run this on; None for CUDA and CPUs."""
    if device.type not in UNTRIED:
        return None
    return (
        f"hardware.device={device.type}: untried, no run was ever made on an {UNTRIED[device.type]}; the plan counts "
        "as for CUDA, and resuming is not known to be bit-identical; see docs/platforms.md"
    )


def total_bytes(device: torch.device) -> int | None:
    """Memory of an accelerator, on MPS the most that Metal recommends; None for a CPU."""
    if device.type == "cpu":
        return None
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return torch.get_device_module(device).get_device_properties(device).total_memory


def free_bytes(device: torch.device) -> int | None:
    """Memory of an accelerator that nothing uses; None for a CPU."""
    if device.type == "cpu":
        return None
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return torch.get_device_module(device).mem_get_info(device)[0]


def device_name(device: torch.device) -> str:
    """The device as text, for messages."""
    if device.type in ("cuda", "xpu"):
        return torch.get_device_module(device).get_device_name(device)
    return "the CPU" if device.type == "cpu" else device.type


def has_bfloat16(device: torch.device) -> bool:
    """Whether it computes in bfloat16 in hardware, a CPU by AMX; False for MPS, of which torch does not say."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "xpu":
        return torch.xpu.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16"))
