"""Rules that order the answers to a question, as an annotator would: anybody can read and dispute them.

In this order, the first that tells two answers apart decides:

1. an answer that does not repeat itself over one that does,
2. an answer that stays on the question over one that does not,
3. a right answer over a wrong one, where the question has an answer to check,
4. one with more steps of analysis, up to six,
5. an answer that ended by itself over one that was cut off.

The best answer to a question is paired with the worst; and each answer that analyses and ended with its own last
sentence, which is the same answer without the analysis, whatever the rules say of the two. That it ended comes last: a
Coarse Actor is to analyse at length. `is_reasoned` is also the measure of analysis in free text. Rules and thresholds
are our own; benchmarks/LOG.md says how often they agree with a reader.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from lite_c2f.data.records import Pair, Turn
from lite_c2f.smollm.questions import CheckedQuestion, is_right

REASONED = 2  # steps of an answer that analyses
ENOUGH = 6  # steps; more are no better
NAMED = 2  # things of the question that a step names
ON_QUESTION = 0.5  # share of sentences that name something of the question, in an answer that stays on it
REPEATED = 0.2  # share of repeated runs of four words in an answer that repeats itself
SHORT = 12  # words; a shorter answer is not asked whether it repeats itself
SENTENCE = 4  # words of the shortest sentence that counts
_OPERATOR = r"(?:[-+*/=×÷x]|plus|minus|times|divided by|equals)"
_CALCULATION = re.compile(rf"\d\s*{_OPERATOR}\s*\$?\d|=\s*\$?\d", re.IGNORECASE)
_CONNECTIVE = re.compile(
    r"\b(?:because|since|so that|therefore|thus|hence|means|as a result|this is why|step|if|first|second|third|next|"
    r"then|finally|after|before|so|calculate|consider|determine|find out|divide|multipl\w+|subtract|add|compare\w*|"
    r"requires?)\b",
    re.IGNORECASE,
)
# Words of a question that say nothing of its subject.
_COMMON_WORDS = (
    "about after answer before both could does each enough from give gives have into many more much pays same should "
    "than that their them then there they this time total what when which will with would your"
)
_COMMON = frozenset(_COMMON_WORDS.split())
_ENDINGS = ("ing", "es", "ed", "s")


class Grade(NamedTuple):
    """What the rules see of an answer, the most important first; a larger value is better."""

    once: bool  # does not repeat itself
    on_question: bool
    right: bool | None  # None where there is no answer to check
    analysis: int  # steps, up to ENOUGH
    ended: bool


def subjects(text: str) -> set[str]:
    """What a text is about: its numbers, and its words of four letters and more without common ones and endings.

    >>> sorted(subjects("How many apples does Ben have, of 12?"))
    ['12', 'appl']
    """
    words = re.findall(r"[a-z]{4,}|\d+", text.lower())
    return {_stem(word) for word in words if word not in _COMMON}


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


def sentences(text: str) -> list[str]:
    """Sentences, and lines, of at least `SENTENCE` words."""
    parts = [part.strip() for line in text.splitlines() for part in re.split(r"(?<=[.!?])\s+", line)]
    return [part for part in parts if len(part.split()) >= SENTENCE]


def focus(question: str, answer: str) -> float:
    """Share of an answer's sentences that name something of the question, 0 to 1.

    1.0 for an answer of a few words, such as a number alone, which is no sentence and cannot leave the question.
    """
    about, parts = subjects(question), sentences(answer)
    return sum(bool(about & subjects(part)) for part in parts) / len(parts) if parts else 1.0


def steps(question: str, answer: str) -> int:
    """Different sentences that name `NAMED` things of the question, and calculate or give a reason or an order.

    >>> steps("Ben has 3 apples and gets 4.", "First we add 3 and 4. That makes 3 + 4 = 7. So it is seven.")
    2
    """
    about = subjects(question)
    return len(
        {
            part.lower()
            for part in sentences(answer)
            if (_CALCULATION.search(part) or _CONNECTIVE.search(part)) and len(about & subjects(part)) >= NAMED
        }
    )


def is_reasoned(question: str, answer: str) -> bool:
    """Does an answer analyse: does it stay on the question, and give at least `REASONED` steps?"""
    return focus(question, answer) >= ON_QUESTION and steps(question, answer) >= REASONED


def repeated_share(text: str) -> float:
    """Share of an answer's runs of four words that stood in it before; 0.0 for one of fewer than `SHORT` words."""
    words = text.lower().split()
    runs = [tuple(words[start : start + 4]) for start in range(len(words) - 3)]
    return 1 - len(set(runs)) / len(runs) if len(words) >= SHORT else 0.0


def grade(question: CheckedQuestion, answer: str, *, ended: bool) -> Grade:
    """What the rules see of an answer. ended: by itself, not cut off at the limit."""
    return Grade(
        repeated_share(answer) <= REPEATED,
        focus(question.text, answer) >= ON_QUESTION,
        is_right(question, answer),
        min(steps(question.text, answer), ENOUGH),
        ended,
    )


def pairs_of_answers(question: CheckedQuestion, answers: Sequence[tuple[str, bool]]) -> list[Pair]:
    """The preference pairs of the answers to one question: the best over the worst, each over its own conclusion.

    answers: text, and whether it ended by itself. Of equal ones the share of sentences on the question decides, then
    the order; empty ones are left out. No pair of answers that the rules do not tell apart, and no conclusion of an
    answer that gives no analysis or was cut off.
    """
    graded = [
        (_values(grade(question, text, ended=ended)), focus(question.text, text), (text.strip(), ended))
        for text, ended in answers
        if text.strip()
    ]
    if not graded:
        return []
    (best_values, _, best), (worst_values, _, worst) = (
        choose(graded, key=lambda one: one[:2]) for choose in (max, min)
    )
    pairs = [(best, worst)] if best_values != worst_values else []
    for _, _, (text, ended) in graded:
        if ended and is_reasoned(question.text, text) and (last := conclusion(text)) != text:
            pairs.append(((text, True), (last, True)))
    turns = (Turn("human", question.text),)
    return [Pair(turns, chosen[0], rejected[0], chosen[1], rejected[1]) for chosen, rejected in dict.fromkeys(pairs)]


def conclusion(answer: str) -> str:
    """The last sentence of an answer, or its last line: the answer without its analysis.

    >>> conclusion("3 + 4 = 7 apples. So it is 7.")
    'So it is 7.'
    """
    return re.split(r"(?<=[.!?])\s+|\n+", answer.strip())[-1].strip()


def _values(answer: Grade) -> tuple[int, ...]:
    return tuple(int(value or 0) for value in answer)  # `right` is None in all answers to a question or in none
