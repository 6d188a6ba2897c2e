"""Pairs and prompts of the embedded real model, from its own answers to our questions.

ANSWERS is shipped: one answer of SmolLM2-135M-Instruct to each question for each form of prompt and temperature in
`SAMPLING_GRID`, by `pipeline.own_answers`, which takes an hour on two cores. Pairs are made of it by rules.py when
they are read, so that other rules need no other answers.
"""

import gzip
import itertools
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lite_c2f.data.records import Pair, Prompt, Turn
from lite_c2f.smollm.questions import CheckedQuestion, questions
from lite_c2f.smollm.rules import pairs_of_answers

ANSWERS = Path(__file__).with_name("answers.jsonl.gz")
TRAINED, HELD_OUT = 480, 160  # questions
PLAIN, CHAT = "plain", "chat"  # forms of prompt: `Human:` and `Assistant:` text, the chat template
SAMPLING_GRID = tuple(itertools.product((PLAIN, CHAT), (0.7, 1.0)))  # form, temperature
LIMIT = 160  # tokens of an answer


class SampledAnswer(NamedTuple):
    """An answer of the model to a question, and how it was sampled."""

    question: str
    form: str
    temperature: float
    text: str
    ended: bool  # by itself, within LIMIT tokens


@cache
def all_questions() -> tuple[list[CheckedQuestion], list[CheckedQuestion]]:
    """The questions that are trained on, and those that are held out."""
    return questions(TRAINED, 0, held_out=False), questions(HELD_OUT, 1, held_out=True)


def read_answers(file: Path = ANSWERS) -> list[SampledAnswer]:
    """The answers in a file of JSON lines."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [SampledAnswer(**json.loads(line)) for line in lines]


def pairs_of(asked: Sequence[CheckedQuestion], answers: Sequence[SampledAnswer]) -> list[Pair]:
    """The pairs of all questions, by the rules of rules.py."""
    by_question: dict[str, list[tuple[str, bool]]] = {}
    for answer in answers:
        by_question.setdefault(answer.question, []).append((answer.text, answer.ended))
    return [pair for q in asked for pair in pairs_of_answers(q, by_question.get(q.text, ()))]


def pairs(*, held_out: bool) -> list[Pair]:
    """The shipped preference pairs of one side of the split."""
    return pairs_of(all_questions()[held_out], _shipped())


@cache
def _shipped() -> list[SampledAnswer]:
    return read_answers()


def prompts(*, held_out: bool) -> list[Prompt]:
    """The questions of one side of the split, each as `Prompt.extra["smollm_question"]` too."""
    return [Prompt((Turn("human", q.text),), {"smollm_question": q}) for q in all_questions()[held_out]]
