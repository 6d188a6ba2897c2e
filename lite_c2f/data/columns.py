"""Columns of a row: which holds the prompt and which the answers, by usual names or by a source's `columns` setting.

Names match in any capitalisation. `a.b` names the key b within column a, of every item where a is a list.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from lite_c2f.config.data import Columns
from lite_c2f.data.turns import NoOptionError, UnusableError, describe, is_empty, messages_or_value, parse_literal

PROMPT_COLUMNS = ("prompt", "question", "instruction", "messages", "conversations", "input")  # in this order
SYSTEM_COLUMNS = ("system", "system_prompt")
ENDED_COLUMNS = ("chosen_ended", "rejected_ended")
ATTACHMENT_COLUMNS = ("images", "image", "videos", "video", "audios", "audio", "tools")  # part of the prompt
_MISSING = object()


TIE_VALUES = {"", "none", "null", "nan", "0.5", "tie", "tied", "draw", "both", "neither", "equal", "same"}


class Cells(NamedTuple):
    """Cells of a row by their use, and the columns without one."""

    prompt: Any  # None if missing or empty
    input: Any  # Alpaca's input: appended to the prompt
    history: Any  # Alpaca's history: pairs of earlier prompts and answers
    system: Any
    chosen: Any
    rejected: Any
    ended: tuple[Any, Any]  # of chosen and rejected
    has: frozenset[str]  # which of "prompt", "chosen" and "rejected" the row has a column for
    rest: dict[str, Any]  # the other columns whose cell is not null


class _UsualColumns(NamedTuple):
    """The columns of a row that have usual names, by use, in the order in which they are tried."""

    spellings: dict[str, str]  # name in small letters -> column
    prompt: tuple[str, ...]
    input: tuple[str, ...]
    history: tuple[str, ...]
    system: tuple[str, ...]
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    chosen_ended: tuple[str, ...]
    rejected_ended: tuple[str, ...]
    attachments: tuple[str, ...]


def cells_of(row: dict[str, Any], columns: Columns | None = None, *, pairs: bool = True) -> Cells:
    """Assign a row's cells to prompt, answers and the other uses.

    columns: the source's own names; pairs: False when only the prompt is wanted, so that it does not matter which
    answer is better.
    Raises UnusableError for a column of `columns` that the row lacks, for answers of which none is better, and for
    images or tools, without which the text has another meaning.
    """
    usual = _usual_columns(tuple(row), pairs)
    used: set[str] = set()

    def first(options: Sequence[str]) -> Any:
        """The cell of the first of these columns that is not empty, else of the first; _MISSING without columns."""
        if not options:
            return _MISSING
        column = options[0]
        if len(options) > 1:
            column = next((name for name in options if not is_empty(row[name])), column)
        used.add(column)
        return row[column]

    def at(path: str) -> Any:
        return value_at(row, usual.spellings, path, used)

    extra_input, history = None, None
    if columns and columns.prompt:
        prompt = _joined_prompt([at(path) for path in as_list(columns.prompt)])
    else:
        prompt = first(usual.prompt)
        if usual.input and used.isdisjoint(usual.input):
            extra_input = first(usual.input)
        if usual.history and prompt is not _MISSING:
            history = first(usual.history)
        if not pairs and any(column.strip().lower() == "turns" for column in used):
            prompt = _first_turn(prompt)
    system = at(columns.system) if columns and columns.system else first(usual.system)
    if columns and columns.answers:
        chosen, rejected = _chosen_and_rejected(columns, at, pairs)
    else:
        chosen = at(columns.chosen) if columns and columns.chosen else first(usual.chosen)
        rejected = at(columns.rejected) if columns and columns.rejected else first(usual.rejected)
    ended = first(usual.chosen_ended), first(usual.rejected_ended)
    for column in usual.attachments:
        if column not in used and not is_empty(row[column]) and row[column] != "[]":
            raise UnusableError(f"has '{column}'")
    sides = messages_or_value(chosen), messages_or_value(rejected)
    if not pairs or not any(isinstance(side, str) for side in sides):  # a single one may be an answer about messages
        chosen, rejected = sides
    values = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    rest = {str(name): cell for name, cell in row.items() if name not in used and cell is not None}
    return Cells(
        _value_or_none(messages_or_value(prompt)),
        _value_or_none(extra_input),
        _value_or_none(history),
        _value_or_none(system),
        _value_or_none(chosen),
        _value_or_none(rejected),
        (_value_or_none(ended[0]), _value_or_none(ended[1])),
        frozenset([name for name, value in values.items() if value is not _MISSING]),
        rest,
    )


def _value_or_none(value: Any) -> Any:
    return None if value is _MISSING or is_empty(value) else value


@lru_cache(maxsize=64)
def _usual_columns(columns: tuple[str, ...], pairs: bool) -> _UsualColumns:
    names = spellings(columns)

    def present(*options: str) -> tuple[str, ...]:
        return tuple(names[name] for name in options if name in names)

    return _UsualColumns(
        spellings=names,
        prompt=present(*PROMPT_COLUMNS) if pairs else present(*PROMPT_COLUMNS[:3], "turns", *PROMPT_COLUMNS[3:]),
        input=present("input"),
        history=present("history"),
        system=present(*SYSTEM_COLUMNS),
        chosen=present("chosen"),
        rejected=present("rejected"),
        chosen_ended=present(ENDED_COLUMNS[0]),
        rejected_ended=present(ENDED_COLUMNS[1]),
        attachments=present(*ATTACHMENT_COLUMNS),
    )


@lru_cache(maxsize=64)
def spellings(columns: tuple[str, ...]) -> dict[str, str]:
    """{name in small letters: the column}; where two differ in capitals alone, the one in small letters."""
    names: dict[str, str] = {}
    for column in columns:
        name = str(column).strip().lower()
        if name not in names or column == name:
            names[name] = column
    return names


def value_at(row: dict[str, Any], names: dict[str, str], path: str, used: set[str]) -> Any:
    """The value at a path: of a column, or of keys within it. used: gets the column. Raises UnusableError if absent."""
    if (column := names.get(path.strip().lower())) is not None:
        used.add(column)
        return row[column]
    head, *keys = path.split(".")
    if not keys or (column := names.get(head.strip().lower())) is None:
        raise UnusableError(f"no '{path}'")
    used.add(column)
    value = row[column]
    for key in keys:
        value = parse_literal(value) if isinstance(value, str) else value
        value = [_field(item, key, path) for item in value] if isinstance(value, list) else _field(value, key, path)
    return value


def _field(value: Any, key: str, path: str) -> Any:
    fields = {str(name).strip().lower(): field for name, field in value.items()} if isinstance(value, dict) else {}
    if key.strip().lower() not in fields:
        raise UnusableError(f"no '{path}'")
    return fields[key.strip().lower()]


def as_list(value: Any) -> list[Any]:
    """A list of one text, or of the texts of a list or tuple."""
    return [value] if isinstance(value, str) else list(value)


def _joined_prompt(values: Sequence[Any]) -> Any:
    """One prompt from several columns: their texts with a blank line between; a single value as it is."""
    if len(values) == 1:
        return values[0]
    texts = [value for value in values if not is_empty(value)]
    if not_texts := [value for value in texts if not isinstance(value, str)]:
        raise UnusableError(f"the prompt has a part that is {describe(not_texts[0])}")
    return "\n\n".join(text.strip() for text in texts)


def _first_turn(value: Any) -> Any:
    """The first of MT-Bench's questions to one conversation."""
    if not isinstance(value, list) or not all(isinstance(turn, str) for turn in value):
        raise UnusableError(f"'turns' is {describe(value)}")
    return value[0] if value else None


# Several answers per row.


def _chosen_and_rejected(columns: Columns, at: Callable[[str], Any], pairs: bool) -> tuple[Any, Any]:
    """(best answer, worst answer) by rank or score; of two answers, (the one that `best` names, the other)."""
    answers = _list_at(columns.answers, at)
    if not pairs:
        return (answers[0] if answers else None), None
    if columns.best:
        return _pair_by_best(answers, columns, at(columns.best))
    cells = _list_at(columns.rank or columns.score, at)
    if len(cells) != len(answers):
        raise UnusableError(f"{len(answers)} answers with {len(cells)} ranks or scores")
    scores = [(float(score), index) for index, score in enumerate(map(_normalised, cells)) if _is_number(score)]
    if not scores or min(scores)[0] == max(scores)[0]:
        raise UnusableError("no answer is the better one")
    extremes = min(scores)[0], max(scores)[0]
    low, high = (next(index for score, index in scores if score == extreme) for extreme in extremes)
    return (answers[low], answers[high]) if columns.rank else (answers[high], answers[low])


def _pair_by_best(answers: list[Any], columns: Columns, cell: Any) -> tuple[Any, Any]:
    if len(answers) != 2:
        raise UnusableError(f"{len(answers)} answers: 'best' needs two, more need 'rank' or 'score'")
    options = columns.values or ("0", "1")
    texts = [[_normalised(value) for value in (item if isinstance(item, tuple) else (item,))] for item in options]
    if isinstance(columns.answers, tuple) and not columns.values:
        texts = [[*text, _normalised(column)] for text, column in zip(texts, columns.answers, strict=True)]
    matches = [index for index, text in enumerate(texts) if _normalised(cell) in text]
    if not matches:
        if columns.values is None and _normalised(cell) not in TIE_VALUES:
            raise NoOptionError(str(cell))
        raise UnusableError("no answer is the better one")
    return answers[matches[0]], answers[1 - matches[0]]


def _list_at(path: str | tuple[str, ...] | None, at: Callable[[str], Any]) -> list[Any]:
    """The cells of several columns, or the items of one column that holds a list."""
    if not isinstance(path, str):
        return [at(column) for column in path or ()]
    value = at(path)
    value = parse_literal(value) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise UnusableError(f"the answers are {describe(value)}, not a list")
    return value


def _normalised(value: Any) -> str:
    """A value as text; 1, 1.0, "1" and true become the same text, because tables spell them in all these ways."""
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    text = str(value).strip().lower()
    return {"true": "1", "false": "0"}.get(text, text.removesuffix(".0"))


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) < float("inf")
    except ValueError:
        return False
