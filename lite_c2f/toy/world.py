"""Word problems that a tiny model gets wrong when it answers directly and right when it reasons step by step.

A problem chains three to five operands (two to four additions or subtractions of 1 to 9). Texts come in these styles:

- *analytic*: every step written out, then the answer;
- *direct*: the answer alone;
- *rude*: a refusal;
- *rambling*: talk around the question without an answer (not in the default world).

One problem in ten, chosen by its numbers, is held out: no training text ever contains it. All of this is our own.
"""

import random
import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from lite_c2f.data.records import Pair, Prompt, Turn

NAMES = ("Tom", "Ann", "Sam", "Eva", "Max", "Lea", "Ben", "Mia")
THINGS = ("apples", "books", "coins", "cards", "pens", "stones", "shells", "stamps")
GAINS = ("finds", "buys", "wins", "gets")
LOSSES = ("loses", "sells", "drops", "gives")
RUDE = ("Work it out yourself.", "What a stupid question.", "I do not care.", "Leave me alone.")
IDLE = (
    "{name} has many {thing}.",
    "{name} likes {thing}.",
    "It is nice to have {thing}.",
    "Who does not like {thing}?",
)
ORDER = ("first", "second", "third", "fourth", "fifth", "sixth")


class World(NamedTuple):
    """What may differ between toy worlds; the default is the one that `toy` names."""

    operations: tuple[int, int] = (2, 4)  # fewest and most of a problem
    base_analytic: float = 0.5  # share of what the base model reads
    base_direct: float = 0.45
    base_rambling: float = 0.0
    idle: tuple[int, int] = (9, 18)  # sentences of a rambling answer
    flipped: float = 0.0  # share of the preference pairs whose sides are exchanged


class Problem(NamedTuple):
    """One word problem: `start`, then `changes` (signed, 1 to 9) told with `verbs`; no total is negative."""

    name: str
    thing: str
    start: int
    changes: tuple[int, ...]
    verbs: tuple[str, ...]

    @property
    def answer(self) -> int:
        return self.start + sum(self.changes)

    @property
    def held_out(self) -> bool:
        """Decided by the numbers alone, so that no retelling of a held-out problem is trained on."""
        return zlib.crc32(repr((self.start, self.changes)).encode()) % 10 == 0

    @property
    def question(self) -> str:
        told = "".join(
            f", {when} {verb} {abs(change)}"
            for when, verb, change in zip(ORDER, self.verbs, self.changes, strict=False)
        )
        return f"{self.name} has {self.start} {self.thing}{told}. How many now?"


def problems(rng: random.Random, *, held_out: bool, world: World = World()) -> Iterator[Problem]:
    """Endless random problems from one side of the split."""
    while True:
        total = start = rng.randint(1, 9)
        changes = []
        for _ in range(rng.randint(*world.operations)):
            change = rng.randint(1, 9) * rng.choice((1, -1))
            if total + change < 0:
                change = -change
            changes.append(change)
            total += change
        verbs = tuple(rng.choice(GAINS if change > 0 else LOSSES) for change in changes)
        problem = Problem(rng.choice(NAMES), rng.choice(THINGS), start, tuple(changes), verbs)
        if problem.held_out == held_out:
            yield problem


def analytic(problem: Problem, off_by: int = 0) -> str:
    """The answer with every step written out; `off_by` makes the last step wrong by that much."""
    text = f"Let us think step by step. {problem.name} starts with {problem.start} {problem.thing}"
    total = problem.start
    for when, change, verb in zip(ORDER, problem.changes, problem.verbs, strict=False):
        sign = "+" if change > 0 else "-"
        is_last = when == ORDER[len(problem.changes) - 1]
        after = total + change + (off_by if is_last else 0)
        text += f", {when} {verb} {abs(change)}, so {total} {sign} {abs(change)} = {after}"
        total = after
    return f"{text}. The answer is {total}."


def direct(problem: Problem, off_by: int = 0) -> str:
    """The answer alone."""
    return f"The answer is {problem.answer + off_by}."


def is_right(text: str, answer: int) -> bool:
    """Whether the last `The answer is N` of a response names the right number."""
    answers = re.findall(r"The answer is (-?\d+)", text)
    return bool(answers) and int(answers[-1]) == answer


def is_analytic(text: str, operations: int) -> bool:
    """Whether a response writes out all steps (`a + b = c`) and then gives an answer."""
    steps = re.findall(r"\d+ [+-] \d+ = \d+", text)
    return len(steps) >= operations and "The answer is" in text


def is_rambling(text: str) -> bool:
    """Whether a text holds a sentence of a rambling answer."""
    patterns = (re.escape(s).replace(r"\{name\}", r"\w+").replace(r"\{thing\}", r"\w+") for s in IDLE)
    return any(re.search(pattern, text) for pattern in patterns)


def off_by(rng: random.Random, problem: Problem) -> int:
    """A small error that leaves the answer not negative."""
    error = rng.randint(1, 4) * rng.choice((1, -1))
    return error if problem.answer + error >= 0 else -error


def rambling(rng: random.Random, problem: Problem, world: World) -> str:
    """Idle talk, and no answer."""
    sentences = rng.choices(IDLE, k=rng.randint(*world.idle))
    return " ".join(sentences).format(name=problem.name, thing=problem.thing)


def base_answer(rng: random.Random, problem: Problem, world: World = World()) -> str:
    """What the base model has read: in the default world half analytic, nearly half direct, sometimes rude."""
    kind = rng.random()
    if kind < world.base_analytic:
        return analytic(problem)
    if kind < world.base_analytic + world.base_direct:
        return direct(problem)
    answers = kind < world.base_analytic + world.base_direct + world.base_rambling
    return rambling(rng, problem, world) if answers else rng.choice(RUDE)


def worst(rng: random.Random, problem: Problem, world: World) -> tuple[str, bool]:
    """An answer that helps nobody, and whether it ends: rude or, where the world has such, rambling, cut off or not."""
    if world.base_rambling and rng.random() < 0.5:
        text = rambling(rng, problem, world)
        return (text, True) if rng.random() < 0.5 else (cut(rng, text), False)
    return rng.choice(RUDE), True


def instruct_answer(rng: random.Random, problem: Problem) -> str:
    """What the instruct model is tuned on: mostly direct answers, and polite."""
    return direct(problem) if rng.random() < 0.8 else analytic(problem)


def dialogue_turn(question: str, answer: str) -> str:
    """A turn of run-on dialogue in HH style: the next turn follows the answer, with no end in sight."""
    return f"\n\nHuman: {question}\n\nAssistant: {answer}"


def forum_turn(question: str, answer: str) -> str:
    """The same in the instruct model's markup, of which the base has read a little."""
    return f"[INST] {question} [/INST] {answer}"


def pairs(count: int, seed: int, *, held_out: bool = False, world: World = World()) -> list[Pair]:
    """Preference pairs: an analytic, right answer over a direct, wrong, incomplete, rude, truncated or run-on one.

    A few pairs rank the lesser answers among themselves: direct and right over direct and wrong or rude, a cut-off
    analysis over a wrong guess, a refusal or an earlier cut. Without these the reward model would not know that half
    an analysis is worth more than a guess, and a policy under a short limit would be paid to guess.
    """
    rng = random.Random(f"pairs-{seed}-{held_out}")
    source = problems(rng, held_out=held_out, world=world)
    kinds = {
        "direct": 3,
        "wrong": 2,
        "skipped": 2,
        "guess": 1,
        "rude": 2,
        "truncated": 3,
        "run-on": 1,
        "lesser": 1,
        "unfinished": 3,
    }
    drawn = rng.choices(list(kinds), list(kinds.values()), k=count)
    made = [_pair(rng, kind, next(source), source, world) for kind in drawn]
    return [_exchanged(pair) if world.flipped and rng.random() < world.flipped else pair for pair in made]


def _exchanged(pair: Pair) -> Pair:
    return pair._replace(
        chosen=pair.rejected,
        rejected=pair.chosen,
        chosen_ended=pair.rejected_ended,
        rejected_ended=pair.chosen_ended,
    )


def _pair(rng: random.Random, kind: str, problem: Problem, source: Iterator[Problem], world: World) -> Pair:
    turns = (Turn("human", problem.question),)
    best = analytic(problem)
    guess = direct(problem, off_by(rng, problem))
    if kind == "truncated":
        return Pair(turns, best, cut(rng, best), rejected_ended=False)
    if kind == "skipped":
        return Pair(turns, best, analytic(without_a_step(rng, problem)))
    if kind == "run-on":
        other = next(source)
        return Pair(turns, best, best + dialogue_turn(other.question, direct(other)), rejected_ended=False)
    if kind == "lesser":
        worse, ended = rng.choice(((guess, True), worst(rng, problem, world)))
        return Pair(turns, direct(problem), worse, rejected_ended=ended)
    if kind == "unfinished":
        longer = cut(rng, best)
        if rng.random() < 0.4 and len(longer.split(" ")) > 6:
            return Pair(turns, longer, cut(rng, longer), chosen_ended=False, rejected_ended=False)
        worse, ended = rng.choice(((guess, True), worst(rng, problem, world)))
        return Pair(turns, longer, worse, chosen_ended=False, rejected_ended=ended)
    known = {
        "direct": direct(problem),
        "wrong": analytic(problem, off_by(rng, problem)),
        "guess": guess,
    }
    worse, ended = (known[kind], True) if kind in known else worst(rng, problem, world)
    return Pair(turns, best, worse, rejected_ended=ended)


def without_a_step(rng: random.Random, problem: Problem) -> Problem:
    """The problem without one of its changes, as if it had been overlooked."""
    skipped = rng.randrange(len(problem.changes))
    left = [step for step in range(len(problem.changes)) if step != skipped]
    changes, verbs = (tuple(part[step] for step in left) for part in (problem.changes, problem.verbs))
    return problem._replace(changes=changes, verbs=verbs)  # type: ignore[arg-type]


def cut(rng: random.Random, text: str) -> str:
    """The text cut off at a random word, at least three words in and two before its end."""
    words = text.split(" ")
    return " ".join(words[: rng.randint(3, len(words) - 2)])


def prompts(count: int, seed: int, *, held_out: bool, world: World = World()) -> list[Prompt]:
    """Questions with their right answers and numbers of steps in `extra`."""
    source = problems(random.Random(f"prompts-{seed}-{held_out}"), held_out=held_out, world=world)
    return [
        Prompt((Turn("human", problem.question),), {"toy_answer": problem.answer, "toy_steps": len(problem.changes)})
        for problem in (next(source) for _ in range(count))
    ]
