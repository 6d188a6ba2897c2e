"""Device, dtype and gradient checkpointing of a run, for the planner and the loader. Imports no torch."""

from typing import Literal, NamedTuple

from lite_c2f.config.settings import Config
from lite_c2f.errors import ConfigError

Arithmetic = Literal["bfloat16", "float16", "float32"]


class Compute(NamedTuple):
    """Device, dtype and gradient checkpointing of a run."""

    on_gpu: bool
    dtype: Arithmetic  # of the base
    checkpointing: bool  # activations are recomputed in the backward pass

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return 4 if self.dtype == "float32" else 2


def pick_compute(config: Config, *, on_gpu: bool, bfloat16: bool) -> Compute:
    """The configured settings; `auto` is bfloat16 with checkpointing on a GPU with bfloat16, float32 elsewhere.

    on_gpu: whether the run uses a GPU; bfloat16: whether the device has it in hardware, a CPU by AMX. `native` uses it
    on a CPU too. Neither is ever float16, in which some models' activations overflow. Raises ConfigError for float16
    on a CPU.
    """
    dtype, checkpointing = config.model.compute_dtype, config.hardware.gradient_checkpointing
    if dtype == "float16" and not on_gpu:
        raise ConfigError.because("model.compute_dtype=float16 on a CPU", "float32 or bfloat16", "set it to auto")
    if dtype == "auto" or dtype == "native":
        dtype = "bfloat16" if bfloat16 and (on_gpu or dtype == "native") else "float32"
    return Compute(on_gpu, dtype, on_gpu if checkpointing == "auto" else checkpointing)
