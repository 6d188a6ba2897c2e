"""Safetensors files as streams: no whole shard and no whole tensor in memory. Imports no torch."""

import hashlib
import json
import math
import os
import shutil
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from lite_c2f.backbone.weights import INDEX, SINGLE, read_index, weight_files
from lite_c2f.errors import C2FError, ModelError
from lite_c2f.storage.files import hash_of

Buffer = npt.NDArray[np.uint8]  # unlike a bytearray, not zeroed first
Chunk = Any  # anything with a buffer: bytes, a memoryview, a NumPy array

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 2),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
}
MAX_PENDING_CHUNKS = 4  # chunks that may wait to be written
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
WEIGHT_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".npz"),
    *(".safetensors.index.json", ".bin.index.json", ".h5.index.json", ".msgpack.index.json"),
)


class TensorEntry(NamedTuple):
    """Position of one tensor in a file."""

    name: str
    dtype: str  # as safetensors names it: "BF16", "F16", "F32", ...
    shape: tuple[int, ...]
    file: Path
    start: int  # bytes from the start of the file
    size: int  # bytes


def read_model(folder: Path) -> dict[Path, list[TensorEntry]]:
    """The tensors of every weight file of a model folder, in file order; only headers are read.

    Raises ModelError naming the file when the index and the files disagree, or a file is damaged.
    """
    shards = {file: read_header(file) for file in weight_files(folder)}
    files_of: dict[str, str] = {}
    for file, entries in shards.items():
        for entry in entries:
            if entry.name in files_of:
                raise ModelError.because(
                    f"'{entry.name}' is in '{files_of[entry.name]}' and in '{file.name}'",
                    "every tensor once",
                    "download the model again",
                )
            files_of[entry.name] = file.name
    listed = files_of if (folder / SINGLE).is_file() else read_index(folder)
    for name in sorted(files_of.keys() | listed.keys()):
        if files_of.get(name) != listed.get(name):
            raise ModelError.because(
                f"{INDEX} of '{folder}' puts '{name}' into '{listed.get(name)}' but it is in '{files_of.get(name)}'",
                "an index that fits its files",
                "download the model again",
            )
    return shards


def read_header(file: Path) -> list[TensorEntry]:
    """The tensors of one safetensors file in the order of their bytes.

    Raises ModelError naming the file when it is missing, truncated, or not a safetensors file.
    """
    try:
        with file.open("rb") as source:
            file_size = source.seek(0, 2)
            source.seek(0)
            header_size = int.from_bytes(source.read(8), "little")
            if not 2 <= header_size <= min(MAX_HEADER_BYTES, file_size - 8):
                raise _damaged(file, f"its header length is {header_size} in a file of {file_size} bytes")
            header = json.loads(source.read(header_size))
        header.pop("__metadata__", None)
        entries = [_entry(file, 8 + header_size, name, info) for name, info in header.items()]
    except OSError as error:
        got = f"cannot read '{file}': {error.strerror}"
        raise ModelError.because(got, "every weight file", "download it again") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged(file, "its header cannot be read") from None
    entries.sort(key=lambda entry: (entry.start, entry.size))
    end = 8 + header_size
    for entry in entries:
        if entry.start != end or entry.size != math.prod(entry.shape) * ITEM_BYTES[entry.dtype]:
            raise _damaged(file, f"the bytes of '{entry.name}' do not fit its shape or its neighbours")
        end += entry.size
    if end != file_size:
        raise _damaged(file, f"it has {file_size} bytes instead of {end}")
    return entries


def read_bytes(entry: TensorEntry) -> Buffer:
    """The bytes of one tensor in a new buffer. Raises ModelError naming the file when it ends early."""
    buffer = np.empty(entry.size, np.uint8)
    with entry.file.open("rb", buffering=0) as source:
        source.seek(entry.start)
        read_into(source, buffer, entry)
    return buffer


def read_into(source: FileIO, buffer: Buffer, entry: TensorEntry) -> None:
    """Read the next bytes of a file into a buffer. Raises ModelError naming the file when there are too few."""
    view, done = buffer.data, 0
    while done < len(buffer):
        read = source.readinto(view[done:])
        if not read:
            raise _damaged(entry.file, f"it ends within '{entry.name}'")
        done += read


def part_of(entry: TensorEntry, first: int, rows: int) -> TensorEntry:
    """The entry of rows `first` to `first + rows` of a tensor."""
    if not entry.shape:
        return entry
    width = entry.size // entry.shape[0] if entry.shape[0] else 0
    return entry._replace(start=entry.start + first * width, size=rows * width, shape=(rows, *entry.shape[1:]))


class Reader:
    """Reader of tensors, or rows of them, of one file; hashes the file while reading if that is in order."""

    def __init__(self, file: Path, in_order: bool) -> None:
        self.file, self._in_order = file, in_order
        self._digest = xxhash.xxh3_128()

    def __enter__(self) -> "Reader":
        self._source = self.file.open("rb", buffering=0)
        if self._in_order:
            size = int.from_bytes(head := self._source.read(8), "little")
            self._digest.update(head + self._source.read(size))
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def read(self, entry: TensorEntry) -> Buffer:
        """The bytes of a tensor or of a part of it, in a new buffer."""
        buffer = np.empty(entry.size, np.uint8)
        if self._source.tell() != entry.start:
            self._source.seek(entry.start)
        read_into(self._source, buffer, entry)
        if self._in_order:
            self._digest.update(buffer.data)
        return buffer

    def hash(self) -> str:
        """The hash of the whole file as `hash_of` gives it, once everything in it was read."""
        return self._digest.hexdigest() if self._in_order else hash_of(self.file)


def sha256_of(file: Path) -> str:
    """The sha256 of a file, in hex."""
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def write_shard(file: Path, layout: list[tuple[str, str, tuple[int, ...]]], chunks: Iterable[Chunk]) -> str:
    """Write one safetensors file, header first, from chunks of bytes in the layout's order; return its sha256.

    layout: (name, dtype, shape) of every tensor. Writing and hashing run in another thread while the next
    chunk is computed, so a chunk must not be changed afterwards. The file is not flushed to the disk.
    Raises RuntimeError when the chunks do not fill the layout.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in layout:
        start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest, written = hashlib.sha256(), 0
    with file.open("wb", buffering=0) as target, ThreadPoolExecutor(1) as writer:

        def put(chunk: Chunk) -> None:
            _write_all(target, chunk)
            digest.update(chunk)

        allocate(target, 8 + len(text) + end)
        pending: deque[Future] = deque()
        for chunk in chain([len(text).to_bytes(8, "little") + text], chunks):
            pending.append(writer.submit(put, chunk))
            while len(pending) > MAX_PENDING_CHUNKS:
                pending.popleft().result()
            written += len(chunk)
        for future in pending:
            future.result()
    if written - 8 - len(text) != end:
        raise RuntimeError(f"'{file.name}' has {written - 8 - len(text)} bytes of data, its header says {end}")
    return digest.hexdigest()


def allocate(file: FileIO, size: int) -> None:
    """Allocate a whole file at once: a full disk is noticed early, and writing takes a third less time."""
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)


def _write_all(target: FileIO, chunk: Chunk) -> None:
    view = memoryview(chunk).cast("B")
    while len(view):
        view = view[target.write(view) :]


def write_index(folder: Path, weight_map: dict[str, str], total_bytes: int) -> None:
    """Write the index of a model of several shards (tensor name -> file name)."""
    content = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def other_files(folder: Path) -> list[Path]:
    """Every file of a model folder, relative to it, that holds no weights: config, tokenizer, chat template, ..."""
    files = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part in (".git", ".cache") for part in relative.parts)
        if path.is_symlink() and not path.exists():
            got = f"'{path}' is a link that leads nowhere"
            raise ModelError.because(got, "a whole model folder", "download the model again")
        if path.is_symlink() and path.is_dir() and not hidden:
            got = f"'{path}' is a link to a folder"
            raise ModelError.because(got, "plain files, or links to files", "put the folder itself there")
        if path.is_file() and not hidden and not path.name.endswith(WEIGHT_SUFFIXES):
            files.append(relative)
    return files


def copy_files(source: Path, target: Path, files: list[Path]) -> None:
    """Copy files byte for byte, links followed: a hub cache links its files to blobs."""
    for relative in files:
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / relative, target / relative)


def _entry(file: Path, data_start: int, name: str, info: dict[str, Any]) -> TensorEntry:
    name.encode()  # a UnicodeEncodeError, which is a ValueError, where it is no text
    start, end = info["data_offsets"]
    shape = tuple(info["shape"])
    if info["dtype"] not in ITEM_BYTES or not all(type(size) is int and size >= 0 for size in (*shape, start, end)):
        raise ValueError(name)
    return TensorEntry(name, info["dtype"], shape, file, data_start + start, end - start)


def _damaged(file: Path, reason: str) -> C2FError:
    return ModelError.because(f"'{file}' is damaged: {reason}", "a whole safetensors file", "download it again")
