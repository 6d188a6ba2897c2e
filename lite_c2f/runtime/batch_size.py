"""Batch sizes that are halved when memory runs out: the work is repeated in smaller parts, with the same result."""

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from lite_c2f.errors import MemoryFullError
from lite_c2f.runtime.accelerators import empty_caches

Result = TypeVar("Result")
ENOUGH_TOKENS = 512  # a smaller pass is bound by kernel launches, so padding is cheaper
MAX_PADDING_FACTOR = 1.1
OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "[CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
log = logging.getLogger(__name__)


class BatchSize:
    """A stage's batch size, which is halved when memory runs out.

    name: of its setting, for messages; size: rows (or tokens); on_message: called with one line when it shrinks.
    """

    def __init__(self, name: str, size: int, on_message: Callable[[str], None] | None = None) -> None:
        self.name, self.size, self.on_message = name, size, on_message
        self.halved = 0

    def halve(self, reason: str) -> None:
        """Halve the size from now on. Raises MemoryFullError at size 1."""
        if self.size <= 1:
            raise MemoryFullError.because(
                f"out of memory at {self.name}=1 ({reason})",
                "room for one row",
                "shorten prompts or answers, or lower lora.r; `lite-c2f plan` shows what fits",
            )
        before, self.size = self.size, self.size // 2
        self.halved += 1
        line = f"out of memory: {self.name} {before} -> {self.size}, doing that part again"
        log.warning("%s (%s)", line, reason)
        if self.on_message:
            self.on_message(line)


def retry_smaller(batch: BatchSize, work: Callable[[int], Result]) -> Result:
    """work(batch.size), repeated with half the size each time memory runs out. Our own.

    The work must be restartable: partial results of a failed attempt must not count twice. Raises MemoryFullError when
    not even a size of 1 fits; every other error passes through.

    >>> retry_smaller(BatchSize("rows", 8), lambda rows: rows)
    8
    """
    while True:
        try:
            return work(batch.size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:120]
        # Outside the handler: the error's traceback held the tensors of every frame it passed through.
        free()
        batch.halve(reason)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the host ran out of memory; libraries below PyTorch only say so in their messages."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def free() -> None:
    """Free unreferenced memory, also of tensors in reference cycles, on the GPU too."""
    gc.collect()
    empty_caches()


def groups_by_length(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Groups of indices such that each group, padded to its longest row, has at most `budget` tokens.

    order: indices by ascending length. A group of at least ENOUGH_TOKENS is closed early if the next, longer row would
    make more than a tenth of it padding. A row longer than the budget is a group of its own.

    >>> groups([0, 1, 2, 3], [1, 2, 2, 6], 6)
    [[0, 1, 2], [3]]
    """
    result: list[list[int]] = []
    real = 0  # tokens of the last group, without padding
    for index in order:
        length = lengths[index]
        padded = (len(result[-1]) + 1) * length if result else 0
        wasteful = real >= ENOUGH_TOKENS and padded > MAX_PADDING_FACTOR * (real + length)
        if result and padded <= budget and not wasteful:
            result[-1].append(index)
            real += length
        else:
            result.append([index])
            real = length
    return result
