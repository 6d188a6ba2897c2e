"""Loss scaling: in float16 a gradient below 6e-8 is zero, as most gradients of an unscaled PPO loss are."""

from collections.abc import Mapping

import torch
from torch import Tensor

START_SCALE, MAX_SCALE = 2.0**16, 2.0**24
GROWTH_STEPS = 200  # optimiser steps without an overflow before a larger scale is tried


class LossScale:
    """Factor on the loss, a power of two, divided out of the float32 gradients again without rounding. Our own.

    Halved where a gradient overflows, and doubled after GROWTH_STEPS steps without that. Unlike with
    torch.amp.GradScaler, a step that overflows is not skipped: its gradients are computed again with the smaller scale.
    1 for other types.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        """dtype: of the base's arithmetic."""
        self.active = dtype == torch.float16
        self.value = START_SCALE if self.active else 1.0
        self.steps = 0  # since the scale changed

    def accept(self, gradients: list[Tensor], losses: Mapping[str, Tensor]) -> bool:
        """Divide the gradients by the scale, in place. False where they overflowed and are to be computed again.

        Losses or gradients that no scale makes finite are accepted: the caller refuses them.
        """
        if not self.active:
            return True
        torch._foreach_div_(gradients, self.value)
        finite = torch.stack([gradient.isfinite().all() for gradient in gradients]).all()
        if bool(finite):
            self.steps += 1
            if self.steps >= GROWTH_STEPS and self.value < MAX_SCALE:
                self.value, self.steps = 2 * self.value, 0
            return True
        self.steps = 0
        if self.value <= 1 or not bool(torch.stack([loss.isfinite() for loss in losses.values()]).all()):
            self.value = START_SCALE  # the scale was not the cause
            return True
        self.value /= 2
        return False
