"""Prompt sets of the app: a visitor's questions with the answers of all actors, one JSON file each, by owner.

The rows of a set are those of evaluation/responses.jsonl.
"""

import contextlib
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.actors.names import ACTORS
from lite_c2f.errors import RunError
from lite_c2f.evaluation.prompt_table import PromptRow, rows_of
from lite_c2f.evaluation.sections import FORMAT_ERRORS
from lite_c2f.ui.store.owner_files import OwnerFiles
from lite_c2f.ui.store.tuples import as_row, decoded, encoded, from_row

SCHEMA = 1
MAX_SETS = 50  # per owner
MAX_BYTES = 64 * 2**20  # of an owner's sets, beyond which none begins; one of 200 long answers has about 4 MiB
FAILED = "error"  # how an answer ended that is none
FILES = OwnerFiles("prompt set")

Stamp = tuple[int, int]  # (time of change in ns, bytes) of a set's file


class PromptSet(NamedTuple):
    """Questions and the answers so far. All of it is JSON."""

    id: str  # 32 hex digits, as is `owner`
    owner: str
    created: str  # UTC, ISO 8601, seconds
    name: str
    settings: dict[str, Any]  # those of `ChatSettings`; question n is asked with seed + n, counted from 0
    questions: tuple[str, ...]  # different ones
    rows: tuple[dict[str, Any], ...]  # of the questions answered, in their order; of each question all actors or none
    run: dict[str, Any]  # its name, and hashes of its models and adapter


class SetEntry(NamedTuple):
    """A set in a list."""

    id: str
    name: str
    created: str
    answered: int
    questions: int


def new(
    owner: str, name: str, questions: Sequence[str], settings: Mapping[str, Any], run: Mapping[str, Any]
) -> PromptSet:
    """A set that begins now, not saved yet. Raises RunError for a malformed owner."""
    FILES.check(owner)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return PromptSet(secrets.token_hex(16), owner, created, name, dict(settings), tuple(questions), (), dict(run))


def unanswered(prompt_set: PromptSet) -> list[int]:
    """Places of the questions that have no answers, or a failed one."""
    failed = {row["prompt"] for row in prompt_set.rows if row["finish"] == FAILED}
    answered = {row["prompt"] for row in prompt_set.rows} - failed
    return [place for place, question in enumerate(prompt_set.questions) if question not in answered]


def answered(prompt_set: PromptSet, rows: Sequence[Mapping[str, Any]]) -> PromptSet:
    """The set with the rows of one question added, in place of those that it had."""
    places = {question: place for place, question in enumerate(prompt_set.questions)}
    prompts = {row["prompt"] for row in rows}
    kept = [row for row in prompt_set.rows if row["prompt"] not in prompts]
    return prompt_set._replace(rows=tuple(sorted([*kept, *map(dict, rows)], key=lambda row: places[row["prompt"]])))


def check_room(folder: Path, owner: str) -> None:
    """Raise RunError where the owner has as many sets as are kept, or as many bytes."""
    FILES.check(owner)
    files = [path for path in (folder / owner).glob("*.json") if path.is_file()]
    if len(files) >= MAX_SETS:
        raise RunError.because(f"you have {len(files)} sets", f"fewer than {MAX_SETS}", "delete one")
    if (size := sum(path.stat().st_size for path in files)) >= MAX_BYTES:
        got = f"your sets have {size / 2**20:.0f} MiB"
        raise RunError.because(got, f"less than {MAX_BYTES // 2**20}", "delete one")


def save(folder: Path, prompt_set: PromptSet) -> None:
    """Write FOLDER/OWNER/ID.json, whole or not at all. Raises RunError for malformed ids, ValueError for NaN."""
    text = encoded({"schema": SCHEMA, **as_row(prompt_set)}) + "\n"
    FILES.write(folder, prompt_set.owner, prompt_set.id, text)


def load(folder: Path, owner: str, id: str) -> PromptSet:
    """A set of this owner. Raises RunError: no such set, or one that is damaged or of a newer schema."""
    try:
        row = decoded(FILES.read(folder, owner, id))
        schema = row.pop("schema", None) if isinstance(row, dict) else None
        if schema != SCHEMA:
            got = f"set {id} has schema {str(schema)[:20]}"
            raise RunError.because(got, f"schema {SCHEMA}", "use the lite_c2f that saved it")
        prompt_set = from_row(PromptSet, row)
        table(prompt_set)
    except FORMAT_ERRORS:
        raise RunError.because(f"set {id} is damaged", "what lite_c2f saved", "restore or delete it") from None
    if (prompt_set.owner, prompt_set.id) != (owner, id):
        raise FILES.no_such()
    return prompt_set


def table(prompt_set: PromptSet) -> tuple[PromptRow, ...]:
    """A row per question, numbered by its place; without answers where it has none yet.

    Raises KeyError, TypeError or ValueError for rows of another format.
    """
    places, answers = set(prompt_set.questions), {row.prompt: row.answers for row in rows_of(prompt_set.rows)}
    if not answers.keys() <= places or not {row["actor"] for row in prompt_set.rows} <= set(ACTORS):
        raise ValueError("rows of other questions or actors")
    return tuple(
        PromptRow(place, text, "", "", answers.get(text, {})) for place, text in enumerate(prompt_set.questions)
    )


def stamp_of(folder: Path, owner: str, id: str) -> Stamp:
    """What the file of a set is now: another one when it has changed. Raises RunError where there is no such set."""
    try:
        status = FILES.find(folder, owner, id).stat()
    except FileNotFoundError:
        raise FILES.no_such() from None
    return status.st_mtime_ns, status.st_size


def list_sets(folder: Path, owner: str) -> list[SetEntry]:
    """An owner's sets, the newest first; unreadable files are left out. Raises RunError for a malformed owner."""
    FILES.check(owner)
    entries = []
    for path in (folder / owner).glob("*.json"):
        with contextlib.suppress(RunError, OSError):
            stamp = stamp_of(folder, owner, path.stem)
            entry = _entry(folder, owner, path.stem, stamp)
            entries.append((entry.created, path.stem, entry))
    return [entry for *_, entry in sorted(entries, reverse=True)]


@lru_cache(maxsize=8 * MAX_SETS)  # a page lists them every two seconds
def _entry(folder: Path, owner: str, id: str, stamp: Stamp) -> SetEntry:
    prompt_set = load(folder, owner, id)
    count = len(prompt_set.questions)
    return SetEntry(id, prompt_set.name, prompt_set.created, count - len(unanswered(prompt_set)), count)


def delete(folder: Path, owner: str, id: str) -> None:
    """Remove a set of this owner, also a damaged one. Raises RunError where there is no such set."""
    FILES.delete(folder, owner, id)
