"""Preference pairs and prompts from files (JSONL, JSON, CSV, Parquet, each optionally .gz) and from the hub.

A broken file is a DataError that names the file and the row. A row that is well-formed but of no use (both sides equal,
an empty answer) is skipped and counted by reason, never silently.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from lite_c2f.data.order import content_hash, conversation_hash
from lite_c2f.data.sources import Source, kind, name_of, read_rows
from lite_c2f.errors import C2FError, DataError

_MARKER = re.compile(r"(?:\A|\r?\n\r?\n)(Human|Assistant):")
_ROLES = {"user": "human", "human": "human", "assistant": "assistant", "system": "human", "developer": "human"}
_PROMPT_COLUMNS = ("prompt", "question", "turns", "messages")
_PAIR_COLUMNS = ("chosen", "rejected", "chosen_ended", "rejected_ended")


class Turn(NamedTuple):
    """One speaker's text in a conversation."""

    role: str  # "human" | "assistant"
    text: str


class Pair(NamedTuple):
    """A prompt with a preferred and a less preferred answer."""

    turns: tuple[Turn, ...]  # the conversation so far; ends with a human turn
    chosen: str  # stripped, as is `rejected`
    rejected: str
    chosen_ended: bool = True  # False: the text was cut off, no end-of-answer follows
    rejected_ended: bool = True
    source: str = ""  # the name of where it was read, see `sources.name_of`; the last field


class Prompt(NamedTuple):
    """A conversation to answer, and what else its row said."""

    turns: tuple[Turn, ...]  # ends with a human turn
    extra: dict[str, Any]  # the other columns of the row that hold a value
    source: str = ""  # as in Pair


_Item = TypeVar("_Item", Pair, Prompt)


class Loaded(NamedTuple, Generic[_Item]):
    """What was read, and how many rows were left out for which reason (before weights are applied)."""

    items: list[_Item]
    skipped: dict[str, int]


class _MissingColumnError(DataError):
    """A row without a column it needs: skipped and counted, unless no row of the source has it."""

    reason = ""


class _UnusableError(Exception):
    """Carries the reason why a well-formed row cannot be used."""


def load_pairs(sources: Sequence[Source]) -> Loaded[Pair]:
    """Read preference pairs: HH transcripts, plain prompt/chosen/rejected, or lists of messages.

    Raises DataError for a file or a row that is broken, and when no row at all is usable.

    >>> load_pairs([Source(path="pairs/*.jsonl.gz")]).skipped
    {'sides equal': 3}
    """
    return _load(sources, _pair)


def load_prompts(sources: Sequence[Source]) -> Loaded[Prompt]:
    """Read prompts: a `prompt`, `question`, `turns` (the first) or `messages` column, or preference rows.

    Duplicates are kept. Raises DataError for a file or a row that is broken, and when no row at all is usable.
    """
    return _load(sources, _prompt)


def prompts_of(pairs: Iterable[Pair]) -> list[Prompt]:
    """The prompts of `pairs`, each once, in order of first appearance.

    A prompt that several sources have is counted as one of theirs by its text: of all such, each gets about its share.
    """
    sources: dict[tuple[Turn, ...], list[str]] = {}
    for pair in pairs:
        names = sources.setdefault(pair.turns, [])
        if pair.source not in names:
            names.append(pair.source)
    return [
        Prompt(turns, {}, names[0] if len(names) == 1 else sorted(names)[conversation_hash(turns, 0) % len(names)])
        for turns, names in sources.items()
    ]


def parse_transcript(text: str) -> tuple[Turn, ...]:
    """Split an HH transcript (`\\n\\nHuman: ...\\n\\nAssistant: ...`) into turns; empty when it has no marker.

    Texts are stripped. Turns of one speaker in a row become one turn, with a blank line between; text before the first
    marker is treated the same way, as the start of the first human turn.

    >>> parse_transcript("\\n\\nHuman: Hi\\n\\nAssistant: Hello")
    (Turn(role='human', text='Hi'), Turn(role='assistant', text='Hello'))
    """
    before, *parts = _MARKER.split(text)
    if not parts:
        return ()
    said = [(role.lower(), said) for role, said in zip(parts[::2], parts[1::2], strict=True)]
    return _joined([("human", before), *said] if before.strip() else said)


def _load(sources: Sequence[Source], read: Callable[[dict[str, Any], str], _Item]) -> Loaded[_Item]:
    items: list[_Item] = []
    skipped: dict[str, int] = {}
    first: dict[str, str] = {}  # reason -> the first row it was met in
    for source in sources:
        if not 0 < source.weight < float("inf"):
            raise DataError.because(f"{source.path}: weight {source.weight}", "a number above 0", "correct the weight")
        usable: list[_Item] = []
        missing: _MissingColumnError | None = None
        for where, row in read_rows(source):
            try:
                usable.append(read(row, where)._replace(source=name_of(source)))
            except _MissingColumnError as error:
                missing = missing or error
                skipped[error.reason] = skipped.get(error.reason, 0) + 1
                first.setdefault(error.reason, where)
            except _UnusableError as reason:
                skipped[str(reason)] = skipped.get(str(reason), 0) + 1
                first.setdefault(str(reason), where)
        if missing and not usable:  # not one row has the columns: the file is another kind of file
            raise missing
        items += _weighted(usable, source.weight)
    if not items:
        counts = ", ".join(f"{reason}: {count}, first at {first[reason]}" for reason, count in skipped.items())
        raise DataError.because(f"no usable row ({counts or 'no sources'})", "at least one", "check the data")
    return Loaded(items, skipped)


def _weighted(items: list[_Item], weight: float) -> list[_Item]:
    """Whole copies, then a share (never nothing at all), chosen by the texts, whatever the order of rows."""
    copies, share = divmod(weight, 1)
    count = round(len(items) * share)
    if items and not copies:
        count = max(1, count)
    lowest = sorted(range(len(items)), key=lambda row: content_hash(items[row], "weight"))[:count] if count else []
    return items * int(copies) + [items[row] for row in sorted(lowest)]


# From a row to an item.


def _pair(row: dict[str, Any], where: str) -> Pair:
    for column in ("chosen", "rejected"):
        if column not in row:
            raise _missing(row, where, f"'{column}'", "'chosen' and 'rejected', with or without 'prompt'")
    prompt = _turns(row["prompt"], where, "prompt") if "prompt" in row else None
    if row.get("prompt") is None and isinstance(row["chosen"], str) and _MARKER.search(row["chosen"]):
        prompt = None  # a table gives every row a prompt, an empty one to whole transcripts
    chosen_prompt, chosen = _side(row["chosen"], prompt, where, "chosen")
    rejected_prompt, rejected = _side(row["rejected"], prompt, where, "rejected")
    if chosen_prompt != rejected_prompt:
        raise _UnusableError("prompts differ")
    if not chosen_prompt or not chosen_prompt[-1].text:
        raise _UnusableError("empty prompt")
    if chosen_prompt[-1].role != "human":
        raise _UnusableError("prompt ends with an answer")
    if not chosen or not rejected:
        raise _UnusableError("empty answer")
    ended = _flag(row, "chosen_ended", where), _flag(row, "rejected_ended", where)
    # The same text, cut off on one side only, is still a preference.
    if chosen == rejected and ended[0] == ended[1]:
        raise _UnusableError("sides equal")
    return Pair(chosen_prompt, chosen, rejected, *ended)


def _side(value: Any, prompt: tuple[Turn, ...] | None, where: str, column: str) -> tuple[tuple[Turn, ...], str]:
    """(prompt, answer) of one side: the answer alone, or a whole conversation, whose own prompt then counts."""
    if isinstance(value, str) and prompt is not None:
        return prompt, _text(value).strip()
    if value is None:
        raise _UnusableError("empty answer")
    turns = parse_transcript(_text(value)) if isinstance(value, str) else _messages(value, where, column)
    if not turns or turns[-1].role != "assistant":
        raise _UnusableError("no assistant turn")
    alone = prompt is not None and len(turns) == 1
    return prompt if prompt is not None and alone else turns[:-1], turns[-1].text


def _prompt(row: dict[str, Any], where: str) -> Prompt:
    known = [column for column in (*_PROMPT_COLUMNS, "chosen") if column in row]
    if not known:
        raise _missing(row, where, "prompt", "one of 'prompt', 'question', 'turns', 'messages', 'chosen'")
    column = next((column for column in known if row[column] is not None), known[0])
    value = row[column]
    if column == "turns":
        if not isinstance(value, list) or not all(isinstance(turn, str) for turn in value):
            raise _wrong_type(value, where, column, "a list of texts")
        value = value[0] if value else ""
    if column == "chosen" and isinstance(value, str):
        turns = parse_transcript(_text(value))
    else:
        turns = _turns(value, where, column)
    while turns and turns[-1].role == "assistant":
        turns = turns[:-1]
    if not turns or not turns[-1].text:
        raise _UnusableError("empty prompt")
    used = (*_PROMPT_COLUMNS, *_PAIR_COLUMNS)
    return Prompt(turns, {name: cell for name, cell in row.items() if name not in used and cell is not None})


def _turns(value: Any, where: str, column: str) -> tuple[Turn, ...]:
    """A prompt: plain text, a transcript that starts with a human turn, or messages."""
    if value is None:
        return ()
    if not isinstance(value, str):
        return _messages(value, where, column)
    if not _text(value).lstrip().startswith("Human:"):
        return (Turn("human", value.strip()),)
    turns = parse_transcript(value.lstrip())
    return turns[:-1] if turns[-1] == Turn("assistant", "") else turns


def _messages(value: Any, where: str, column: str) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise _wrong_type(value, where, column, "a text or a list of messages")
    said = []
    for message in value:
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise _wrong_type(message, where, column, 'messages like {"role": "user", "content": "a text"}')
        if role not in _ROLES:
            raise _UnusableError(f"role '{role}'")
        said.append((role, _text(content)))
    if not any(role in ("user", "human") and text.strip() for role, text in said):
        said = [(role, text) for role, text in said if _ROLES[role] == "assistant"]  # a system message asks nothing
    return _joined([(_ROLES[role], text) for role, text in said])


def _joined(said: Iterable[tuple[str, str]]) -> tuple[Turn, ...]:
    """Chat templates want alternating speakers: what one says in a row becomes one turn."""
    turns: list[Turn] = []
    for role, text in said:
        if turns and turns[-1].role == role:
            turns[-1] = Turn(role, f"{turns[-1].text}\n\n{text.strip()}".strip())
        else:
            turns.append(Turn(role, text.strip()))
    return tuple(turns)


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can spell it, no tokenizer can read it
        raise _UnusableError("broken Unicode") from None
    return text


def _flag(row: dict[str, Any], column: str, where: str) -> bool:
    value = row.get(column)
    value = {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value
    if not isinstance(value, bool | None):
        raise _wrong_type(value, where, column, "true or false")
    return value is not False


def _missing(row: dict[str, Any], where: str, what: str, expected: str) -> C2FError:
    columns = ", ".join(map(str, row)) or "none"
    error = _MissingColumnError.because(
        f"{where}: no {what} among the columns ({columns})", expected, "rename or add the column"
    )
    error.reason = f"no {what}"
    return error


def _wrong_type(value: Any, where: str, column: str, expected: str) -> C2FError:
    return DataError.because(f"{where}: '{column}' is {kind(value)}", expected, "correct that row")
