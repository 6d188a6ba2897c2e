"""Table of the held-out prompts: a row per prompt with every actor's answer; presets, filters, search, order.

Pure functions over the lines of evaluation/responses.jsonl. Nothing is computed anew: rewards, tokens and repetition
are those that the comparison wrote.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.actors.names import ACTORS, FINE, INSTRUCT
from lite_c2f.evaluation.sections import read_part
from lite_c2f.storage.files import read_lines

CUT = "limit"  # how an answer that was cut off ended
AGAIN = "evaluate the run again"


class ActorAnswer(NamedTuple):
    """One actor's answer to a prompt."""

    text: str
    finish: str  # "eos" | "stop" | "limit" | "error"
    tokens: int
    reward: float | None  # z-score; None where nothing has scored it
    repeated: float  # share of its 4-grams of tokens that the answer had before, 0 to 1
    message: str = ""  # why there is no answer, where it failed
    question_cut: bool = False  # the question did not fit: its beginning was not read

    @property
    def cut_off(self) -> bool:
        return self.finish == CUT


class PromptRow(NamedTuple):
    """A held-out prompt and what the actors answered."""

    number: int  # its place in the file, from 0
    prompt: str
    source: str  # "" where the run has one source of data
    category: str  # of the data's column of that name, "" without
    answers: Mapping[str, ActorAnswer]


class Query(NamedTuple):
    """Which rows are shown, and in which order."""

    preset: str = "all"  # a key of PRESETS
    search: str = ""  # in prompts and answers, whatever the case
    source: str = ""  # "" is any
    category: str = ""
    column: str = ""  # that they are sorted by, of `sort_keys`; "" is the preset's own order
    descending: bool = False


class Preset(NamedTuple):
    """Rows of one kind, in the order that shows its worst first."""

    title: str
    weight: Callable[[PromptRow], float] | None = None  # descending; None keeps the order of the file
    positive: bool = True  # only rows whose weight is above 0


def read_prompts(file: Path) -> list[PromptRow]:
    """The rows of a responses.jsonl, [] if there is none. Raises RunError for a file of another format."""
    return read_part(file, _rows_of, AGAIN)


def _rows_of(file: Path) -> list[PromptRow]:
    return rows_of(read_lines(file))


def rows_of(lines: Iterable[Mapping[str, Any]]) -> list[PromptRow]:
    """The rows of the lines of a responses.jsonl. Raises what looking up and converting raise for another format."""
    rows: list[PromptRow] = []
    for line in lines:
        actor, answer = line["actor"], _answer(line)
        # The lines of a prompt follow each other; the same prompt may stand in the data twice.
        if not rows or rows[-1].prompt != line["prompt"] or actor in rows[-1].answers:
            category = line.get("row", {}).get("category")
            category = category if isinstance(category, str) else ""
            rows.append(PromptRow(len(rows), str(line["prompt"]), str(line.get("source", "")), category, {}))
        rows[-1] = rows[-1]._replace(answers={**rows[-1].answers, actor: answer})
    return rows


def _answer(line: Mapping[str, Any]) -> ActorAnswer:
    reward = None if line["reward"] is None else float(line["reward"])
    numbers = int(line["tokens"]), reward, float(line["repeated_4gram"])
    more = str(line.get("message", "")), bool(line.get("question_cut", False))
    return ActorAnswer(str(line["response"]), str(line["finish"]), *numbers, *more)


def loss_to_baseline(row: PromptRow) -> float:
    """By how much the reward of the Fine Actor is below the instruct model's; 0 where one of them is missing."""
    fine, baseline = row.answers.get(FINE), row.answers.get(INSTRUCT)
    if not fine or not baseline or fine.reward is None or baseline.reward is None:
        return 0.0
    return baseline.reward - fine.reward


def _most(row: PromptRow, name: str) -> float:
    """The largest figure of that name among a row's answers; 0 where it has none yet."""
    return max((getattr(answer, name) for answer in row.answers.values()), default=0)


PRESETS = {
    "all": Preset("All prompts"),
    "lost": Preset("Fine lost to Baseline", loss_to_baseline),
    "longest": Preset("Longest answers", lambda row: _most(row, "tokens"), False),
    "repeated": Preset("Most repeated", lambda row: _most(row, "repeated")),
    "cut": Preset("Cut off", lambda row: sum(each.cut_off for each in row.answers.values())),
}
FIGURES: Mapping[str, Callable[[ActorAnswer], float | None]] = {
    "reward": lambda answer: answer.reward,
    "tokens": lambda answer: answer.tokens,
    "repeated": lambda answer: answer.repeated,
    "cut": lambda answer: answer.cut_off,
}
TEXTS: Mapping[str, Callable[[PromptRow], str]] = {
    "prompt": lambda row: row.prompt.casefold(),
    "source": lambda row: row.source,
    "category": lambda row: row.category,
}


def actors_of(rows: Sequence[PromptRow]) -> list[str]:
    """The actors that answered, in the order of ACTORS."""
    present = {actor for row in rows for actor in row.answers}
    return [actor for actor in ACTORS if actor in present]


def sort_keys(actors: Sequence[str]) -> list[str]:
    """Names of the columns that a table can be sorted by: `prompt`, `source`, `category`, and `FIGURE:ACTOR`."""
    return [*TEXTS, *(f"{figure}:{actor}" for actor in actors for figure in FIGURES)]


def select(rows: Sequence[PromptRow], query: Query) -> list[PromptRow]:
    """The rows that a query asks for, in its order. Raises KeyError for an unknown preset or column.

    Equal rows keep the order of the preset; those that lack the column's figure come last, in both directions.
    """
    preset, wanted = PRESETS[query.preset], query.search.casefold().strip()
    found = [row for row in rows if _matches(row, query, wanted)]
    if (weight := preset.weight) is not None:
        found = [row for row in found if not preset.positive or weight(row) > 0]
        found.sort(key=weight, reverse=True)
    if not query.column:
        return found
    if query.column in TEXTS:
        return sorted(found, key=TEXTS[query.column], reverse=query.descending)
    name, _, actor = query.column.partition(":")
    figure = FIGURES[name]
    values = {row.number: value for row in found if (value := _value(row, actor, figure)) is not None}
    having = [row for row in found if row.number in values]
    having.sort(key=lambda row: values[row.number], reverse=query.descending)
    return [*having, *(row for row in found if row.number not in values)]


def _value(row: PromptRow, actor: str, figure: Callable[[ActorAnswer], float | None]) -> float | None:
    return figure(row.answers[actor]) if actor in row.answers else None


def _matches(row: PromptRow, query: Query, wanted: str) -> bool:
    if (query.source and row.source != query.source) or (query.category and row.category != query.category):
        return False
    texts = (row.prompt, *(answer.text for answer in row.answers.values()))
    return not wanted or any(wanted in text.casefold() for text in texts)
