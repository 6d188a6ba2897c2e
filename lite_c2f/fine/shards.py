"""Stream safetensors in and out: never a whole shard, nor even a whole tensor, in memory. No torch in here."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lite_c2f.errors import C2FError, ModelError

Chunk = bytes | bytearray | memoryview

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 2),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
}
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
WEIGHT_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".npz"),
    *(".safetensors.index.json", ".bin.index.json", ".h5.index.json", ".msgpack.index.json"),
)


class TensorEntry(NamedTuple):
    """Where one tensor lies."""

    name: str
    dtype: str  # as safetensors names it: "BF16", "F16", "F32", ...
    shape: tuple[int, ...]
    file: Path
    start: int  # bytes from the start of the file
    size: int  # bytes


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: model.safetensors, or else those that the index names.

    Raises ModelError when there are only pickles, when the index is damaged, or when a shard is missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return [folder / name for name in sorted(set(_read_index(folder).values()))]
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth"))
    raise ModelError.because(
        f"no {SINGLE} or {INDEX} in '{folder}'" + (f", only the pickle '{pickles[0]}'" if pickles else ""),
        "weights as safetensors",
        "load the model with transformers and save it again" if pickles else "check the path",
    )


def read_model(folder: Path) -> dict[Path, list[TensorEntry]]:
    """The tensors of every weight file of a model folder, in file order; only headers are read.

    Raises ModelError naming the file when the index and the files disagree, or a file is damaged.
    """
    shards = {file: read_header(file) for file in weight_files(folder)}
    found: dict[str, str] = {}
    for file, entries in shards.items():
        for entry in entries:
            if entry.name in found:
                raise ModelError.because(
                    f"'{entry.name}' is in '{found[entry.name]}' and in '{file.name}'",
                    "every tensor once",
                    "download the model again",
                )
            found[entry.name] = file.name
    listed = found if (folder / SINGLE).is_file() else _read_index(folder)
    for name in sorted(found.keys() | listed.keys()):
        if found.get(name) != listed.get(name):
            raise ModelError.because(
                f"{INDEX} of '{folder}' puts '{name}' into '{listed.get(name)}' but it is in '{found.get(name)}'",
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
    except (ValueError, KeyError, TypeError, AttributeError):
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


def read_chunks(source: BinaryIO, entry: TensorEntry, chunk_bytes: int) -> Iterator[bytearray]:
    """The bytes of one tensor, `chunk_bytes` at a time, each in a buffer of its own (so that it can be kept).

    Raises ModelError naming the file when it ends early.
    """
    source.seek(entry.start)
    for start in range(0, entry.size, chunk_bytes):
        chunk = bytearray(min(chunk_bytes, entry.size - start))
        if source.readinto(chunk) != len(chunk):  # type: ignore[attr-defined]
            raise _damaged(entry.file, f"it ends within '{entry.name}'")
        yield chunk


def write_shard(file: Path, layout: list[tuple[str, str, tuple[int, ...]]], chunks: Iterable[Chunk]) -> str:
    """Write one safetensors file, header first, from chunks of bytes in the layout's order; return its sha256.

    layout: (name, dtype, shape) of every tensor. Writing and hashing run in a thread beside the making of the next
    chunk, so a chunk must not be reused after it was given. At most two chunks are alive at a time.
    Raises RuntimeError when the chunks do not fill the layout.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in layout:
        start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with file.open("wb") as target, ThreadPoolExecutor(1) as pool:

        def put(chunk: Chunk) -> None:
            target.write(chunk)
            digest.update(chunk)

        pending = pool.submit(put, len(text).to_bytes(8, "little") + text)
        for chunk in chunks:
            pending.result()
            pending = pool.submit(put, chunk)
        pending.result()
        written = target.tell() - 8 - len(text)
        if written != end:
            raise RuntimeError(f"'{file.name}' has {written} bytes of data, its header says {end}")
    return digest.hexdigest()


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
        if path.is_file() and not hidden and not path.name.endswith(WEIGHT_SUFFIXES):
            files.append(relative)
    return files


def copy_files(source: Path, target: Path, files: list[Path]) -> None:
    """Copy files byte for byte, links followed: a hub cache links its files to blobs."""
    for relative in files:
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / relative, target / relative)


def _read_index(folder: Path) -> dict[str, str]:
    file = folder / INDEX
    try:
        weight_map = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        # A shard lies beside its index: a path that leads elsewhere would be read from, and written to, elsewhere.
        names = weight_map.values()
        if weight_map and all(Path(name).name == name and name.endswith(".safetensors") for name in names):
            return weight_map
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ModelError.because(
        f"'{file}' cannot be read",
        "a weight_map from tensors to safetensors files beside it",
        "download the model again",
    )


def _entry(file: Path, data_start: int, name: str, info: dict[str, Any]) -> TensorEntry:
    start, end = info["data_offsets"]
    shape = tuple(info["shape"])
    if info["dtype"] not in ITEM_BYTES or not all(type(size) is int and size >= 0 for size in (*shape, start, end)):
        raise ValueError(name)
    return TensorEntry(name, info["dtype"], shape, file, data_start + start, end - start)


def _damaged(file: Path, reason: str) -> C2FError:
    return ModelError.because(f"'{file}' is damaged: {reason}", "a whole safetensors file", "download it again")
