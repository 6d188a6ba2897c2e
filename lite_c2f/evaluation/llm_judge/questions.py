"""Questions of one or more turns in MT-Bench's file format, and reference answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.errors import DataError


class Question(NamedTuple):
    """A user's turns, and reference answers."""

    number: str  # question_id
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()  # an answer to each turn, if the file of references has them


def load_questions(file: Path, references: Path | None = None, limit: int | None = None) -> list[Question]:
    """Read questions, with their reference answers.

    file: one question per line, {"question_id", "category", "turns": [text, ...]}; references: {"question_id",
    "choices": [{"turns": [text, ...]}]}. limit: at most so many, spread evenly over the file. Raises DataError naming
    file and line.

    >>> load_questions(Path("question.jsonl"))[0].category
    'writing'
    """
    answers: dict[str, tuple[str, ...]] = {}
    for place, row in _rows(references) if references else ():
        try:
            answers[str(row["question_id"])] = tuple(map(_text, row["choices"][0]["turns"]))
        except (KeyError, IndexError, TypeError, ValueError):
            raise DataError.because(
                f"{place}: no reference", '"question_id" and "choices"', "correct that line"
            ) from None
    questions: dict[str, Question] = {}
    for place, row in _rows(file):
        try:
            number, turns = str(row["question_id"]), tuple(map(_text, row["turns"]))
            if not turns:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise DataError.because(
                f"{place}: no question", '"question_id" and "turns", a list of texts', "correct that line"
            ) from None
        if number in questions:
            raise DataError.because(f"{place}: question_id {number} twice", "every question once", "remove one")
        questions[number] = Question(number, str(row.get("category", "other")), turns, answers.get(number, ()))
    if not questions:
        raise DataError.because(f"{file}: no questions", "at least one", "check that the file is complete")
    return evenly_spaced(list(questions.values()), limit)


def evenly_spaced(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """At most `limit` of them, at even distances, so that every category has its share."""
    if limit is None or limit >= len(questions):
        return list(questions)
    return [questions[index * len(questions) // limit] for index in range(limit)]


def _rows(file: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError.because(f"'{file}': {error.strerror}", "a .jsonl file", "check the path") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append((f"{file}:{number}", json.loads(line)))
            except (ValueError, RecursionError):
                raise DataError.because(f"{file}:{number} is not JSON", "one object per line", "correct it") from None
    return rows


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("no text")
    return value
