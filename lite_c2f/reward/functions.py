"""Reward functions: what one gets and gives, and ready-made ones.

A reward function is called with a `RewardInputs` of a whole batch, and with its source's `arguments` by name. It
returns one number per response, or None where it does not apply; it may be a coroutine function. All are our own
definitions of what is usual.
"""

import copy
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

_NUMBER = re.compile(r"[-\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


class Row(dict[str, Any]):
    """The other columns of a prompt's row of data; a column that is absent raises KeyError with those there are."""

    def __missing__(self, column: str) -> Any:
        raise KeyError(f"no column '{column}', the row has {', '.join(sorted(self)) or 'no other columns'}")


class RewardInputs(NamedTuple):
    """Responses to score: N entries in each field."""

    prompts: list[str]  # text of the last human turn
    responses: list[str]  # without what ended it, and stripped
    token_ids: list[list[int]]  # of the response, likewise without its ending
    finish: list[str]  # "eos" or "stop" (ended by itself), "limit" (cut off)
    rows: list[Row]
    turns: list[list[tuple[str, str]]]  # the whole conversation: (role, text), role "system", "human" or "assistant"

    def part(self, indices: Sequence[int]) -> "RewardInputs":
        """The inputs of some responses."""
        columns: Any = ([field[index] for index in indices] for field in self)
        return RewardInputs(*columns)

    def copied(self) -> "RewardInputs":
        """Inputs that can be changed without changing these."""
        return RewardInputs(
            list(self.prompts),
            list(self.responses),
            [list(ids) for ids in self.token_ids],
            list(self.finish),
            copy.deepcopy(self.rows),
            [list(turns) for turns in self.turns],
        )


def ended(inputs: RewardInputs) -> list[float]:
    """1 for a response that ended by itself, 0 for one that was cut off at the limit.

    >>> ended(RewardInputs(["?"], ["Yes"], [[5]], ["limit"], [Row()], [[]]))
    [0.0]
    """
    return [float(finish != "limit") for finish in inputs.finish]


def length(inputs: RewardInputs, *, target: int, slope: float = 0.01) -> list[float]:
    """-slope * |tokens - target|: 0 at `target` tokens, `slope` less for each token more or fewer."""
    return [-slope * abs(len(tokens) - target) for tokens in inputs.token_ids]


def tokens(inputs: RewardInputs) -> list[float]:
    """The number of tokens: pays for length alone. As a reward, an example of what not to do."""
    return [float(len(tokens)) for tokens in inputs.token_ids]


def repetition(inputs: RewardInputs, *, n: int = 4) -> list[float]:
    """Minus the share of a response's n-grams of tokens that repeat an earlier one, -1 to 0.

    Raises ValueError for n below 1.
    """
    if n < 1:
        raise ValueError(f"n={n}, expected 1 or more")
    scores = []
    for ids in inputs.token_ids:
        grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
        scores.append(len(set(grams)) / len(grams) - 1 if grams else 0.0)
    return scores


def format(inputs: RewardInputs, *, pattern: str) -> list[float]:
    """1 where the regular expression matches anywhere in the response (anchor it with ^ and $), else 0.

    `.` matches line breaks too.
    """
    expression = re.compile(pattern, re.DOTALL)
    return [float(expression.search(text) is not None) for text in inputs.responses]


def number_matches(inputs: RewardInputs, *, column: str = "answer") -> list[float | None]:
    """1 where the response's last number is that of the row's column `column`, else 0; None where that has no number.

    Of a text in the column the last number counts, as in GSM8K's `... #### 42`. Commas between thousands are ignored,
    and a minus may be U+2212.
    Raises KeyError for a row without the column.
    """
    scores: list[float | None] = []
    for text, row in zip(inputs.responses, inputs.rows, strict=True):
        value, got = row[column], last_number(text)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        expected = float(value) if is_number else last_number(str(value))  # str(1e16) ends with 16
        if expected is not None and not math.isfinite(expected):  # NaN: how some files hold an empty cell
            expected = None
        scores.append(None if expected is None else float(got is not None and abs(got - expected) < 1e-6))
    return scores


def contains(inputs: RewardInputs, *, text: str | None = None, column: str | None = None) -> list[float | None]:
    """1 where the response contains a text, or that of the row's column, whatever the case of letters; else 0.

    None where the column is empty, which every response would contain. Raises ValueError unless one of `text` and
    `column` is given, KeyError for a row without the column.
    """
    if bool(text) == bool(column):
        raise ValueError("contains needs `text` or `column` among its arguments")
    wanted = [text if column is None else row[column] for row in inputs.rows]
    return [
        None if part is None or not str(part).strip() else float(str(part).lower() in got.lower())
        for part, got in zip(wanted, inputs.responses, strict=True)
    ]


def last_number(text: str) -> float | None:
    """The last number of a text; None where there is none.

    >>> last_number("1,200 of 3.5, so 7.")
    7.0
    """
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "").replace("\u2212", "-")) if numbers else None
