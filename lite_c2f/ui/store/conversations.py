"""Saved sessions of the app: one JSON file each, in a folder per owner; exported as JSON or Markdown.

A session is the conversation of one page: rounds of a prompt and the replies of all panes. `Transcript` holds it.
"""

import contextlib
import json
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.actors.reply import Reply
from lite_c2f.errors import RunError
from lite_c2f.ui.store.owner_files import WRITING, OwnerFiles, is_id
from lite_c2f.ui.store.tuples import as_row, decoded, encoded, from_row

SCHEMA = 2  # 1 had no variants; it is still read
MAX_SESSIONS = 500  # per owner
TITLE_LENGTH = 60  # characters
PREVIOUS_PANE = "fine before"  # key among a round's replies: the Fine Actor's previous one, at another ratio
FILES = OwnerFiles("session")
_CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")


class Variant(NamedTuple):
    """Replies to a question, by pane, and the settings that they were made with."""

    settings: dict[str, Any]
    replies: dict[str, Reply]
    pane_settings: dict[str, dict[str, Any]] = {}  # noqa: RUF012  never changed; see `Round`


class Round(NamedTuple):
    """One question and its replies, by pane: of all its variants the one in view, which the next question builds on."""

    prompt: str
    settings: dict[str, Any]
    replies: dict[str, Reply]
    pane_settings: dict[str, dict[str, Any]] = {}  # noqa: RUF012  of panes whose reply was made with others
    others: tuple[Variant, ...] = ()  # the variants that are not in view, the oldest first
    place: int = 0  # of the one in view among all of them


class Transcript(NamedTuple):
    """A session. All of it is JSON, the contents of `settings` and `run` too."""

    id: str  # 32 hex digits, as is `owner`
    owner: str
    created: str  # UTC, ISO 8601, seconds
    system: str  # the system prompt, or ""
    rounds: tuple[Round, ...]
    run: dict[str, Any]  # its name, and hashes of its models and adapter


class ConversationEntry(NamedTuple):
    """A session in a list."""

    id: str
    title: str  # the beginning of the first prompt, on one line
    created: str
    rounds: int


def new(owner: str, run: Mapping[str, Any]) -> Transcript:
    """An empty session that begins now, not saved yet. Raises RunError for a malformed owner."""
    FILES.check(owner)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Transcript(secrets.token_hex(16), owner, created, "", (), dict(run))


def save(folder: Path, transcript: Transcript, max_sessions: int = MAX_SESSIONS) -> None:
    """Write FOLDER/OWNER/ID.json, whole or not at all; beyond `max_sessions` the owner's oldest others are removed.

    Raises RunError for malformed ids, ValueError for NaN or infinity, which are not JSON.
    """
    text = as_json(transcript)
    with WRITING:
        FILES.write(folder, transcript.owner, transcript.id, text)
        owner_folder = folder / transcript.owner
        if sum(1 for _ in owner_folder.glob("*.json")) > max_sessions:
            others = [entry for entry in list_sessions(folder, transcript.owner) if entry.id != transcript.id]
            for entry in others[max(max_sessions - 1, 0) :]:
                (owner_folder / f"{entry.id}.json").unlink(missing_ok=True)


def load(folder: Path, owner: str, id: str) -> Transcript:
    """A session of this owner. Raises RunError: no such session, or one that is damaged or of a newer schema."""
    try:
        text = FILES.read(folder, owner, id)
    except ValueError:
        raise _damaged(f"session {id}", "it is not UTF-8") from None
    transcript = from_json(text, f"session {id}")
    if (transcript.owner, transcript.id) != (owner, id):
        raise FILES.no_such()
    return transcript


def list_sessions(folder: Path, owner: str) -> list[ConversationEntry]:
    """An owner's sessions, the newest first; unreadable files are left out. Raises RunError for a malformed owner."""
    FILES.check(owner)
    entries = []
    for path in (folder / owner).glob("*.json"):
        with contextlib.suppress(RunError, OSError):
            status = path.stat()
            entry = _entry(folder, owner, path.stem, status.st_mtime_ns, status.st_size)
            entries.append((entry.created, status.st_mtime_ns, entry))
    return [entry for *_, entry in sorted(entries, reverse=True)]


@lru_cache(
    maxsize=4 * MAX_SESSIONS
)  # 500 sessions take half a second to read, and a page lists them after every answer
def _entry(folder: Path, owner: str, id: str, *stamp: int) -> ConversationEntry:
    """A session in the list. stamp: time and size of its file, which change when it is written again."""
    transcript = load(folder, owner, id)
    return ConversationEntry(transcript.id, title_of(transcript), transcript.created, len(transcript.rounds))


def delete(folder: Path, owner: str, id: str) -> None:
    """Remove a session of this owner, also a damaged one. Raises RunError where there is no such session."""
    FILES.delete(folder, owner, id)


def title_of(transcript: Transcript) -> str:
    """The beginning of the first prompt on one line, "" where there is none."""
    line = " ".join(transcript.rounds[0].prompt.split()) if transcript.rounds else ""
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1].rstrip() + "…"


def as_json(transcript: Transcript) -> str:
    """The whole session as JSON, its schema first. Raises ValueError for NaN or infinity."""
    return encoded({"schema": SCHEMA, **as_row(transcript)}, indent=2) + "\n"


def from_json(text: str, name: str = "the session") -> Transcript:
    """The session that `as_json` wrote, its types checked. Raises RunError naming the field that is wrong.

    name: of the session, in that message. A session that comes from a visitor needs a new id and owner.
    """
    try:
        row = decoded(text)
        schema = row.pop("schema", None) if isinstance(row, dict) else None
        if type(schema) is int and schema > SCHEMA:
            raise RunError.because(f"{name} has schema {schema}", f"schema {SCHEMA}", "use a newer lite_c2f")
        if type(schema) is not int or schema < 1:
            raise ValueError("it has no schema")
        transcript = from_row(Transcript, row)
        if not (is_id(transcript.id) and is_id(transcript.owner)):
            raise ValueError("id and owner are not 32 hex digits")
        if not _CREATED.fullmatch(transcript.created):
            raise ValueError("created is not a time in UTC")
        datetime.fromisoformat(transcript.created)
        for number, round_ in enumerate(transcript.rounds):
            if not 0 <= round_.place <= len(round_.others):
                raise ValueError(f"transcript.rounds[{number}].place is not among its variants")
    except ValueError as error:
        raise _damaged(name, " ".join(str(error).split())[:200]) from None
    return transcript


def as_markdown(transcript: Transcript, pane_titles: Mapping[str, str] | None = None) -> str:
    """The session as Markdown: each prompt, then each pane's title, figures and text.

    pane_titles: by the pane's name. All text of people and models is escaped, or in fences longer than any run of
    backticks in it: none of it can become markup of the document.
    """
    parts = ["# Session", f"Begun {transcript.created}, {len(transcript.rounds)} round(s)."]
    if transcript.run:
        parts += ["Run:", fenced(_pretty(transcript.run), "json")]
    if transcript.system:
        parts += ["System prompt:", fenced(transcript.system)]
    for number, round_ in enumerate(transcript.rounds, 1):
        parts += [f"## Round {number}", fenced(round_.prompt)]
        if round_.others:  # the one in view is written: what the next round was built on
            parts.append(f"Answers {round_.place + 1} of {len(round_.others) + 1}.")
        if round_.settings:
            parts += ["Settings:", fenced(_pretty(round_.settings), "json")]
        for pane, reply in round_.replies.items():
            title = (pane_titles or {}).get(pane, pane)
            parts += [f"### {escaped(title)}", _figures(reply), fenced(reply.text)]
            if pane in round_.pane_settings:
                parts += ["Its own settings:", fenced(_pretty(round_.pane_settings[pane]), "json")]
    return "\n\n".join(parts) + "\n"


def _figures(reply: Reply) -> str:
    """The figures of a reply in one line of Markdown; unknown ones are left out."""
    parts = [f"{reply.tokens} tokens", f"{reply.tokens_per_s:.0f} tokens/s"]
    if reply.first_token_s is not None:
        parts.append(f"first after {reply.first_token_s:.2f} s")
    parts.append(escaped(f"{reply.finish}: {reply.message}" if reply.message else reply.finish or ""))
    parts.append(f"seed {reply.seed}")
    if reply.ratio is not None:
        parts.append(f"ratio {reply.ratio:g}")
    if reply.reward is not None:
        parts.append(f"reward {reply.reward:+.2f}")
    return ", ".join([*parts, f"{reply.repeated:.0%} repeated 4-grams"])


def fenced(text: str, kind: str = "text") -> str:
    """Text as a Markdown code block, its fence longer than any run of backticks inside."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{kind}\n{text}\n{fence}"


def escaped(text: str) -> str:
    """Text on one line of Markdown, with all markup characters escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#+|~!&:@$^=.-])", r"\\\1", " ".join(text.split()))


def _pretty(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _damaged(name: str, reason: str) -> RunError:
    return RunError.because(f"{name} is damaged: {reason}", "what lite_c2f saved", "restore or delete it")
