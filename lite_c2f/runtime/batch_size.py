"""Batch sizes that shrink when memory runs out: the same work is done again in smaller parts, with the same result."""

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from lite_c2f.errors import MemoryFullError

Result = TypeVar("Result")
ENOUGH_TOKENS = 512  # a pass over fewer is bound by its launches, and padding it is cheaper than splitting it
MOST_PADDING = 1.1
OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "[CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
log = logging.getLogger(__name__)


class BatchSize:
    """How much of a stage's work is done at once; remembers what did not fit.

    name: the setting it came from, for messages; size: rows (or tokens); on_message: receives one line when it shrinks.
    """

    def __init__(self, name: str, size: int, on_message: Callable[[str], None] | None = None) -> None:
        self.name, self.size, self.on_message = name, size, on_message
        self.halved = 0

    def halve(self, reason: str) -> None:
        """Half the size from now on. Raises MemoryFullError at 1, where there is nothing left to halve."""
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
    """work(batch.size), tried again with half of it each time memory runs out. Our own.

    The work must be restartable: what it left behind when it failed must not count twice. Raises MemoryFullError when
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
    """Is it a GPU, or a host, without memory to give? Libraries below PyTorch say so in words of their own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def free() -> None:
    """Give back what nobody holds any more; cycles may hold tensors that would stay on the card."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def groups(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in order of length, grouped so that a group, padded to its longest, is at most `budget` tokens.

    A group of some size is closed early where the next, longer row would make more than a tenth of it padding. One row
    longer than the budget is a group of its own.

    >>> groups([0, 1, 2, 3], [1, 2, 2, 6], 6)
    [[0, 1, 2], [3]]
    """
    result: list[list[int]] = []
    real = 0  # tokens of the last group, without padding
    for index in order:
        length = lengths[index]
        padded = (len(result[-1]) + 1) * length if result else 0
        wasteful = real >= ENOUGH_TOKENS and padded > MOST_PADDING * (real + length)
        if result and padded <= budget and not wasteful:
            result[-1].append(index)
            real += length
        else:
            result.append([index])
            real = length
    return result
