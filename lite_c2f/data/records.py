"""Preference pairs and prompts from files (JSONL, JSON, CSV, Parquet, each optionally .gz) and from the hub.

A broken file is a DataError that names the file and the place. A row of no use (both sides equal, an empty answer, a
number where a text belongs) is skipped and counted by reason, never silently; a source of which almost nothing is left
is a DataError that says what its columns look like. docs/data.md lists the forms.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from lite_c2f.data.advice import advice, described, unused_note
from lite_c2f.data.columns import ENDED, PROMPTS, Cells, named
from lite_c2f.data.order import content_hash, conversation_hash
from lite_c2f.data.sources import SourceSettings, kind, name_of, read_rows
from lite_c2f.data.turns import (
    NoOptionError,
    Turn,
    UnusableError,
    is_empty,
    is_messages,
    is_transcript,
    joined,
    look,
    message_turns,
    other_keys,
    parse_transcript,
    plain_text,
    prompt_turns,
    structured,
    within,
)
from lite_c2f.errors import DataError

LEAST = 20  # a source of which less than one row in so many can be used is taken for another format
_OF_PAIRS = {*PROMPTS, *ENDED, "turns", "chosen", "rejected"}  # never among what else a prompt's row said


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


class LoadedRows(NamedTuple, Generic[_Item]):
    """What was read, and how many rows were left out for which reason (before weights are applied)."""

    items: list[_Item]
    skipped: dict[str, int]
    first: dict[str, str]  # reason -> the first row that was left out for it
    notes: tuple[str, ...] = ()  # what was not read of the rows that are used, a line a source


def load_pairs(sources: Sequence[SourceSettings]) -> LoadedRows[Pair]:
    """Read preference pairs in any of the forms of docs/data.md, others by a source's `columns`.

    Raises DataError for a broken file, and for a source of which almost no row can be used.

    >>> load_pairs([Source(path="pairs/*.jsonl.gz")]).skipped
    {'sides equal': 3}
    """
    return _load(sources, _pair, pairs=True)


def load_prompts(sources: Sequence[SourceSettings]) -> LoadedRows[Prompt]:
    """Read prompts: a `prompt` under any of its names, MT-Bench's `turns` (the first), or preference rows.

    Duplicates are kept. Raises DataError as `load_pairs` does.
    """
    return _load(sources, _prompt, pairs=False)


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


def _load(sources: Sequence[SourceSettings], read: Callable[[Cells], _Item], *, pairs: bool) -> LoadedRows[_Item]:
    loaded: LoadedRows[_Item] = LoadedRows([], {}, {})
    notes: list[str | None] = []
    if not sources:
        raise DataError.because("no sources of data", "at least one", "name a file or a hub dataset")
    for source in sources:
        if not 0 < source.weight < float("inf"):
            raise DataError.because(f"{source.path}: weight {source.weight}", "a number above 0", "correct the weight")
        usable, skipped, first, note = _read(source, read, pairs)
        notes.append(note)
        loaded.items.extend(_weighted(usable, source.weight))
        for reason, count in skipped.items():
            loaded.skipped[reason] = loaded.skipped.get(reason, 0) + count
            loaded.first.setdefault(reason, first[reason])
    return loaded._replace(notes=tuple(note for note in notes if note))


def _read(
    source: SourceSettings, read: Callable[[Cells], _Item], pairs: bool
) -> tuple[list[_Item], dict[str, int], dict[str, str], str | None]:
    """(items, rows skipped by reason, the first of each, what was not read) of one source."""
    usable: list[_Item] = []
    skipped: dict[str, int] = {}
    first: dict[str, str] = {}
    columns: set[str] = set()  # not used
    keys: set[str] = set()
    odd: Any = None  # the first row that is skipped
    for where, row in read_rows(source):
        try:
            if not isinstance(row, dict):
                raise UnusableError(f"a row is {look(row)}")
            cells = named(row, getattr(source, "columns", None), pairs=pairs)
            usable.append(read(cells)._replace(source=name_of(source)))
            columns.update(name for name, cell in cells.rest.items() if not is_empty(cell))
            for value in (cells.prompt, cells.chosen, cells.rejected):
                keys |= set() if isinstance(value, str) else other_keys(value)
        except UnusableError as error:
            if isinstance(error, NoOptionError):
                raise _no_option(source, where, error.value) from None
            odd = odd if isinstance(odd, dict) else row
            skipped[str(error)] = skipped.get(str(error), 0) + 1
            first.setdefault(str(error), where)
    total = len(usable) + sum(skipped.values())
    if len(usable) * LEAST < total:
        raise _other_format(source, odd, f"{len(usable)} of {total}", skipped, first, pairs)
    return usable, skipped, first, unused_note(name_of(source), columns, keys)


def _no_option(source: SourceSettings, where: str, value: str) -> DataError:
    """`best` counts from 1, say: then 1 means the first answer, and would be read as the second."""
    column = getattr(source, "columns", None) and source.columns.best  # type: ignore[attr-defined]
    return DataError.because(
        f"{where}: '{column}' is {value!r}, which is neither of the two answers nor a tie",
        "0 or 1, or the answers' columns",
        f"add to the source's columns `values: [FIRST, SECOND]`: what '{column}' holds where the first answer is the "
        "better one, and where the second is",
    )


def _other_format(
    source: SourceSettings, row: Any, share: str, skipped: dict[str, int], first: dict[str, str], pairs: bool
) -> DataError:
    """Almost nothing could be used: say why, what the rows look like, and how to have them read."""
    reasons = sorted(skipped, key=lambda reason: -skipped[reason])
    counts = "; ".join(f"{reason}: {skipped[reason]}, first at {first[reason]}" for reason in reasons[:4])
    counts += f"; {len(reasons) - 4} more reasons" if len(reasons) > 4 else ""
    got = f"'{source.path}': {share} rows can be used ({counts})"
    if not isinstance(row, dict):
        do = "rename the file to .json" if is_messages(row) or look(row) == "a list of objects" else "convert the file"
        return DataError.because(f"{got}, the first is {kind(row)}", "an object with columns in each row", do)
    got += f", its columns are {described(row)}"
    expected = "'chosen' and 'rejected', each a text, a message or messages, with or without 'prompt'"
    if not pairs:
        expected = f"one of {', '.join(repr(column) for column in (*PROMPTS, 'turns', 'chosen'))}"
    if getattr(source, "columns", None):
        return DataError.because(got, "the columns that the source names in `columns`", "correct `columns` or the rows")
    if not any(reason == "no prompt" or reason.startswith("no '") for reason in reasons):
        return DataError.because(got, expected, "correct the rows, or see docs/data.md for other forms")
    if setting := advice(row, source, pairs=pairs):
        return DataError.because(got, expected, f'name the columns: "{setting}"')
    do = "take data with two answers to each prompt, or name the columns as docs/data.md says"
    return DataError.because(got, expected, do if pairs else "name the column as docs/data.md says")


def _weighted(items: list[_Item], weight: float) -> list[_Item]:
    """Whole copies, then a share (never nothing at all), chosen by the texts, whatever the order of rows."""
    copies, share = divmod(weight, 1)
    count = round(len(items) * share)
    if items and not copies:
        count = max(1, count)
    lowest = sorted(range(len(items)), key=lambda row: content_hash(items[row], "weight"))[:count] if count else []
    return items * int(copies) + [items[row] for row in sorted(lowest)]


# From a row to an item.


def _pair(cells: Cells) -> Pair:
    for column in ("chosen", "rejected"):
        if column not in cells.has:
            raise UnusableError(f"no '{column}'")
        if getattr(cells, column) is None:
            raise UnusableError("empty answer")
    opening = _opening(cells)
    chosen_prompt, chosen = _side(cells.chosen, opening, cells, "chosen")
    rejected_prompt, rejected = _side(cells.rejected, opening, cells, "rejected")
    if chosen_prompt != rejected_prompt:
        raise UnusableError("prompts differ")
    if not chosen_prompt or not chosen_prompt[-1].text:
        raise UnusableError("empty prompt")
    if chosen_prompt[-1].role != "human":
        raise UnusableError("prompt ends with an answer")
    if not chosen or not rejected:
        raise UnusableError("empty answer")
    ended = _flag(cells.ended[0], "chosen_ended"), _flag(cells.ended[1], "rejected_ended")
    # The same text, cut off on one side only, is still a preference.
    if chosen == rejected and ended[0] == ended[1]:
        raise UnusableError("sides equal")
    return Pair(chosen_prompt, chosen, rejected, *ended)


def _prompt(cells: Cells) -> Prompt:
    if not cells.has & {"prompt", "chosen"}:
        raise UnusableError("no prompt")
    opening = _opening(cells)
    if cells.chosen is not None and (not opening or not isinstance(cells.chosen, str)):
        turns, _ = _side(cells.chosen, opening, cells, "chosen")
    else:
        turns = _whole(opening, cells)
    while turns and turns[-1].role == "assistant":
        turns = turns[:-1]
    if not turns or not turns[-1].text:
        raise UnusableError("empty prompt")
    return Prompt(turns, {name: cell for name, cell in cells.rest.items() if name.strip().lower() not in _OF_PAIRS})


def _holds_input(prompt: str, text: str) -> bool:
    """Does a prompt hold its input: as its last lines, or under Alpaca's heading? Elsewhere it may be one of many."""
    return f"\n{prompt}".endswith(f"\n{text}") or f"Input:\n{text}\n" in prompt


def _opening(cells: Cells) -> list[Turn]:
    """The prompt that a row has columns for, without its system text; no turns where there is none."""
    turns = [] if cells.prompt is None else prompt_turns(cells.prompt, "prompt")
    if cells.input is not None:
        more = plain_text(cells.input, "input").strip()
        if not any(_holds_input(turn.text, more) for turn in turns):
            turns.append(Turn("human", more))
    if cells.history is None:
        return turns
    pairs = structured(cells.history) if isinstance(cells.history, str) else cells.history
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise UnusableError(f"'history' is {look(cells.history)}, not pairs of prompt and answer")
    roles = ("human", "assistant")
    before = [Turn(role, plain_text(text, "history")) for pair in pairs for role, text in zip(roles, pair, strict=True)]
    return before + turns


def _side(value: Any, opening: list[Turn], cells: Cells, column: str) -> tuple[tuple[Turn, ...], str]:
    """(prompt, answer) of one side: the answer alone, or a whole conversation.

    Of a conversation and a prompt column the one that holds the other is the prompt; where neither does, a conversation
    that goes on from the prompt follows it.
    """
    if isinstance(value, str):
        text = plain_text(value, column)
        whole = is_transcript(text)
        turns = list(parse_transcript(text.lstrip() if whole else text)) if whole or not opening else []
        if opening and not (whole and within(opening, turns[:-1])):
            return _whole(opening, cells), text.strip()
        if not turns and "prompt" not in cells.has:
            raise UnusableError("a text without turns, and no prompt")
    else:
        turns = message_turns(value, column)
    if not turns and "prompt" in cells.has:
        raise UnusableError("empty prompt")
    if not turns or turns[-1].role != "assistant":
        raise UnusableError("no assistant turn")
    return _whole(_merged(opening, turns[:-1]), cells), turns[-1].text


def _merged(opening: list[Turn], own: list[Turn]) -> list[Turn]:
    """The prompt of a column and that of a conversation as one."""
    if within(opening, own):
        return own
    if within(own, opening):
        return opening
    if all(turn.role == "system" for turn in own):
        return own + opening
    if all(turn.role == "system" for turn in opening) or opening[-1].role == "assistant":
        return opening + own
    raise UnusableError("the prompt is not in the conversation")


def _whole(turns: list[Turn], cells: Cells) -> tuple[Turn, ...]:
    """Joined turns with the row's system text before them; none where nothing was asked: a system text asks nothing."""
    if not any(turn.role == "human" and turn.text for turn in turns):
        return joined(turn for turn in turns if turn.role == "assistant")
    if cells.system is not None:
        system = plain_text(cells.system, "system").strip()
        if not f"{turns[0].text}\n".startswith(f"{system}\n"):
            turns = [Turn("system", system), *turns]
    return joined(turns)


def _flag(value: Any, column: str) -> bool:
    value = {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value
    if not isinstance(value, bool | None):
        raise UnusableError(f"'{column}' is {look(value)}, not true or false")
    return value is not False
