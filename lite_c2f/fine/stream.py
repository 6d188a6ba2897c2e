"""Stream of a merge: read in order, changed on several threads, written in order; a few chunks in memory."""

import contextlib
import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from lite_c2f.fine import shards
from lite_c2f.fine.change import WeightChange, bytes_of, check_finite, merged_rows, tensor_of
from lite_c2f.fine.delta import DTYPES, Delta
from lite_c2f.fine.report import TensorChange
from lite_c2f.fine.shards import TensorEntry, part_of
from lite_c2f.fine.sparsify import Treatment
from lite_c2f.fine.staging import StagingFolder

Progress = Callable[[int, int], None]  # (bytes done, bytes in all), weights only
T = TypeVar("T")

CODES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
# Elements worked on at once: the float32 temporaries (1 MiB each) stay in the processor's cache. Slower on 2 cores:
# 2**16; no faster: 2**19 and 2**20, with 50 and 150 MiB more at the peak.
CHUNK_ELEMENTS = 2**18
# BLAS computes a product of 16 rows bit-identically to the same rows of the whole product; a single row uses another
# kernel, and about half of its elements differ in the last bit.
CHUNK_ROWS = 16
# The report's sums take as long as the merge itself, so that only every eighth chunk is counted for weights of more
# than 16 chunks (4 million elements).
COUNT_ALL, COUNT_EVERY = 16, 8
MAX_WORKERS = 4  # 20 MiB each at the peak


class ChunkJob(NamedTuple):
    """A checked merge: the deltas and ratios by weight, the files, and the output's dtype."""

    config: dict[str, Any]  # config.json of the instruct model
    files: dict[Path, list[TensorEntry]]  # its weight files, in order
    deltas: dict[str, Delta]
    base: dict[str, TensorEntry]  # weights of the base by name; empty without a base
    ratios: dict[str, float]
    dtype: str | None
    treatment: Treatment
    tied: str | None
    aliases: dict[str, str]  # a second copy of a tied weight -> the weight whose ratio and random bits it shares
    total: int  # bytes of the output's weights
    base_files: tuple[Path, ...]
    notes: tuple[str, ...]


def write_shards(
    job: ChunkJob, staging: StagingFolder, progress: Progress | None
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Write the missing shards; (records of all shards, hashes of the base's files), each by file name."""
    done = 0
    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    threads = torch.get_num_threads()
    keep_freed_memory()
    torch.set_num_threads(1)  # chunks go to different threads, not the rows of a chunk
    pool, flusher, hasher = ThreadPoolExecutor(workers), ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    try:
        base_hashes = {file.name: hasher.submit(shards.hash_of, file) for file in job.base_files}
        flushing: list[Future] = []
        for file, entries in job.files.items():
            size = sum(stored_size(entry, job.dtype) for entry in entries)
            if file.name not in staging.shards:
                shard = _Shard(job, file, entries, pool, workers + 2)
                bytes_before = done

                def step(written: int, bytes_before: int = bytes_before) -> None:
                    if progress is not None:
                        progress(bytes_before + written, job.total)

                sha256 = shard.write(staging.folder / file.name, step)
                changes = {name: vars(change) for name, change in shard.changes.items()}
                record = {"input": shard.input_hash(), "changes": changes, "caps": shard.caps}
                flushing.append(flusher.submit(staging.finish, file.name, sha256, **record))
            elif progress is not None:
                progress(done + size, job.total)
            done += size
        for future in flushing:
            future.result()
        hashes = {name: future.result() for name, future in base_hashes.items()}
        return {file.name: staging.shards[file.name] for file in job.files}, hashes
    finally:
        flusher.shutdown(wait=True)  # finished shards are still added to the journal
        for executor in (pool, hasher):
            executor.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


class _Shard:
    """One shard: read in order by one thread, changed by several, written in order."""

    def __init__(
        self, job: ChunkJob, file: Path, entries: Sequence[TensorEntry], pool: ThreadPoolExecutor, ahead: int
    ) -> None:
        self.job, self.file, self.entries, self.pool, self.ahead = job, file, entries, pool, ahead
        self.changes: dict[str, TensorChange] = {}
        self.caps: dict[str, float] = {}
        self._reader: shards.Reader | None = None

    def write(self, target: Path, step: Callable[[int], None]) -> str:
        """Write it and return its sha256. step: called with the bytes written so far."""
        layout = [(entry.name, stored_as(entry, self.job.dtype), entry.shape) for entry in self.entries]
        # The widest first keeps every tensor aligned, whatever the new dtype.
        order = sorted(range(len(layout)), key=lambda index: -shards.ITEM_BYTES[layout[index][1]])
        with shards.Reader(self.file, in_order=order == list(range(len(order)))) as self._reader:
            tasks = self._tasks([self.entries[index] for index in order])
            return shards.write_shard(target, [layout[index] for index in order], self._chunks(tasks, step))

    def input_hash(self) -> str:
        """The hash of the file that was read, as `hash_of` gives it."""
        assert self._reader is not None
        return self._reader.hash()

    def _chunks(self, tasks: Iterator[Future], step: Callable[[int], None]) -> Iterator[shards.Chunk]:
        written = 0
        for name, chunk, change in results_in_order(tasks, self.ahead):
            if change is not None:
                self.changes.setdefault(name, TensorChange()).add(change)
            written += len(chunk)
            yield chunk
            step(written)

    def _tasks(self, entries: Sequence[TensorEntry]) -> Iterator[Future]:
        """Read chunk after chunk, and submit each to a thread."""
        assert self._reader is not None
        for entry in entries:
            weight_change = self._open(entry)
            chunks = row_chunks(entry)
            for index, rows in enumerate(chunks):
                chunk = self._reader.read(part_of(entry, rows.start, rows.stop - rows.start))
                counts = len(chunks) <= COUNT_ALL or index % COUNT_EVERY == 0
                yield self.pool.submit(self._task, entry, weight_change, rows, chunk, counts)

    def _open(self, entry: TensorEntry) -> WeightChange | None:
        job = self.job
        if entry.name not in job.deltas or not entry.size:
            return None

        def parts(function: Callable[[slice], T]) -> Iterator[T]:
            return results_in_order((self.pool.submit(function, rows) for rows in row_chunks(entry)), self.ahead)

        name = entry.name
        ratio, random_name = job.ratios[name], job.aliases.get(name, name)
        weight_change = WeightChange(
            entry, job.base.get(name), job.deltas[name], ratio, job.treatment, parts, random_name
        )
        if weight_change.cap is not None:
            self.caps[name] = weight_change.cap
        return weight_change

    def _task(
        self, entry: TensorEntry, weight_change: WeightChange | None, rows: slice, chunk: shards.Buffer, counts: bool
    ) -> tuple[str, shards.Chunk, TensorChange | None]:
        code = stored_as(entry, self.job.dtype)
        if weight_change is None and code == entry.dtype:
            return entry.name, chunk, None
        weight, change = tensor_of(chunk, entry), None
        if weight_change is None:
            weight = weight.to(DTYPES[code])
        else:
            weight, change = merged_rows(weight_change, rows, weight, DTYPES[code], counts)
        check_finite(weight, entry)
        return entry.name, bytes_of(weight), change


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, which it would otherwise return to the system after every chunk.

    That would cost 1 million page faults in a merge of 1.7 GiB and a third of its time; peak memory is the same.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**26)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**28)  # M_TRIM_THRESHOLD
        libc.mallopt(-2, 2**24)  # M_TOP_PAD


def results_in_order(tasks: Iterable[Future], ahead: int) -> Iterator[Any]:
    """The results of futures in their order, with at most `ahead` of them running."""
    waiting: deque[Future] = deque()
    try:
        for task in tasks:
            waiting.append(task)
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for task in waiting:
            task.cancel()


def row_chunks(entry: TensorEntry) -> list[slice]:
    """Rows of a tensor, about CHUNK_ELEMENTS elements at a time, in multiples of CHUNK_ROWS and never a single one."""
    if not entry.size:
        return []
    rows = entry.shape[0] if entry.shape else 1
    columns = max(1, entry.size // max(rows, 1) // shards.ITEM_BYTES[entry.dtype])
    step = max(CHUNK_ROWS, CHUNK_ELEMENTS // columns // CHUNK_ROWS * CHUNK_ROWS)
    bounds = [*range(0, rows, step), rows]
    if len(bounds) > 2 and bounds[-1] - bounds[-2] == 1:
        del bounds[-2]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def stored_as(entry: TensorEntry, dtype: str | None) -> str:
    """The dtype a tensor will have, as safetensors names it."""
    return CODES[dtype] if dtype is not None and entry.dtype in DTYPES else entry.dtype


def stored_size(entry: TensorEntry, dtype: str | None) -> int:
    """The bytes it will have."""
    return entry.size // shards.ITEM_BYTES[entry.dtype] * shards.ITEM_BYTES[stored_as(entry, dtype)]
