"""Fingerprints of what a run reads: they show later that a file is gone or no longer the same."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from lite_c2f.config.data import Source
from lite_c2f.config.settings import Config
from lite_c2f.config.settings_diff import in_recorded_form
from lite_c2f.data.sources import local_files
from lite_c2f.errors import RunError
from lite_c2f.runs.models import TOY, ModelPair
from lite_c2f.storage.files import hash_of

SMALL = 64 * 2**20  # bytes; of larger files both ends and a sample are read
END = 2**20
BLOCK, BLOCKS = 2**16, 64  # bytes of a block of the sample, and how many there are over the file
LONGEST_HEADER = 100_000_000  # bytes; the safetensors library reads no longer one
SUFFIXES = (".json", ".safetensors", ".model", ".jinja", ".txt")
NUMBERED = re.compile(r"^(data\..*) \((\d+)\)$")


def fingerprints(config: Config, models: ModelPair) -> dict[str, str]:
    """{what: size and hash} of every data file and of both models' files; hub datasets by name and revision.

    Weights are gigabytes, so that files above 64 MiB are compared by a sample (`fingerprint`).
    """
    entries: dict[str, str] = {}
    for key in ("preferences", "prompts"):
        for name, value in _data(getattr(config.data, key)):
            entry = f"data.{key}: {name}"
            number = 1
            while entry in entries:  # files of one name, or folders of one hub dataset
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
    """{weight file: size and hash} of the model ("base" or "instruct"), out of `fingerprints`."""
    start = f"model.{model}: "
    files = {name.removeprefix(start): text for name, text in inputs.items() if name.startswith(start)}
    return {name: text for name, text in files.items() if name.endswith(".safetensors")}


def fingerprint(file: Path) -> str:
    """Size and hash of a file; of one above 64 MiB "SIZE bytes, ends HASH, blocks HASH".

    ends: the first and the last MiB, all that earlier versions compared. blocks: the header of a safetensors file, 64
    KiB in the middle of each of its tensors, and 64 blocks of 64 KiB evenly over any file. A model whose weights
    were trained or merged differs in every tensor that this touched, and is noticed; a change of a few values, of some
    rows of a table or of some lines of a large data file is not noticed where no block of the sample holds it.
    """
    size = file.stat().st_size
    if size <= SMALL:
        return f"{size} bytes, {hash_of(file)[:16]}"
    digest = xxhash.xxh3_128()
    with file.open("rb") as source:
        digest.update(source.read(END))
        source.seek(-END, 2)
        digest.update(source.read(END))
        return f"{size} bytes, ends {digest.hexdigest()[:16]}, blocks {_hash_of_sample(source, size)}"


def _hash_of_sample(source: BinaryIO, size: int) -> str:
    digest = xxhash.xxh3_128()
    places = [index * (size - BLOCK) // (BLOCKS - 1) for index in range(BLOCKS)]
    source.seek(0)
    length = int.from_bytes(source.read(8), "little")
    if length <= min(LONGEST_HEADER, size - 8):
        header = source.read(length)
        tensors = _middles(header, 8 + length)
        if tensors:
            digest.update(header)
        places += [place for place in tensors if 0 <= place < size]
    for place in sorted(places):
        source.seek(place)
        digest.update(source.read(BLOCK))
    return digest.hexdigest()[:16]


def _middles(header: bytes, start: int) -> list[int]:
    """Where a block in the middle of each tensor begins, in bytes; none for a file that is not safetensors.

    start: where the data begin, to which a header's offsets refer. A block may reach beyond a small tensor.
    """
    try:
        tensors = json.loads(header)
        ranges = [entry["data_offsets"] for name, entry in tensors.items() if name != "__metadata__"]
        return [start + max(first, (first + end - BLOCK) // 2) for first, end in ranges]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """A sentence for each input that is gone, new or different."""
    sentences = []
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            sentences.append(f"{name} was {before.get(name, 'not there')}, is {now.get(name, 'gone')}")
    return sentences


def refuse_changes(run: Path, before: dict[str, str], now: dict[str, str], *, force: bool) -> list[str]:
    """Raise RunError naming the first input that is not what the run began with; with `force` return them all."""
    sentences = changes(before, as_before(before, now))
    if sentences and not force:
        more = f" (and {len(sentences) - 1} more)" if len(sentences) > 1 else ""
        raise RunError.because(
            f"'{run}' began with other inputs: {sentences[0]}{more}",
            "the same data and models",
            "bring them back, use another --run-dir, or accept them with --force",
        )
    return sentences


def as_before(before: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """Fingerprints in the form of an earlier version, where that wrote `before`.

    It had one entry for all data files of one name, that of the last file, and of large files the hash of both ends.
    """
    merged = dict(now)
    for name in now:
        if (numbered := NUMBERED.match(name)) and f"{numbered[1]} (2)" not in before and numbered[1] in before:
            merged[numbered[1]] = merged.pop(name)  # in the order of the files: the last one stays
    return {key: str(value) for key, value in in_recorded_form(before, merged).items()}


def _data(sources: Iterable[Source]) -> Iterable[tuple[str, str]]:
    for source in sources:
        if source.path == TOY:
            continue
        files: list[Any] = local_files(source.path)
        if not files:
            yield source.path, f"hub, revision {source.revision}"
        for file in files:
            yield Path(file).name, fingerprint(file)
