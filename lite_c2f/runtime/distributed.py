"""Processes of one run, one per GPU, as started by `accelerate launch`. In a single process these functions do nothing.

Every process has all adapters and the whole state of the training loop, so that every decision (limit, KL
coefficient, skipped updates) follows from the same numbers; only the rows of a batch are distributed. Imports no torch
before there is a group of processes.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lite_c2f.errors import FollowerError

if TYPE_CHECKING:
    from torch import Tensor

TIMEOUT = timedelta(hours=6)  # the others wait while the first process evaluates, samples and publishes
BUCKET = 2**24  # elements summed at a time: 64 MiB in float32


def _in_group() -> bool:
    """Has this process joined a group? None has before torch is loaded."""
    dist = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_initialized()


def join() -> None:
    """Join the process group of a launcher, on this process's GPU; does nothing without a launcher."""
    launched = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    if launched and int(os.environ["WORLD_SIZE"]) > 1 and not _in_group():
        from accelerate import PartialState

        PartialState(timeout=TIMEOUT)


def leave() -> None:
    """Leave the process group: from here on every process continues, or ends, alone."""
    if _in_group():
        import torch.distributed as dist

        dist.barrier()
        dist.destroy_process_group()


def world() -> int:
    """Number of processes."""
    if not _in_group():
        return 1
    import torch.distributed as dist

    return dist.get_world_size()


def rank() -> int:
    """Number of this process, from 0."""
    if not _in_group():
        return 0
    import torch.distributed as dist

    return dist.get_rank()


def is_first() -> bool:
    """Whether this is the first process, which writes files and shows progress."""
    return rank() == 0


def share(rows: Sequence[int], sizes: Sequence[float]) -> list[int]:
    """This process's share of the rows, dealt out back and forth by size, so that all shares are about equal.

    sizes: of all rows, by number.

    >>> share([0, 1, 2], [5, 6, 7])
    [0, 1, 2]
    """
    count, place = world(), rank()
    if count == 1:
        return list(rows)
    order = sorted(rows, key=lambda row: (-sizes[row], row))
    return [row for index, row in enumerate(order) if index % (2 * count) in (place, 2 * count - 1 - place)]


def add(tensors: "Sequence[Tensor]") -> None:
    """Sum each tensor over all processes, in place; all of one type, on one device."""
    if world() == 1:
        return
    import torch
    import torch.distributed as dist

    bucket: list[Tensor] = []
    for index, tensor in enumerate(tensors):
        bucket.append(tensor)
        if sum(part.numel() for part in bucket) >= BUCKET or index == len(tensors) - 1:
            flat = torch.cat([part.reshape(-1) for part in bucket])
            dist.all_reduce(flat)
            for part, summed in zip(bucket, flat.split([part.numel() for part in bucket]), strict=True):
                part.copy_(summed.view_as(part))
            bucket = []


def gather(value: Any) -> list[Any]:
    """Every process's value, by rank. For small values only: they are pickled between the processes."""
    if world() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Wait until all processes reach this point."""
    if _in_group():
        import torch.distributed as dist

        dist.barrier()


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """The first process runs the block before the others, which then find what it trained, downloaded or wrote.

    Raises FollowerError in the others when it fails.
    """
    if not is_first():
        if gather(False)[0]:
            raise FollowerError("the first process gave up")
        yield
        return
    failed = True
    try:
        yield
        failed = False
    finally:
        gather(failed)


def is_lost(error: BaseException) -> bool:
    """Whether an error only means that another process has ended."""
    return _in_group() and any(words in str(error) for words in ("Connection closed", "Connection reset"))
