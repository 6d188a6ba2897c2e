"""Preference pairs and prompts from files (JSONL, JSON, CSV, Parquet, each optionally .gz) and from the hub.

A broken file raises DataError with the file and the row. An unusable row (equal answers, an empty answer, a number
instead of a text) is skipped and counted by reason; a source of which almost no row is usable raises DataError with a
description of its columns. docs/data.md lists the forms.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from lite_c2f.data.advice import columns_advice, describe_columns, unused_note
from lite_c2f.data.columns import ENDED_COLUMNS, PROMPT_COLUMNS, Cells, cells_of
from lite_c2f.data.order import content_hash, conversation_hash
from lite_c2f.data.sources import SourceSettings, name_of, read_rows, type_and_text
from lite_c2f.data.turns import (
    NoOptionError,
    Turn,
    UnusableError,
    describe,
    is_empty,
    is_messages,
    is_transcript,
    merge_speakers,
    message_turns,
    other_keys,
    parse_literal,
    parse_transcript,
    plain_text,
    prompt_turns,
    texts_within,
)
from lite_c2f.errors import DataError

ROWS_PER_USABLE = 20  # fewer usable rows than one in so many: the source has another format
_PAIR_COLUMNS = {*PROMPT_COLUMNS, *ENDED_COLUMNS, "turns", "chosen", "rejected"}  # never in Prompt.extra


class Pair(NamedTuple):
    """A prompt with a preferred and a less preferred answer."""

    turns: tuple[Turn, ...]  # the conversation so far; ends with a human turn
    chosen: str  # stripped, as is `rejected`
    rejected: str
    chosen_ended: bool = True  # False: the text was cut off, no end token follows
    rejected_ended: bool = True
    source: str = ""  # as `sources.name_of` gives it; the last field


class Prompt(NamedTuple):
    """A conversation to answer, and the other columns of its row."""

    turns: tuple[Turn, ...]  # ends with a human turn
    extra: dict[str, Any]  # column -> value, for values that are not null
    source: str = ""  # as in Pair


_Item = TypeVar("_Item", Pair, Prompt)


class LoadedRows(NamedTuple, Generic[_Item]):
    """Items of all sources, and how many rows were skipped for which reason (before weights are applied)."""

    items: list[_Item]
    skipped: dict[str, int]
    first: dict[str, str]  # reason -> the first row that was skipped for it
    notes: tuple[str, ...] = ()  # columns that are not read, one line per source


def load_pairs(sources: Sequence[SourceSettings]) -> LoadedRows[Pair]:
    """Read preference pairs in any of the forms of docs/data.md; other columns by a source's `columns` setting.

    Raises DataError for a broken file, and for a source of which almost no row can be used.

    >>> load_pairs([Source(path="pairs/*.jsonl.gz")]).skipped
    {'sides equal': 3}
    """
    return _load(sources, _parse_pair, pairs=True)


def load_prompts(sources: Sequence[SourceSettings]) -> LoadedRows[Prompt]:
    """Read prompts: a `prompt` under any of its names, MT-Bench's `turns` (the first), or preference rows.

    Duplicates are kept. Raises DataError as `load_pairs` does.
    """
    return _load(sources, _parse_prompt, pairs=False)


def prompts_of(pairs: Iterable[Pair]) -> list[Prompt]:
    """The prompts of `pairs`, each once, in order of first appearance.

    A prompt of several sources is assigned to one of them by its hash, so that each gets about the same number.
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
    """(items, rows skipped by reason, the first row of each reason, note of unread columns) of one source."""
    usable: list[_Item] = []
    skipped: dict[str, int] = {}
    first: dict[str, str] = {}
    columns: set[str] = set()  # with values, not read
    keys: set[str] = set()  # of messages, likewise
    example: Any = None  # the first skipped row, an object if there is one
    for where, row in read_rows(source):
        try:
            if not isinstance(row, dict):
                raise UnusableError(f"a row is {describe(row)}")
            cells = cells_of(row, getattr(source, "columns", None), pairs=pairs)
            usable.append(read(cells)._replace(source=name_of(source)))
            columns.update(name for name, cell in cells.rest.items() if not is_empty(cell))
            for value in (cells.prompt, cells.chosen, cells.rejected):
                keys |= set() if isinstance(value, str) else other_keys(value)
        except UnusableError as error:
            if isinstance(error, NoOptionError):
                raise _no_option(source, where, error.value) from None
            example = example if isinstance(example, dict) else row
            skipped[str(error)] = skipped.get(str(error), 0) + 1
            first.setdefault(str(error), where)
    total = len(usable) + sum(skipped.values())
    if len(usable) * ROWS_PER_USABLE < total:
        raise _other_format(source, example, f"{len(usable)} of {total}", skipped, first, pairs)
    return usable, skipped, first, unused_note(name_of(source), columns, keys)


def _no_option(source: SourceSettings, where: str, value: str) -> DataError:
    """E.g. `best` that counts from 1: its 1 means the first answer and would be read as the second."""
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
    """Error for almost no usable row: the reasons, the columns of a row, and the setting that would read them."""
    reasons = sorted(skipped, key=lambda reason: -skipped[reason])
    counts = "; ".join(f"{reason}: {skipped[reason]}, first at {first[reason]}" for reason in reasons[:4])
    counts += f"; {len(reasons) - 4} more reasons" if len(reasons) > 4 else ""
    got = f"'{source.path}': {share} rows can be used ({counts})"
    if not isinstance(row, dict):
        is_json = is_messages(row) or describe(row) == "a list of objects"
        do = "rename the file to .json" if is_json else "convert the file"
        return DataError.because(f"{got}, the first is {type_and_text(row)}", "an object with columns in each row", do)
    got += f", its columns are {describe_columns(row)}"
    expected = "'chosen' and 'rejected', each a text, a message or messages, with or without 'prompt'"
    if not pairs:
        expected = f"one of {', '.join(repr(column) for column in (*PROMPT_COLUMNS, 'turns', 'chosen'))}"
    if getattr(source, "columns", None):
        return DataError.because(got, "the columns that the source names in `columns`", "correct `columns` or the rows")
    if not any(reason == "no prompt" or reason.startswith("no '") for reason in reasons):
        return DataError.because(got, expected, "correct the rows, or see docs/data.md for other forms")
    if setting := columns_advice(row, source, pairs=pairs):
        return DataError.because(got, expected, f'name the columns: "{setting}"')
    do = "take data with two answers to each prompt, or name the columns as docs/data.md says"
    return DataError.because(got, expected, do if pairs else "name the column as docs/data.md says")


def _weighted(items: list[_Item], weight: float) -> list[_Item]:
    """Whole copies, then a share (at least one item), chosen by a hash of the text and not by the order of rows."""
    copies, share = divmod(weight, 1)
    count = round(len(items) * share)
    if items and not copies:
        count = max(1, count)
    lowest = sorted(range(len(items)), key=lambda row: content_hash(items[row], "weight"))[:count] if count else []
    return items * int(copies) + [items[row] for row in sorted(lowest)]


# One row.


def _parse_pair(cells: Cells) -> Pair:
    for column in ("chosen", "rejected"):
        if column not in cells.has:
            raise UnusableError(f"no '{column}'")
        if getattr(cells, column) is None:
            raise UnusableError("empty answer")
    column_turns = _prompt_of_columns(cells)
    chosen_prompt, chosen = _prompt_and_answer(cells.chosen, column_turns, cells, "chosen")
    rejected_prompt, rejected = _prompt_and_answer(cells.rejected, column_turns, cells, "rejected")
    if chosen_prompt != rejected_prompt:
        raise UnusableError("prompts differ")
    if not chosen_prompt or not chosen_prompt[-1].text:
        raise UnusableError("empty prompt")
    if chosen_prompt[-1].role != "human":
        raise UnusableError("prompt ends with an answer")
    if not chosen or not rejected:
        raise UnusableError("empty answer")
    ended = _ended(cells.ended[0], "chosen_ended"), _ended(cells.ended[1], "rejected_ended")
    # The same text, cut off on one side only, is still a preference.
    if chosen == rejected and ended[0] == ended[1]:
        raise UnusableError("sides equal")
    return Pair(chosen_prompt, chosen, rejected, *ended)


def _parse_prompt(cells: Cells) -> Prompt:
    if not cells.has & {"prompt", "chosen"}:
        raise UnusableError("no prompt")
    column_turns = _prompt_of_columns(cells)
    if cells.chosen is not None and (not column_turns or not isinstance(cells.chosen, str)):
        turns, _ = _prompt_and_answer(cells.chosen, column_turns, cells, "chosen")
    else:
        turns = _with_system(column_turns, cells)
    while turns and turns[-1].role == "assistant":
        turns = turns[:-1]
    if not turns or not turns[-1].text:
        raise UnusableError("empty prompt")
    return Prompt(turns, {name: cell for name, cell in cells.rest.items() if name.strip().lower() not in _PAIR_COLUMNS})


def _holds_input(prompt: str, text: str) -> bool:
    """Whether a prompt contains its input already: as its last lines, or under Alpaca's heading."""
    return f"\n{prompt}".endswith(f"\n{text}") or f"Input:\n{text}\n" in prompt


def _prompt_of_columns(cells: Cells) -> list[Turn]:
    """Turns of the row's prompt columns, without the system text; empty if there are none."""
    turns = [] if cells.prompt is None else prompt_turns(cells.prompt, "prompt")
    if cells.input is not None:
        extra_input = plain_text(cells.input, "input").strip()
        if not any(_holds_input(turn.text, extra_input) for turn in turns):
            turns.append(Turn("human", extra_input))
    if cells.history is None:
        return turns
    pairs = parse_literal(cells.history) if isinstance(cells.history, str) else cells.history
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise UnusableError(f"'history' is {describe(cells.history)}, not pairs of prompt and answer")
    roles = ("human", "assistant")
    before = [Turn(role, plain_text(text, "history")) for pair in pairs for role, text in zip(roles, pair, strict=True)]
    return before + turns


def _prompt_and_answer(value: Any, column_turns: list[Turn], cells: Cells, column: str) -> tuple[tuple[Turn, ...], str]:
    """(prompt, answer) of a cell that holds the answer only, or a whole conversation.

    If one of conversation and prompt column contains the other, the longer one is the prompt; otherwise a conversation
    that continues the prompt is appended to it.
    """
    if isinstance(value, str):
        text = plain_text(value, column)
        whole = is_transcript(text)
        turns = list(parse_transcript(text.lstrip() if whole else text)) if whole or not column_turns else []
        if column_turns and not (whole and texts_within(column_turns, turns[:-1])):
            return _with_system(column_turns, cells), text.strip()
        if not turns and "prompt" not in cells.has:
            raise UnusableError("a text without turns, and no prompt")
    else:
        turns = message_turns(value, column)
    if not turns and "prompt" in cells.has:
        raise UnusableError("empty prompt")
    if not turns or turns[-1].role != "assistant":
        raise UnusableError("no assistant turn")
    return _with_system(_merged_prompts(column_turns, turns[:-1]), cells), turns[-1].text


def _merged_prompts(column_turns: list[Turn], turns: list[Turn]) -> list[Turn]:
    """One prompt from that of a column and that of a conversation."""
    if texts_within(column_turns, turns):
        return turns
    if texts_within(turns, column_turns):
        return column_turns
    if all(turn.role == "system" for turn in turns):
        return turns + column_turns
    if all(turn.role == "system" for turn in column_turns) or column_turns[-1].role == "assistant":
        return column_turns + turns
    raise UnusableError("the prompt is not in the conversation")


def _with_system(turns: list[Turn], cells: Cells) -> tuple[Turn, ...]:
    """Merged turns with the row's system text first; without any human text, only assistant turns remain."""
    if not any(turn.role == "human" and turn.text for turn in turns):
        return merge_speakers(turn for turn in turns if turn.role == "assistant")
    if cells.system is not None:
        system = plain_text(cells.system, "system").strip()
        if not f"{turns[0].text}\n".startswith(f"{system}\n"):
            turns = [Turn("system", system), *turns]
    return merge_speakers(turns)


def _ended(value: Any, column: str) -> bool:
    value = {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value
    if not isinstance(value, bool | None):
        raise UnusableError(f"'{column}' is {describe(value)}, not true or false")
    return value is not False
