"""The processes of one run: one a GPU, as `accelerate launch` starts them. Alone, nothing here does anything.

Every process holds all weights of all adapters and the whole state of the loop, so that every decision (limit, KL
coefficient, skipped updates) is taken everywhere from the same numbers; only the rows of a batch are shared out.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lite_c2f.errors import FollowerError

PATIENCE = timedelta(hours=6)  # the first process alone measures, samples and publishes while the others wait
BUCKET = 2**24  # elements summed at a time: 64 MiB in float32


def join() -> None:
    """Become one of the processes of a launcher, on this process's GPU; without a launcher nothing happens."""
    launched = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    if launched and int(os.environ["WORLD_SIZE"]) > 1 and not dist.is_initialized():
        from accelerate import PartialState

        PartialState(timeout=PATIENCE)


def leave() -> None:
    """The end of what is done together: every process goes on, or ends, alone."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def world() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Is this the process that writes and shows?"""
    return rank() == 0


def share(rows: Sequence[int], sizes: Sequence[float]) -> list[int]:
    """This process's part of some rows: dealt out back and forth by size, so that everybody has as much to do.

    sizes: of all rows, by number.

    >>> share([0, 1, 2], [5, 6, 7])
    [0, 1, 2]
    """
    count, place = world(), rank()
    if count == 1:
        return list(rows)
    order = sorted(rows, key=lambda row: (-sizes[row], row))
    return [row for index, row in enumerate(order) if index % (2 * count) in (place, 2 * count - 1 - place)]


def add(tensors: Sequence[Tensor]) -> None:
    """Sum each tensor over all processes, in place; all of one type, on one device."""
    if world() == 1:
        return
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
    """What every process has, by rank. Only for small things: it goes through pickle between our own processes."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process does the block, then the others: what it trains, downloads or writes is there for them.

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
    """Does an error only say that another process has ended?"""
    return dist.is_initialized() and any(words in str(error) for words in ("Connection closed", "Connection reset"))
