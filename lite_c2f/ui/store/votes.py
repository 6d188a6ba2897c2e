"""Votes on answers, blind or open, recorded and counted: a line of votes.jsonl each."""

import threading
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.actors.names import BASE, BASELINE, COARSE, FINE
from lite_c2f.data.records import Turn
from lite_c2f.errors import DataError
from lite_c2f.evaluation.ratings import AnswerChoice, Rating, rate
from lite_c2f.evaluation.wins import sign_test, wilson
from lite_c2f.storage.files import append_line, read_lines
from lite_c2f.ui.store.tuples import decoded, encoded, from_row

LETTERS = "ABC"
TIE, BOTH_BAD = "tie", "both_bad"
TAKEN_BACK = "taken_back"  # a line that takes the voter's earlier vote on the same answers back
FEW = 6  # with five that all agree, the sign test's p is 2/32: they could still be tosses of a coin
PANES = (FINE, COARSE, BASELINE, BASE)  # order in which a pair is counted: left before right
_WRITING = threading.Lock()


class Vote(NamedTuple):
    """One vote on the answers to one question. All of it is JSON, the contents of `settings` and `run` too."""

    time: str  # UTC, ISO 8601
    voter: str
    turns: tuple[Turn, ...]  # the conversation, up to and including the question
    shown: tuple[str, ...]  # two or three panes, in the order shown: A, B, C
    answers: dict[str, str]  # by pane, as are `ended` and `seeds`
    ended: dict[str, bool]  # False: cut off at the limit, or stopped
    choice: str  # "A" | "B" | "C" | "tie" | "both_bad" (with three: all bad) | "taken_back"
    seeds: dict[str, int]
    ratio: float | None  # share of the residue in the Fine Actor
    settings: dict[str, Any]  # of sampling
    run: dict[str, Any]  # its name, and hashes of its models and its adapter
    system: str = ""  # the system prompt
    blind: bool = True  # False: the voter saw whose answers they are
    # By pane, what was said before `turns`, where the panes had different conversations.
    before: dict[str, tuple[Turn, ...]] = {}  # noqa: RUF012  never changed

    @property
    def winner(self) -> str | None:
        """The chosen pane; None for a tie, for both bad and where the vote was taken back."""
        return self.shown[LETTERS.index(self.choice)] if self.choice in (*LETTERS,) else None


class Tally(NamedTuple):
    """How often `left` was preferred to `right`."""

    left: str
    right: str
    wins: int
    ties: int
    both_bad: int
    losses: int
    rate: float | None  # wins among wins and losses; None where there are none
    low: float  # of its 95% interval
    high: float
    p: float  # of the sign test


def votes_of(run: Path) -> Path:
    """File of a run's votes: RUN/app/votes.jsonl."""
    return run / "app" / "votes.jsonl"


def record(file: Path, vote: Vote) -> None:
    """Append a vote, as one line. Safe to call from several threads.

    Raises DataError for a vote that contradicts itself, ValueError for NaN or infinity, which are not JSON.
    """
    _check(vote, "the vote")
    row = decoded(encoded(vote))  # without halves of surrogate pairs
    with _WRITING:
        if file.is_file() and not _ends_a_line(file):
            with file.open("a", encoding="utf-8") as broken:
                broken.write("\n")  # a killed process left half a line: only that vote is lost
        append_line(file, row)


def read(file: Path) -> list[Vote]:
    """The votes of a file in order, none where there is no file.

    Raises RunError for a line that is not JSON, DataError for one that is not a vote; both name the line.
    """
    votes = []
    for number, row in enumerate(read_lines(file), 1):
        try:
            vote = from_row(Vote, row)
        except ValueError as error:
            raise DataError.because(f"{file}:{number}: {error}", "a vote of the app", "remove that line") from None
        _check(vote, f"{file}:{number}")
        votes.append(vote)
    return votes


def current(votes: Iterable[Vote]) -> list[Vote]:
    """The votes that count: of one voter's votes on the same answers to the same question, the last.

    None where that one takes the vote back. Blind and open votes do not replace each other.
    """
    return [vote for vote in by_answers(votes).values() if vote.choice != TAKEN_BACK]


def by_answers(votes: Iterable[Vote]) -> dict[Any, Vote]:
    """The last vote of each voter on the same answers to the same question, by `key_of`, the newest last."""
    last: dict[Any, Vote] = {}
    for vote in votes:
        last.pop(key_of(vote), None)
        last[key_of(vote)] = vote
    return last


def key_of(vote: Vote) -> Any:
    """What two votes share of which the later one replaces the earlier: the voter, the question and the answers."""
    answers, before = (tuple(sorted(part.items())) for part in (vote.answers, vote.before))
    return vote.blind, vote.voter, vote.system, tuple(vote.turns), before, answers


def recorded(file: Path) -> dict[Any, Vote]:
    """`by_answers` of a file, read again only when it has changed. Raises as `read` does."""
    if not file.is_file():
        return {}
    status = file.stat()
    return _recorded(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _recorded(file: Path, *stamp: int) -> dict[Any, Vote]:
    return by_answers(read(file))


def conversation_of(vote: Vote, pane: str) -> tuple[Turn, ...]:
    """What a pane's answer was given to, the question last."""
    return (*vote.before.get(pane, ()), *vote.turns)


def tally(votes: Iterable[Vote]) -> list[Tally]:
    """Wins, ties and losses of each pair of panes that were shown together; changed votes count once (`current`).

    Of three panes the chosen one wins against both others; between those two nothing is counted, nor between two equal
    answers. Blind and open votes are counted together: give it one kind. Panes are ordered as
    in `PANES`. p is from `sign_test`, the interval from `wilson`: both assume independent votes, which several votes of
    one voter are not quite.
    """
    counts: dict[tuple[str, str], Counter[str]] = {}
    for vote in current(votes):
        for left, right in combinations(sorted(vote.shown, key=_place), 2):
            if vote.answers[left] == vote.answers[right]:
                continue
            count = counts.setdefault((left, right), Counter())
            if vote.winner in (left, right):
                count["win" if vote.winner == left else "loss"] += 1
            elif vote.winner is None:
                count[vote.choice] += 1
    rows = []
    for left, right in sorted(counts, key=lambda pair: (_place(pair[0]), _place(pair[1]))):
        count = counts[left, right]
        wins, losses = count["win"], count["loss"]
        rate = wins / (wins + losses) if wins + losses else None
        interval = wilson(wins, wins + losses)
        rows.append(
            Tally(left, right, wins, count[TIE], count[BOTH_BAD], losses, rate, *interval, sign_test(wins, losses))
        )
    return rows


def ratings(votes: Iterable[Vote]) -> list[Rating]:
    """The actors' strengths in points by these votes, the strongest first; none of fewer than FEW votes.

    Another answer that says the same as the chosen one does not count as having lost to it.
    """
    choices = []
    for vote in votes:
        chosen = None if vote.winner is None else vote.answers[vote.winner]
        shown = tuple(pane for pane in vote.shown if pane == vote.winner or vote.answers[pane] != chosen)
        choices.append(AnswerChoice(shown, vote.winner))
    return rate(choices) if len(choices) >= FEW else []


def _check(vote: Vote, where: str) -> None:
    """Raise DataError for a vote that contradicts itself."""
    shown, choices = set(vote.shown), (*LETTERS[: len(vote.shown)], TIE, BOTH_BAD, TAKEN_BACK)
    rules = {
        f"{len(vote.shown)} answers shown": (len(vote.shown) in (2, 3) and len(shown) == len(vote.shown), "2 or 3"),
        f"choice '{vote.choice[:20]}'": (
            vote.choice in choices,
            f"one of {', '.join(choices)}",
        ),
        "answers, endings or seeds of other panes": (
            vote.answers.keys() == vote.ended.keys() == vote.seeds.keys() == shown and vote.before.keys() <= shown,
            "those of the panes shown",
        ),
        "a speaker without a role": (
            all(turn.role in ("human", "assistant") for turns in (vote.turns, *vote.before.values()) for turn in turns),
            "human or assistant",
        ),
        "no question": (
            bool(vote.turns) and vote.turns[-1].role == "human" and bool(vote.turns[-1].text.strip()),
            "a conversation that ends with one",
        ),
    }
    for got, (holds, expected) in rules.items():
        if not holds:
            raise DataError.because(f"{where}: {got}", expected, "correct or remove it")


def _place(pane: str) -> tuple[int, str]:
    return PANES.index(pane) if pane in PANES else len(PANES), pane


def _ends_a_line(file: Path) -> bool:
    with file.open("rb") as opened:
        size = opened.seek(0, 2)
        opened.seek(max(size - 1, 0))
        return opened.read() in (b"\n", b"")
