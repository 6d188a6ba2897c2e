"""What a run reads, in short: enough to notice on a later day that a file is gone or no longer the same."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from lite_c2f.config import Config, Source
from lite_c2f.data.sources import local_files
from lite_c2f.errors import RunError
from lite_c2f.inputs import TOY, ModelPair
from lite_c2f.runs import hash_of

SMALL = 64 * 2**20  # bytes; of larger files only both ends are read
END = 2**20
SUFFIXES = (".json", ".safetensors", ".model", ".jinja", ".txt")
NUMBERED = re.compile(r"^(data\..*) \((\d+)\)$")


def fingerprints(config: Config, models: ModelPair) -> dict[str, str]:
    """{what: size and hash} of every data file and of both models' files; hub datasets by name and revision.

    Weights are gigabytes: of files above 64 MiB the size, the first and the last MiB count (the header with all names
    and shapes is at the beginning).
    """
    found: dict[str, str] = {}
    for key in ("preferences", "prompts"):
        for name, value in _data(getattr(config.data, key)):
            entry = f"data.{key}: {name}"
            number = 1
            while entry in found:  # files of one name, or folders of one hub dataset
                number += 1
                entry = f"data.{key}: {name} ({number})"
            found[entry] = value
    return found | fingerprints_of_models(models)


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
    found = {name.removeprefix(start): text for name, text in inputs.items() if name.startswith(start)}
    return {name: text for name, text in found.items() if name.endswith(".safetensors")}


def fingerprint(file: Path) -> str:
    """Size and hash of a file; of a large one the hash of both its ends."""
    size = file.stat().st_size
    if size <= SMALL:
        return f"{size} bytes, {hash_of(file)[:16]}"
    digest = xxhash.xxh3_128()
    with file.open("rb") as source:
        digest.update(source.read(END))
        source.seek(-END, 2)
        digest.update(source.read(END))
    return f"{size} bytes, ends {digest.hexdigest()[:16]}"


def changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """A sentence for each input that is gone, new or different."""
    told = []
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            told.append(f"{name} was {before.get(name, 'not there')}, is {now.get(name, 'gone')}")
    return told


def refuse_changes(run: Path, before: dict[str, str], now: dict[str, str], *, force: bool) -> list[str]:
    """Raise RunError naming the first input that is not what the run began with; with `force` return them all."""
    told = changes(before, as_before(before, now))
    if told and not force:
        more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
        raise RunError.because(
            f"'{run}' began with other inputs: {told[0]}{more}",
            "the same data and models",
            "bring them back, use another --run-dir, or accept them with --force",
        )
    return told


def as_before(before: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """Fingerprints in the form of an earlier version, where that wrote `before`.

    It had one entry for all data files of one name, that of the last file.
    """
    merged = dict(now)
    for name in now:
        if (numbered := NUMBERED.match(name)) and f"{numbered[1]} (2)" not in before and numbered[1] in before:
            merged[numbered[1]] = merged.pop(name)  # in the order of the files: the last one stays
    return merged


def _data(sources: Iterable[Source]) -> Iterable[tuple[str, str]]:
    for source in sources:
        if source.path == TOY:
            continue
        files: list[Any] = local_files(source.path)
        if not files:
            yield source.path, f"hub, revision {source.revision}"
        for file in files:
            yield Path(file).name, fingerprint(file)
