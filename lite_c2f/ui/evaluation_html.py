"""Evaluation tab as HTML: the summary of a run's comparison, the table of its prompts, the answers to one of them."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from lite_c2f.actors.names import BASELINE, INSTRUCT
from lite_c2f.chat import ALL_PANES, TITLES
from lite_c2f.errors import C2FError
from lite_c2f.evaluation import extras, sections
from lite_c2f.evaluation.page import Block
from lite_c2f.evaluation.prompt_table import ActorAnswer, PromptRow, Query, actors_of, read_prompts
from lite_c2f.evaluation.sections import Section
from lite_c2f.ui.escaping import fill
from lite_c2f.ui.figures import REPEATED, REWARD, figure_table, signed
from lite_c2f.ui.render import AnswerView, answer_view
from lite_c2f.ui.runs import RunState
from lite_c2f.ui.store.conversations import Reply

FILES = ("responses.jsonl", "metrics.json", "general.json", "judge-pairwise.json", "judge-single.json")
SHOWN = 50  # rows on a page of the table
PROMPT_LENGTH = 110  # characters of a prompt in the table
# Sections of the report, in its words: those in sight, and those that are folded.
PARTS = (sections.actors, sections.win_rates, sections.distributions, extras.judgments, extras.general)
FOLDED = (sections.variety, sections.actors_by_source)
LATER = (  # what a run gets by a command of its own: its name, the command, its files
    ("Judgments by a model", "lite-c2f judge", ("judge-pairwise.json", "judge-single.json")),
    ("General benchmarks", "lite-c2f eval --tasks", ("general.json",)),
)

Version = tuple[tuple[int, int] | None, ...]  # (time of change in ns, bytes) of each of FILES; None where it is missing


class Header(NamedTuple):
    """The head of a column that the table can be sorted by."""

    key: str
    title: str
    tooltip: str
    order: str  # "ascending", "descending", or "" where the table is not sorted by it


class Line(NamedTuple):
    """A row of the table."""

    number: int
    cells: list[tuple[str, str]]  # text and CSS class, of the columns after the prompt
    prompt: str


class AnswerColumn(NamedTuple):
    """An actor's answer beside the others."""

    title: str
    answer: AnswerView


COLUMNS = (
    ("reward", "reward", REWARD),
    ("tokens", "tokens", "length of the answer, its ending included"),
    ("repeated", "repeated 4-grams", REPEATED),
    ("cut", "cut off", "it hit the limit of tokens"),
)


def version_of(run: Path) -> Version:
    """What the files of the evaluation are now: other numbers when one has changed."""
    return tuple(_stamp(run / "evaluation" / name) for name in (*FILES, "../summary.json"))


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=2)
def prompt_rows(run: Path, version: Version) -> tuple[PromptRow, ...]:
    """The held-out prompts, read once for all visitors until a file changes. Raises RunError for another format."""
    return tuple(read_prompts(run / "evaluation" / "responses.jsonl"))


@lru_cache(maxsize=2)
def summary(run: Path, version: Version) -> str:
    """Means, win rates with intervals, histograms, judgments and benchmarks, as in the report."""
    errors: list[str] = []
    shown, folded = (_blocks(parts, run, errors) for parts in (PARTS, FOLDED))
    missing = [
        (title, command)
        for title, command, names in LATER
        if not any((run / "evaluation" / name).is_file() for name in names)
    ]
    return fill("evaluation_summary.html", blocks=shown, folded=folded, errors=errors, missing=missing)


def summary_of(blocks: Sequence[Block]) -> str:
    """Blocks of a report as they are."""
    kinds = [(type(block).__name__, block) for block in blocks]
    return fill("evaluation_summary.html", blocks=kinds, folded=[], errors=[], missing=[])


def _blocks(parts: Iterable[Section], run: Path, errors: list[str]) -> list[tuple[str, Block]]:
    """(kind, block) of sections. A section that cannot be read is left out, and its message added to `errors`."""
    blocks: list[Block] = []
    for part in parts:
        try:
            blocks += part(run)
        except C2FError as error:
            errors.append(str(error))
    return [(type(block).__name__, block) for block in blocks]


def damaged(error: C2FError) -> str:
    """What is shown of an evaluation that cannot be read."""
    return fill("evaluation_summary.html", blocks=[], folded=[], errors=[str(error)], missing=[])


def unevaluated(state: RunState, bars: str) -> str:
    """What is shown of a run whose actors have not been compared yet. bars: HTML of its stages."""
    return fill("evaluation_missing.html", name=state.name, working=state.working, bars=bars)


def table(rows: Sequence[PromptRow], found: Sequence[PromptRow], query: Query, page: int) -> str:
    """One page of the rows found. rows: all of the run, by which the columns are those of the whole table."""
    actors = [actor for actor in map(_actor, ALL_PANES) if actor in actors_of(rows)]
    texts = [name for name in ("source", "category") if any(getattr(row, name) for row in rows)]
    shown = found[page * SHOWN : (page + 1) * SHOWN]
    return fill(
        "evaluation_table.html",
        prompt=_header("prompt", "prompt", "as the actors were asked", query),
        texts=[_header(name, name, "of the data that the prompt comes from", query) for name in texts],
        actors=[
            (_title(actor), [_header(f"{key}:{actor}", name, about, query) for key, name, about in COLUMNS])
            for actor in actors
        ],
        lines=[Line(row.number, _cells(row, texts, actors), _short(row.prompt)) for row in shown],
        place=f"{page * SHOWN + 1} to {page * SHOWN + len(shown)} of {len(found)}" if shown else "",
        all=len(rows),
    )


def _header(key: str, title: str, tooltip: str, query: Query) -> Header:
    order = ("descending" if query.descending else "ascending") if query.column == key else ""
    return Header(key, title, tooltip, order)


def _cells(row: PromptRow, texts: Sequence[str], actors: Sequence[str]) -> list[tuple[str, str]]:
    cells = [(getattr(row, name), "text") for name in texts]
    for actor in actors:
        answer = row.answers.get(actor)
        first, *others = _figures(answer) if answer else [""] * len(COLUMNS)
        cells += [(first, "first"), *((text, "") for text in others)]
    return cells


def _figures(answer: ActorAnswer) -> list[str]:
    if answer.finish == "error":
        return ["failed", *[""] * (len(COLUMNS) - 1)]
    reward = "" if answer.reward is None else signed(answer.reward)
    return [reward, str(answer.tokens), f"{answer.repeated:.0%}", "yes" if answer.cut_off else ""]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= PROMPT_LENGTH else f"{line[: PROMPT_LENGTH - 1]}…"


def answers(row: PromptRow | None, place: str) -> str:
    """The answers of all actors to one prompt beside each other, with the figures as in Compare. place: `3 of 64`."""
    if row is None:
        return fill("evaluation_answers.html", row=None)
    replies = {pane: _reply(pane, row.answers[_actor(pane)]) for pane in ALL_PANES if _actor(pane) in row.answers}
    columns = [AnswerColumn(TITLES[pane], answer_view(reply)) for pane, reply in replies.items()]
    figures = figure_table({TITLES[pane]: reply for pane, reply in replies.items()}, replies.get("coarse"), timed=False)
    about = ", ".join(text for text in (place, row.source, row.category) if text)
    return fill("evaluation_answers.html", row=row, about=about, columns=columns, figures=figures)


def _actor(pane: str) -> str:
    """The name that evaluation/ has for a pane's actor."""
    return INSTRUCT if pane == BASELINE else pane


def _title(actor: str) -> str:
    return TITLES[BASELINE if actor == INSTRUCT else actor]


def _reply(pane: str, answer: ActorAnswer) -> Reply:
    reply = Reply(pane, answer.text, answer.tokens, 0.0, answer.finish, answer.message)
    return reply._replace(reward=answer.reward, repeated=answer.repeated, cut=answer.question_cut)
