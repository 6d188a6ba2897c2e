"""Columns of a row: which of them is the prompt, which the answers, by their usual names or by a source's `columns`.

What a row holds is found in any capitalisation. `a.b` names the key b within column a, of every item where a is a list.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from lite_c2f.config.data import Columns
from lite_c2f.data.turns import NoOptionError, UnusableError, decoded, is_empty, look, structured

PROMPTS = ("prompt", "question", "instruction", "messages", "conversations", "input")  # the first that holds something
SYSTEMS = ("system", "system_prompt")
ENDED = ("chosen_ended", "rejected_ended")
ATTACHMENTS = ("images", "image", "videos", "video", "audios", "audio", "tools")  # part of what was asked
_MISSING = object()


TIES = {
    "",
    "none",
    "null",
    "nan",
    "0.5",
    "tie",
    "tied",
    "draw",
    "both",
    "neither",
    "equal",
    "same",
}  # and others by `values`


class Cells(NamedTuple):
    """What a row holds, by what it is for, and the columns that are for nothing."""

    prompt: Any  # None where there is none, or an empty one
    input: Any  # Alpaca's: more of the prompt
    history: Any  # Alpaca's: pairs of earlier prompts and answers
    system: Any
    chosen: Any
    rejected: Any
    ended: tuple[Any, Any]  # of chosen and rejected
    has: frozenset[str]  # "prompt", "chosen", "rejected": which of them the row has a column for
    rest: dict[str, Any]  # the other columns, with what is not null


class _Usual(NamedTuple):
    """The columns of a row that have usual names, by what they are for, in the order in which they are tried."""

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


def named(row: dict[str, Any], columns: Columns | None = None, *, pairs: bool = True) -> Cells:
    """Sort a row's cells by what they are for.

    columns: the source's own names; pairs: False where the prompt alone is wanted, so that which answer is the better
    one does not matter.
    Raises UnusableError naming a column of `columns` that the row does not have, answers of which none is the better
    one, and images or tools, without which a text says another thing.
    """
    usual = _usual(tuple(row), pairs)
    used: set[str] = set()

    def first(options: Sequence[str]) -> Any:
        """The first of these columns that holds something, else any of them; _MISSING where there is none."""
        if not options:
            return _MISSING
        column = options[0]
        if len(options) > 1:
            column = next((name for name in options if not is_empty(row[name])), column)
        used.add(column)
        return row[column]

    def at(path: str) -> Any:
        return value_at(row, usual.spellings, path, used)

    more, history = None, None
    if columns and columns.prompt:
        prompt = _put_together([at(path) for path in listed(columns.prompt)])
    else:
        prompt = first(usual.prompt)
        if usual.input and used.isdisjoint(usual.input):
            more = first(usual.input)
        if usual.history and prompt is not _MISSING:
            history = first(usual.history)
        if not pairs and any(column.strip().lower() == "turns" for column in used):
            prompt = _first_turn(prompt)
    system = at(columns.system) if columns and columns.system else first(usual.system)
    if columns and columns.answers:
        chosen, rejected = _answers(columns, at, pairs)
    else:
        chosen = at(columns.chosen) if columns and columns.chosen else first(usual.chosen)
        rejected = at(columns.rejected) if columns and columns.rejected else first(usual.rejected)
    ended = first(usual.chosen_ended), first(usual.rejected_ended)
    for column in usual.attachments:
        if column not in used and not is_empty(row[column]) and row[column] != "[]":
            raise UnusableError(f"has '{column}'")
    sides = decoded(chosen), decoded(rejected)
    if not pairs or not any(isinstance(side, str) for side in sides):  # one alone may be an answer about messages
        chosen, rejected = sides
    there = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    rest = {str(name): cell for name, cell in row.items() if name not in used and cell is not None}
    return Cells(
        _held(decoded(prompt)),
        _held(more),
        _held(history),
        _held(system),
        _held(chosen),
        _held(rejected),
        (_held(ended[0]), _held(ended[1])),
        frozenset([name for name, value in there.items() if value is not _MISSING]),
        rest,
    )


def _held(value: Any) -> Any:
    return None if value is _MISSING or is_empty(value) else value


@lru_cache(maxsize=64)
def _usual(columns: tuple[str, ...], pairs: bool) -> _Usual:
    names = spellings(columns)

    def there(*options: str) -> tuple[str, ...]:
        return tuple(names[name] for name in options if name in names)

    return _Usual(
        spellings=names,
        prompt=there(*PROMPTS) if pairs else there(*PROMPTS[:3], "turns", *PROMPTS[3:]),
        input=there("input"),
        history=there("history"),
        system=there(*SYSTEMS),
        chosen=there("chosen"),
        rejected=there("rejected"),
        chosen_ended=there(ENDED[0]),
        rejected_ended=there(ENDED[1]),
        attachments=there(*ATTACHMENTS),
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
    """What stands at a path: a column, or keys within it."""
    if (column := names.get(path.strip().lower())) is not None:
        used.add(column)
        return row[column]
    head, *keys = path.split(".")
    if not keys or (column := names.get(head.strip().lower())) is None:
        raise UnusableError(f"no '{path}'")
    used.add(column)
    value = row[column]
    for key in keys:
        value = structured(value) if isinstance(value, str) else value
        inner = [_key(item, key, path) for item in value] if isinstance(value, list) else _key(value, key, path)
        value = inner
    return value


def _key(value: Any, key: str, path: str) -> Any:
    fields = {str(name).strip().lower(): field for name, field in value.items()} if isinstance(value, dict) else {}
    if key.strip().lower() not in fields:
        raise UnusableError(f"no '{path}'")
    return fields[key.strip().lower()]


def listed(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value)


def _put_together(values: Sequence[Any]) -> Any:
    """One prompt of several columns: their texts with a blank line between; a single one as it is."""
    if len(values) == 1:
        return values[0]
    texts = [value for value in values if not is_empty(value)]
    if odd := [value for value in texts if not isinstance(value, str)]:
        raise UnusableError(f"the prompt has a part that is {look(odd[0])}")
    return "\n\n".join(text.strip() for text in texts)


def _first_turn(value: Any) -> Any:
    """The first of MT-Bench's questions to one conversation."""
    if not isinstance(value, list) or not all(isinstance(turn, str) for turn in value):
        raise UnusableError(f"'turns' is {look(value)}")
    return value[0] if value else None


# Several answers, of which one is the best.


def _answers(columns: Columns, at: Callable[[str], Any], pairs: bool) -> tuple[Any, Any]:
    """(the best answer, a worse one): the worst by rank or score, the other one where the best of two is known."""
    answers = _each(columns.answers, at)
    if not pairs:
        return (answers[0] if answers else None), None
    if columns.best:
        return _by_best(answers, columns, at(columns.best))
    cells = _each(columns.rank or columns.score, at)
    if len(cells) != len(answers):
        raise UnusableError(f"{len(answers)} answers with {len(cells)} ranks or scores")
    marks = [(float(mark), place) for place, mark in enumerate(map(_plain, cells)) if _is_number(mark)]
    if not marks or min(marks)[0] == max(marks)[0]:
        raise UnusableError("no answer is the better one")
    low, high = (next(place for mark, place in marks if mark == end) for end in (min(marks)[0], max(marks)[0]))
    return (answers[low], answers[high]) if columns.rank else (answers[high], answers[low])


def _by_best(answers: list[Any], columns: Columns, cell: Any) -> tuple[Any, Any]:
    if len(answers) != 2:
        raise UnusableError(f"{len(answers)} answers: 'best' needs two, more need 'rank' or 'score'")
    options = columns.values or ("0", "1")
    texts = [[_plain(value) for value in (each if isinstance(each, tuple) else (each,))] for each in options]
    if isinstance(columns.answers, tuple) and not columns.values:
        texts = [[*text, _plain(column)] for text, column in zip(texts, columns.answers, strict=True)]
    places = [place for place, text in enumerate(texts) if _plain(cell) in text]
    if not places:
        if columns.values is None and _plain(cell) not in TIES:
            raise NoOptionError(str(cell))
        raise UnusableError("no answer is the better one")
    return answers[places[0]], answers[1 - places[0]]


def _each(path: str | tuple[str, ...] | None, at: Callable[[str], Any]) -> list[Any]:
    """What several columns hold, or one that is a list."""
    if not isinstance(path, str):
        return [at(column) for column in path or ()]
    value = at(path)
    value = structured(value) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise UnusableError(f"the answers are {look(value)}, not a list")
    return value


def _plain(value: Any) -> str:
    """A value as text: 1, 1.0, "1" and true are one, since tables spell them so."""
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    text = str(value).strip().lower()
    return {"true": "1", "false": "0"}.get(text, text.removesuffix(".0"))


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) < float("inf")
    except ValueError:
        return False
