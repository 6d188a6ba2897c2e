"""Atomic writes of files and folders; JSON and JSONL files of a run directory."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import xxhash

from lite_c2f.errors import RunError


@contextlib.contextmanager
def publish_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `folder` at the end, so that it appears complete or not at all.

    replace: remove an older folder of that name first. Raises RunError when it exists and replace is False.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not replace:
        raise RunError.because(f"'{folder}' exists", "a new folder", "choose another name or remove it")
    remove_leftovers(folder)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-{os.getpid()}-", dir=folder.parent))
    try:
        yield unfinished
        unfinished.chmod(0o755)
        for path in unfinished.rglob("*"):
            if path.is_file():
                path.chmod(0o644)  # safetensors makes files that only their owner can read
                sync(path)
        sync(unfinished)
        if folder.exists():  # renamed first, because the process may be killed while it removes files
            folder.rename(unfinished.with_name(f"{unfinished.name}.old"))
        unfinished.rename(folder)
        sync(folder.parent)
        shutil.rmtree(unfinished.with_name(f"{unfinished.name}.old"), ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary folders that killed processes left beside `folder`; those of running ones stay."""
    for path in folder.parent.glob(f".{folder.name}.partial-*"):
        owner = path.name.removeprefix(f".{folder.name}.partial-").split("-")[0]
        try:
            os.kill(int(owner), 0)
        except (ValueError, ProcessLookupError):
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:
            pass  # a running process of another user


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. Raises ValueError for NaN and infinity, which are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically: to a temporary file that is renamed to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read a JSON file of a run. Raises RunError naming the file when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError.because(f"no '{path}'", "a finished stage", "run `lite-c2f train` for this run first") from None
    except (ValueError, RecursionError, IsADirectoryError):
        raise RunError.because(
            f"'{path}' is not JSON", "a file written by lite-c2f", "train that stage again"
        ) from None


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object to a .jsonl file in one write, so that readers see whole lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(record))


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    """Write a .jsonl file atomically."""
    write_text(path, jsonl_text(records))


def jsonl_text(records: list[dict[str, Any]]) -> str:
    """The text of a .jsonl file."""
    return "".join(map(_line, records))


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Objects of a .jsonl file of a run, [] if there is none. Raises RunError naming a damaged line."""
    if not file.is_file():
        return []
    rows = []
    for number, line in enumerate(_lines(file), 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise RunError.because(f"{file}:{number} is not JSON", "one object per line", "remove that line") from None
    return rows


def filter_lines(file: Path, keep: Callable[[dict[str, Any]], bool], added: Sequence[dict[str, Any]] = ()) -> None:
    """Keep the objects of a .jsonl file for which `keep` is true; truncated lines are removed too.

    added: objects to append. The file is replaced atomically.
    """
    if not file.is_file() and not added:
        return
    before = file.read_bytes() if file.is_file() else None
    content = b""
    for line in _lines(file) if before else ():
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and keep(record):
                content += line + b"\n"
    content += "".join(map(_line, added)).encode()
    if content != before:
        write_text(file, content.decode())


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _lines(file: Path) -> list[bytes]:
    """The lines as bytes: text may hold U+2028, and the last line may end within a character."""
    return file.read_bytes().removesuffix(b"\n").split(b"\n") if file.stat().st_size else []


def hash_of(file: Path) -> str:
    """XXH3 (128 bits) of a file, in hex, to compare inputs: ten times as fast as sha256, not cryptographic."""
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(2**20))
    with file.open("rb", buffering=0) as source:
        while size := source.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
