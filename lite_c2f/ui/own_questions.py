"""Questions of a visitor, as typed, pasted or read from a file: one per line, or one JSON object per line."""

import json
from typing import Any

from lite_c2f.chat.history import clean
from lite_c2f.chat.panes import MAX_TEXT_CHARACTERS
from lite_c2f.errors import DataError

MAX_QUESTIONS = 200
MAX_CHARACTERS = 200_000  # of all questions: as JSON they stay below the bytes that a request may have
FIELDS = ("prompt", "question")  # of a JSON line, the first one that it has


def questions_in(text: str) -> list[str]:
    """The questions of a text in their order, each once; empty lines are left out.

    Where the first line that is not empty is a JSON object, each line is one: its `prompt` or `question` may have line
    breaks. Otherwise a line is a question. Raises DataError naming the line that is not one, and for none, too many,
    or too long ones.

    >>> questions_in("Why?\\n\\n  How? \\nWhy?")
    ['Why?', 'How?']
    """
    if len(text) > MAX_CHARACTERS:
        got = f"{len(text):,} characters"
        raise DataError.because(got, f"at most {MAX_CHARACTERS:,}", "ask them in several sets")
    # Not splitlines(), for which there are more ends of a line than editors show.
    lines = [(number, line.strip()) for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line]
    as_json = bool(lines) and isinstance(_value(lines[0][1]), dict)
    questions: dict[str, None] = {}
    for number, line in lines:
        question = clean(_question_of(number, line) if as_json else line).strip()
        if not question:
            raise DataError.because(f"line {number}: an empty question", "some text", "fill it or remove the line")
        if len(question) > MAX_TEXT_CHARACTERS:
            got = f"line {number}: a question of {len(question):,} characters"
            raise DataError.because(got, f"at most {MAX_TEXT_CHARACTERS:,}", "shorten it")
        questions[question] = None
    if not questions:
        raise DataError.because("no question", "one per line", "type or paste some, or choose a file")
    if len(questions) > MAX_QUESTIONS:
        raise DataError.because(f"{len(questions)} questions", f"at most {MAX_QUESTIONS}", "ask them in several sets")
    return list(questions)


def _value(line: str) -> Any:
    """The value of a line of JSON; None for any other."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _question_of(number: int, line: str) -> str:
    row = _value(line)
    if not isinstance(row, dict):
        raise DataError.because(f"line {number} is no JSON object", "one per line, as the first", "correct that line")
    for name in FIELDS:
        if isinstance(row.get(name), str):
            return str(row[name])
    expected = f'a text under "{FIELDS[0]}" or "{FIELDS[1]}"'
    raise DataError.because(f"line {number} has no question", expected, "add it, or remove the line")
