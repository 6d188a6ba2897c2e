"""Judging of answers, in pairs or by grades, and the tables of wins and grades by category."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from lite_c2f.actors.answers import standard_error
from lite_c2f.errors import ModelError
from lite_c2f.evaluation.llm_judge.conversations import Answers
from lite_c2f.evaluation.llm_judge.judges import Judge, judge_in_batches
from lite_c2f.evaluation.llm_judge.prompts import Message, grading_prompt, pairwise_prompt
from lite_c2f.evaluation.llm_judge.questions import Question
from lite_c2f.evaluation.llm_judge.replies import KEY_VARIABLE, ServerRefusal
from lite_c2f.evaluation.llm_judge.verdicts import read_grade, read_verdict
from lite_c2f.storage.results import ResultCache

RULE = (
    "each pair of answers is judged in both orders; a win in both is a win, verdicts that disagree are a tie, and a "
    "pair without a readable verdict in either order is left out and counted as unread"
)

MIN_REFUSALS = 8  # judging stops when the first 8 requests are all refused (two orders of four questions)


class JudgeRequest(NamedTuple):
    """One question to the judge."""

    name: str
    messages: list[Message]


class Judgments(NamedTuple):
    """The judge's texts and refusals, by the name of the request."""

    texts: dict[str, str]  # of all requests; "" where it was refused
    refusals: dict[str, str]  # the server's message


def run_judge(judge: Judge, tasks: Sequence[JudgeRequest], file: Path, progress: Callable[[int], None]) -> Judgments:
    """The judge's text for every request. file: stores finished ones, until the caller removes it.

    progress: called with their number. Raises ModelError if the first requests are all refused: the
    reason is then not a single question.
    """
    cache = ResultCache(file, {"judge": judge.name, "tasks": [[task.name, task.messages] for task in tasks]})
    values = {task.name: value for task in tasks if (value := cache.get(task.name)) is not None}
    remaining = [task for task in tasks if task.name not in values]
    first_refusals: dict[str, ServerRefusal] = {}  # not saved until one request is judged
    progress(len(values))

    def save(offset: int, replies: Sequence[str | ServerRefusal]) -> None:
        results = dict(first_refusals) | {
            task.name: reply for task, reply in zip(remaining[offset:], replies, strict=False)
        }
        refusals = {name: reply for name, reply in results.items() if isinstance(reply, ServerRefusal)}
        if not values and len(refusals) == len(results):
            first_refusals.update(refusals)
            if len(first_refusals) >= min(MIN_REFUSALS, len(remaining)):
                raise _all_refused(judge, list(first_refusals.values()))
            return
        first_refusals.clear()
        for name, reply in results.items():
            values[name] = {"refused": reply.sentence} if isinstance(reply, ServerRefusal) else reply
            cache.put(name, values[name])
        progress(len(values))

    judge_in_batches(judge, [task.messages for task in remaining], save)
    refusals = {name: value["refused"] for name, value in values.items() if isinstance(value, dict)}
    return Judgments(values | dict.fromkeys(refusals, ""), refusals)


def most_common(refusals: Iterable[str]) -> str:
    """The most frequent message."""
    return Counter(refusals).most_common(1)[0][0]


def _all_refused(judge: Judge, refusals: Sequence[ServerRefusal]) -> ModelError:
    sentence = most_common(refusal.sentence for refusal in refusals)
    got = f"judge {judge.name}: all of the first {len(refusals)} requests were refused: {sentence}"
    return ModelError.because(got, "judgments", f"check --url, --judge and {KEY_VARIABLE}, or take another judge")


def pair_tasks(questions: Sequence[Question], answers: Answers, left: str, right: str) -> list[JudgeRequest]:
    """Every question in both orders of the actors."""
    tasks = []
    for question, first, second in zip(questions, answers[left], answers[right], strict=True):
        tasks.append(JudgeRequest(f"{question.number} {left} {right}", pairwise_prompt(question, first, second)))
        tasks.append(JudgeRequest(f"{question.number} {right} {left}", pairwise_prompt(question, second, first)))
    return tasks


def outcome(left_first: str | None, left_second: str | None) -> str | None:
    """ "win", "loss" or "tie" of the left side; None if a verdict could not be read.

    left_first: the verdict with the left side as A; left_second: with it as B.

    >>> outcome("A", "B"), outcome("A", "A")
    ('win', 'tie')
    """
    if left_first is None or left_second is None:
        return None
    point = {"A": 1, "B": -1, "tie": 0}[left_first]
    swapped_point = {"A": -1, "B": 1, "tie": 0}[left_second]
    return {1: "win", -1: "loss", 0: "tie"}[point] if point == swapped_point else "tie"


def pair_table(questions: Sequence[Question], texts: dict[str, str], left: str, right: str) -> dict[str, Any]:
    """{"categories": {name: {"win", "tie", "loss", "unread", "rate", "se"}}, "agreement": share of pairs judged alike}.

    rate: (wins + ties / 2) over all readable pairs; se: its standard error; alike: the same verdict in both orders.
    """
    results: dict[str, list[str | None]] = {"all": []}
    agreed = []
    for question in questions:
        verdicts = [read_verdict(texts[f"{question.number} {a} {b}"]) for a, b in ((left, right), (right, left))]
        result = outcome(*verdicts)
        if None not in verdicts:
            agreed.append(float({"A": "B", "B": "A", "tie": "tie"}[str(verdicts[1])] == verdicts[0]))
        results["all"].append(result)
        results.setdefault(question.category, []).append(result)
    table = {}
    for category, outcomes in results.items():
        points = [{"win": 1.0, "tie": 0.5, "loss": 0.0}[result] for result in outcomes if result is not None]
        row: dict[str, float] = {name: outcomes.count(name) for name in ("win", "tie", "loss")}
        row["unread"] = outcomes.count(None)
        if points:
            row |= {"rate": round(fmean(points), 4), "se": round(standard_error(points), 4)}
        table[category] = row
    return {"categories": table, "agreement": round(fmean(agreed), 4) if agreed else None}


def grade_tasks(questions: Sequence[Question], answers: Answers, actors: Sequence[str]) -> list[JudgeRequest]:
    """Every turn of every question by every actor."""
    return [
        JudgeRequest(f"{question.number} {actor} {turn}", grading_prompt(question, answers[actor][index], turn))
        for index, question in enumerate(questions)
        for actor in actors
        for turn in range(len(question.turns))
    ]


def grade_table(questions: Sequence[Question], texts: dict[str, str], actors: Sequence[str]) -> dict[str, Any]:
    """{actor: {"all", "turn 1", ..., category: mean grade, "se", "unread"}}; grades are 1 to 10."""
    table: dict[str, Any] = {}
    for actor in actors:
        grades: dict[str, list[float]] = {"all": []}
        unparsed = 0
        for question in questions:
            for turn in range(len(question.turns)):
                grade = read_grade(texts[f"{question.number} {actor} {turn}"])
                if grade is None:
                    unparsed += 1
                    continue
                for name in ("all", f"turn {turn + 1}", question.category):
                    grades.setdefault(name, []).append(grade)
        means = {name: round(fmean(values), 3) for name, values in grades.items() if values}
        table[actor] = {
            **means,
            "se": round(standard_error(grades["all"]), 3) if grades["all"] else 0.0,
            "unread": unparsed,
        }
    return table
