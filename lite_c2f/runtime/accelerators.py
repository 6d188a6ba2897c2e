"""Accelerators that torch finds: CUDA (NVIDIA, and AMD by ROCm), Intel's XPU, Apple's MPS."""

from collections.abc import Mapping
from types import ModuleType

import torch
from torch import Tensor

KINDS = ("cuda", "xpu", "mps")


def accelerators() -> dict[str, ModuleType]:
    """{kind: torch's module for it} of those that this machine has."""
    modules = {kind: torch.get_device_module(kind) for kind in KINDS}
    return {kind: module for kind, module in modules.items() if module.is_available()}


def empty_caches() -> None:
    """Give memory that no tensor uses back to the devices."""
    for module in accelerators().values():
        module.empty_cache()


def reset_peaks() -> None:
    """Start the measurement of peak memory anew; MPS has none."""
    for module in accelerators().values():
        if hasattr(module, "reset_peak_memory_stats"):
            module.reset_peak_memory_stats()


def peak_bytes(device: torch.device) -> int:
    """Peak memory allocated on an accelerator; on MPS, which has no such figure, what its driver holds now."""
    module = torch.get_device_module(device)
    return module.driver_allocated_memory() if device.type == "mps" else module.max_memory_allocated(device)


def generator_states() -> dict[str, Tensor]:
    """{"KIND.INDEX": state} of the random generators of all accelerators; MPS has one device."""
    return {
        f"{kind}.{index}": state
        for kind, module in accelerators().items()
        for index, state in enumerate([module.get_rng_state()] if kind == "mps" else module.get_rng_state_all())
    }


def restore_generators(states: Mapping[str, Tensor]) -> None:
    """Restore what `generator_states` returned; states of devices that are not here are left out."""
    for kind, module in accelerators().items():
        for index in range(module.device_count()):
            if (state := states.get(f"{kind}.{index}")) is not None:
                module.set_rng_state(state, *([] if kind == "mps" else [index]))
