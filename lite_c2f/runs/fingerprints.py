"""Fingerprints of a run's input files, to detect later that a file is missing or changed."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from lite_c2f.config.data import Source
from lite_c2f.config.settings import Config
from lite_c2f.config.settings_diff import in_recorded_format
from lite_c2f.data.sources import local_files
from lite_c2f.errors import RunError
from lite_c2f.runs.model_pair import TOY, ModelPair
from lite_c2f.smollm import SMOLLM
from lite_c2f.smollm.data import ANSWERS
from lite_c2f.storage.files import hash_of

MAX_WHOLE_BYTES = 64 * 2**20  # bytes; of larger files, both ends and a sample are read
END_BYTES = 2**20
BLOCK_BYTES, BLOCK_COUNT = 2**16, 64  # size of a block of the sample, and number of evenly spaced blocks
MAX_HEADER_BYTES = 100_000_000  # the safetensors library's limit
SUFFIXES = (".json", ".safetensors", ".model", ".jinja", ".txt")
NUMBERED = re.compile(r"^(data\..*) \((\d+)\)$")


def fingerprints(config: Config, models: ModelPair) -> dict[str, str]:
    """{input: size and hash} of every data file and of both models' files; hub datasets by name and revision.

    Files above 64 MiB are compared by a sample (`fingerprint`), because weights are gigabytes.
    """
    entries: dict[str, str] = {}
    for key in ("preferences", "prompts"):
        for name, value in _data_fingerprints(getattr(config.data, key)):
            entry = f"data.{key}: {name}"
            number = 1
            while entry in entries:  # files of the same name, or folders of one hub dataset
                number += 1
                entry = f"data.{key}: {name} ({number})"
            entries[entry] = value
    return entries | fingerprints_of_models(models)


def fingerprints_of_models(models: ModelPair) -> dict[str, str]:
    """{"model.NAME: FILE": size and hash} of both models' files."""
    return {
        key: value for name, folder in models._asdict().items() for key, value in fingerprints_of(name, folder).items()
    }


def fingerprints_of(name: str, folder: str) -> dict[str, str]:
    """{"model.NAME: FILE": size and hash} of the files of one model."""
    files = sorted(path for path in Path(folder).glob("*") if path.suffix in SUFFIXES and path.is_file())
    return {f"model.{name}: {file.name}": fingerprint(file) for file in files}


def weights_of(inputs: Mapping[str, str], model: str) -> dict[str, str]:
    """{weight file: size and hash} of one model ("base" or "instruct") from the result of `fingerprints`."""
    start = f"model.{model}: "
    files = {name.removeprefix(start): text for name, text in inputs.items() if name.startswith(start)}
    return {name: text for name, text in files.items() if name.endswith(".safetensors")}


def fingerprint(file: Path) -> str:
    """Size and hash of a file; of one above 64 MiB "SIZE bytes, ends HASH, blocks HASH".

    ends: the first and the last MiB, which is all that earlier versions compared. blocks: the header of a safetensors
    file, 64 KiB in the middle of each of its tensors, and 64 evenly spaced blocks of 64 KiB of any file. Training or
    merging changes whole tensors and is detected; a change of a few values, of some rows of a table or of some lines of
    a large data file is missed if no block of the sample contains it.
    """
    size = file.stat().st_size
    if size <= MAX_WHOLE_BYTES:
        return f"{size} bytes, {hash_of(file)[:16]}"
    digest = xxhash.xxh3_128()
    with file.open("rb") as source:
        digest.update(source.read(END_BYTES))
        source.seek(-END_BYTES, 2)
        digest.update(source.read(END_BYTES))
        return f"{size} bytes, ends {digest.hexdigest()[:16]}, blocks {_hash_of_sample(source, size)}"


def _hash_of_sample(source: BinaryIO, size: int) -> str:
    digest = xxhash.xxh3_128()
    places = [index * (size - BLOCK_BYTES) // (BLOCK_COUNT - 1) for index in range(BLOCK_COUNT)]
    source.seek(0)
    length = int.from_bytes(source.read(8), "little")
    if length <= min(MAX_HEADER_BYTES, size - 8):
        header = source.read(length)
        tensors = _tensor_blocks(header, 8 + length)
        if tensors:
            digest.update(header)
        places += [place for place in tensors if 0 <= place < size]
    for place in sorted(places):
        source.seek(place)
        digest.update(source.read(BLOCK_BYTES))
    return digest.hexdigest()[:16]


def _tensor_blocks(header: bytes, start: int) -> list[int]:
    """Byte offsets of a block in the middle of each tensor; empty for a file that is not safetensors.

    start: offset of the data section, to which the header's offsets refer. A block may be larger than its tensor.
    """
    try:
        tensors = json.loads(header)
        ranges = [entry["data_offsets"] for name, entry in tensors.items() if name != "__metadata__"]
        return [start + max(first, (first + end - BLOCK_BYTES) // 2) for first, end in ranges]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def changed_inputs(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """A sentence for each input that is missing, new or different."""
    sentences = []
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            sentences.append(f"{name} was {before.get(name, 'not there')}, is {now.get(name, 'gone')}")
    return sentences


def refuse_changes(run: Path, before: dict[str, str], now: dict[str, str], *, force: bool) -> list[str]:
    """Raise RunError naming the first input that changed since the run began; with `force` return all changes."""
    sentences = changed_inputs(before, in_earlier_form(before, now))
    if sentences and not force:
        more = f" (and {len(sentences) - 1} more)" if len(sentences) > 1 else ""
        raise RunError.because(
            f"'{run}' began with other inputs: {sentences[0]}{more}",
            "the same data and models",
            "bring them back, use another --run-dir, or accept them with --force",
        )
    return sentences


def in_earlier_form(before: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """Fingerprints in the format of an earlier version, if that version wrote `before`.

    It had one entry for all data files of one name (the last file's), and only the hash of both ends of large files.
    """
    merged = dict(now)
    for name in now:
        if (numbered := NUMBERED.match(name)) and f"{numbered[1]} (2)" not in before and numbered[1] in before:
            merged[numbered[1]] = merged.pop(name)  # in the order of the files, so that the last one remains
    return {key: str(value) for key, value in in_recorded_format(before, merged).items()}


def _data_fingerprints(sources: Iterable[Source]) -> Iterable[tuple[str, str]]:
    for source in sources:
        if source.path == TOY:
            continue
        if source.path == SMOLLM:
            yield SMOLLM, fingerprint(ANSWERS)
            continue
        files: list[Any] = local_files(source.path)
        if not files:
            yield source.path, f"hub, revision {source.revision}"
        for file in files:
            yield Path(file).name, fingerprint(file)
