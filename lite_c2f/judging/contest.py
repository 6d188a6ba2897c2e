"""Questions, answers and a judge: who is better, by category."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from lite_c2f.answers import standard_error
from lite_c2f.judging.judges import Judge, in_parts
from lite_c2f.judging.prompts import Message, pairwise, single
from lite_c2f.judging.questions import Question
from lite_c2f.judging.speak import Said
from lite_c2f.judging.verdicts import read_grade, read_verdict
from lite_c2f.kept import Kept

RULE = (
    "each pair of answers is judged in both orders; a win in both is a win, verdicts that disagree are a tie, and a "
    "pair without a readable verdict in either order is left out and counted as unread"
)


class Task(NamedTuple):
    """One thing to ask the judge."""

    name: str
    messages: list[Message]


def ask(judge: Judge, tasks: Sequence[Task], kept: Path, progress: Callable[[int], None]) -> dict[str, str]:
    """The judge's text for every task, by name. kept: a file of those that are done, until the caller removes it."""
    before = Kept(kept, {"judge": judge.name, "tasks": [[task.name, task.messages] for task in tasks]})
    told = {task.name: text for task in tasks if (text := before.get(task.name)) is not None}
    open_ones = [task for task in tasks if task.name not in told]
    progress(len(told))

    def done(first: int, texts: list[str]) -> None:
        for task, text in zip(open_ones[first:], texts, strict=False):
            before.put(task.name, text)
            told[task.name] = text
        progress(len(told))

    in_parts(judge, [task.messages for task in open_ones], done)
    return told


def pair_tasks(questions: Sequence[Question], said: Said, left: str, right: str) -> list[Task]:
    """Both orders of every question."""
    tasks = []
    for question, mine, theirs in zip(questions, said[left], said[right], strict=True):
        tasks.append(Task(f"{question.number} {left} {right}", pairwise(question, mine, theirs)))
        tasks.append(Task(f"{question.number} {right} {left}", pairwise(question, theirs, mine)))
    return tasks


def outcome(verdict: str | None, swapped: str | None) -> str | None:
    """ "win", "loss" or "tie" of the left side, from the verdict with it as A and the one with it as B; None: unread.

    >>> outcome("A", "B"), outcome("A", "A")
    ('win', 'tie')
    """
    if verdict is None or swapped is None:
        return None
    mine = {"A": 1, "B": -1, "tie": 0}[verdict]
    theirs = {"A": -1, "B": 1, "tie": 0}[swapped]
    return {1: "win", -1: "loss", 0: "tie"}[mine] if mine == theirs else "tie"


def pair_table(questions: Sequence[Question], told: dict[str, str], left: str, right: str) -> dict[str, Any]:
    """{"categories": {name: {"win", "tie", "loss", "unread", "rate", "se"}}, "agreement": share of equal orders}.

    rate: wins and half of the ties over what was read; se: its standard error.
    """
    results: dict[str, list[str | None]] = {"all": []}
    agreed = []
    for question in questions:
        verdicts = [read_verdict(told[f"{question.number} {a} {b}"]) for a, b in ((left, right), (right, left))]
        found = outcome(*verdicts)
        if None not in verdicts:
            agreed.append(float({"A": "B", "B": "A", "tie": "tie"}[str(verdicts[1])] == verdicts[0]))
        results["all"].append(found)
        results.setdefault(question.category, []).append(found)
    table = {}
    for category, found_ones in results.items():
        points = [{"win": 1.0, "tie": 0.5, "loss": 0.0}[one] for one in found_ones if one is not None]
        row: dict[str, float] = {name: found_ones.count(name) for name in ("win", "tie", "loss")}
        row["unread"] = found_ones.count(None)
        if points:
            row |= {"rate": round(fmean(points), 4), "se": round(standard_error(points), 4)}
        table[category] = row
    return {"categories": table, "agreement": round(fmean(agreed), 4) if agreed else None}


def grade_tasks(questions: Sequence[Question], said: Said, actors: Sequence[str]) -> list[Task]:
    """Every turn of every actor."""
    return [
        Task(f"{question.number} {actor} {turn}", single(question, said[actor][index], turn))
        for index, question in enumerate(questions)
        for actor in actors
        for turn in range(len(question.turns))
    ]


def grade_table(questions: Sequence[Question], told: dict[str, str], actors: Sequence[str]) -> dict[str, Any]:
    """{actor: {"all", "turn 1", ..., category: mean grade, "se", "unread"}}; grades are 1 to 10."""
    table: dict[str, Any] = {}
    for actor in actors:
        grades: dict[str, list[float]] = {"all": []}
        unread = 0
        for question in questions:
            for turn in range(len(question.turns)):
                grade = read_grade(told[f"{question.number} {actor} {turn}"])
                if grade is None:
                    unread += 1
                    continue
                for name in ("all", f"turn {turn + 1}", question.category):
                    grades.setdefault(name, []).append(grade)
        means = {name: round(fmean(found), 3) for name, found in grades.items() if found}
        table[actor] = {
            **means,
            "se": round(standard_error(grades["all"]), 3) if grades["all"] else 0.0,
            "unread": unread,
        }
    return table
