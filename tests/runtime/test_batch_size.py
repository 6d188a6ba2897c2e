"""Work that is done again in smaller parts, and grouping by tokens."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lite_c2f.errors import MemoryFullError
from lite_c2f.runtime.batch_size import BatchSize, groups_by_length, is_out_of_memory, retry_smaller


def full(limit, error=torch.OutOfMemoryError):
    def work(size):
        if size > limit:
            raise error("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has ...")
        return size

    return work


def test_halves_until_it_fits_and_remembers(caplog):
    told = []
    batch = BatchSize("coarse.sampling_batch", 20, told.append)
    with caplog.at_level(logging.WARNING):
        assert retry_smaller(batch, full(6)) == 5
    assert retry_smaller(batch, full(6)) == 5 and batch.halved == 2
    assert told == [
        "out of memory: coarse.sampling_batch 20 -> 10, doing that part again",
        "out of memory: coarse.sampling_batch 10 -> 5, doing that part again",
    ]
    assert len(caplog.records) == 2 and "Tried to allocate" in caplog.text


def test_gives_up_at_one_with_one_line():
    batch = BatchSize("rows", 4)
    with pytest.raises(
        MemoryFullError, match=r"^out of memory at rows=1 .*; expected room for one row; shorten"
    ) as error:
        retry_smaller(batch, full(0))
    assert "\n" not in str(error.value) and error.value.exit_code == 2


def test_what_failed_is_freed_before_it_is_tried_again():
    """The first attempt's tensor must be gone when the second begins: on a full card it would not fit otherwise."""
    alive = []

    class Held:
        def __init__(self):
            alive.append(1)

        def __del__(self):
            alive.pop()

    def work(size):
        held = Held()
        assert len(alive) == 1, "the first attempt still holds its memory"
        if size > 1:
            raise torch.OutOfMemoryError("full")
        return held

    retry_smaller(BatchSize("rows", 4), work)


def test_only_a_lack_of_memory_counts():
    assert is_out_of_memory(torch.OutOfMemoryError("x")) and is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."))
    for words in (
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ):
        assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(RuntimeError("shape mismatch")) and not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError, match="shape"):
        retry_smaller(BatchSize("rows", 4), full(0, lambda _: RuntimeError("shape")))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 200))
def test_groups_hold_every_index_once_within_the_budget(lengths, budget):
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    found = groups_by_length(order, lengths, budget)
    assert [index for group in found for index in group] == order
    for group in found:
        assert len(group) == 1 or len(group) * max(lengths[index] for index in group) <= budget
