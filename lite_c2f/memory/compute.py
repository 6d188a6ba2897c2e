"""Device, arithmetic and checkpointing of a run: decided here, once, for the planner and for the loader. No torch."""

from typing import Literal, NamedTuple

from lite_c2f.config.settings import Config
from lite_c2f.errors import ConfigError

Arithmetic = Literal["bfloat16", "float16", "float32"]


class Compute(NamedTuple):
    """Device, arithmetic and checkpointing of a run."""

    on_gpu: bool
    dtype: Arithmetic  # of the base
    checkpointing: bool  # activations are recomputed in the backward pass

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return 4 if self.dtype == "float32" else 2


def pick_compute(config: Config, *, on_gpu: bool, bfloat16: bool) -> Compute:
    """As configured; `auto` is bfloat16 with checkpointing on a GPU that computes in bfloat16, float32 elsewhere.

    on_gpu: is there a GPU that the run uses; bfloat16: does that GPU have it in hardware. Never float16 by itself: some
    models' activations overflow in it. Raises ConfigError for float16 on a CPU.
    """
    wanted, checkpointing = config.model.compute_dtype, config.hardware.gradient_checkpointing
    if wanted == "float16" and not on_gpu:
        raise ConfigError.because("model.compute_dtype=float16 on a CPU", "float32 or bfloat16", "set it to auto")
    if wanted == "auto":
        wanted = "bfloat16" if on_gpu and bfloat16 else "float32"
    return Compute(on_gpu, wanted, on_gpu if checkpointing == "auto" else checkpointing)
