"""Blind votes on answers shown as A, B (and C): recorded, counted, and exported as preference data."""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.actors.names import BASE, BASELINE, COARSE, FINE
from lite_c2f.data.records import Turn
from lite_c2f.errors import DataError
from lite_c2f.evaluation.wins import sign_test, wilson
from lite_c2f.storage.files import append_line, read_lines, write_jsonl
from lite_c2f.ui.store.tuples import decoded, encoded, from_row

LETTERS = "ABC"
TIE, BOTH_BAD = "tie", "both_bad"
TAKEN_BACK = "taken_back"  # a line that takes the voter's earlier vote on the same answers back
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


class Exported(NamedTuple):
    """Number of pairs written, and of votes left out by reason."""

    pairs: int
    skipped: dict[str, int]


class _Side(NamedTuple):
    text: str
    ended: bool


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

    None where that one takes the vote back.
    """
    return [vote for vote in _latest(votes) if vote.choice != TAKEN_BACK]


def _latest(votes: Iterable[Vote]) -> list[Vote]:
    """The last line of each voter on the same answers to the same question, in order."""
    last: dict[Any, Vote] = {}
    for vote in votes:
        key = (vote.voter, vote.system, tuple(vote.turns), tuple(sorted(vote.answers.items())))
        last.pop(key, None)
        last[key] = vote
    return list(last.values())


def tally(votes: Iterable[Vote]) -> list[Tally]:
    """Wins, ties and losses of each pair of panes that were shown together; changed votes count once (`current`).

    Of three panes the chosen one wins against both others; between those two nothing is counted. Panes are ordered as
    in `PANES`. p is from `sign_test`, the interval from `wilson`: both assume independent votes, which several votes of
    one voter are not quite.
    """
    counts: dict[tuple[str, str], Counter[str]] = {}
    for vote in current(votes):
        for left, right in combinations(sorted(vote.shown, key=_place), 2):
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


def export(votes: Sequence[Vote], file: Path) -> Exported:
    """Write a preference dataset, one pair per line, that `load_pairs` and `lite-c2f train` read.

    {"prompt": [messages], "chosen": [message], "rejected": [message], "chosen_ended", "rejected_ended", "chosen_pane",
    "rejected_pane"}: TRL's conversational form, and whether a text ended by itself. Of three answers the chosen one
    makes a pair with each of the others. The same pair is written once, however many votes it has. Where votes on a
    pair disagree, the side with more votes is written and the others are "outvoted"; at equal votes the pair is left
    out ("contradictory"): two opposite pairs would only pull their margin to zero.

    The file appears whole or not at all. Raises DataError for a file that exists or is no .jsonl, and when no vote
    makes a pair.
    """
    if not file.name.lower().endswith(".jsonl"):
        raise DataError.because(f"'{file}'", "a name that ends with .jsonl", "choose another")
    if file.exists() or file.is_symlink():
        raise DataError.because(f"'{file}' exists", "a new file", "choose another name or remove it")
    skipped: Counter[str] = Counter()
    rows: dict[Any, dict[str, Any]] = {}
    counts: Counter[Any] = Counter()
    latest, counted = _latest(votes), current(votes)
    skipped["changed"], skipped["taken back"] = len(votes) - len(latest), len(latest) - len(counted)
    for vote in counted:
        for pane in _losers(vote, skipped):
            chosen, rejected = (
                _Side(vote.answers[name].strip(), vote.ended[name]) for name in (str(vote.winner), pane)
            )
            if not (chosen.text and rejected.text):
                skipped["empty answer"] += 1
            elif chosen == rejected:
                skipped["sides equal"] += 1
            else:
                prompt = (vote.system.strip(), *(turn._replace(text=turn.text.strip()) for turn in vote.turns))
                counts[prompt, chosen, rejected] += 1
                rows.setdefault((prompt, chosen, rejected), _row(vote, pane))
    pairs = [row for key, row in rows.items() if _wins(key, counts, skipped)]
    left_out = {reason: count for reason, count in skipped.items() if count}
    if not pairs:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.items()) or "no votes"
        raise DataError.because(f"no vote makes a pair ({reasons})", "a vote for one answer", "vote on some more")
    write_jsonl(file, pairs)
    return Exported(len(pairs), left_out)


def _wins(key: Any, counts: Counter[Any], skipped: Counter[str]) -> bool:
    """Has this pair more votes than its opposite? Counts the votes that are left out."""
    prompt, chosen, rejected = key
    count, opposite = counts[key], counts[prompt, rejected, chosen]
    if count > opposite:
        skipped["repeated"] += count - 1
        return True
    skipped["contradictory" if count == opposite else "outvoted"] += count
    return False


def _losers(vote: Vote, skipped: Counter[str]) -> Iterator[str]:
    if vote.winner is None:
        skipped[vote.choice.replace("_", " ")] += 1
        return
    yield from (pane for pane in vote.shown if pane != vote.winner)


def _row(vote: Vote, loser: str) -> dict[str, Any]:
    """A row of the dataset. In lists of messages no text can be taken for a speaker's marker."""
    winner = str(vote.winner)
    system = [{"role": "system", "content": vote.system}] if vote.system.strip() else []
    roles = {"human": "user", "assistant": "assistant"}
    row = {
        "prompt": system + [{"role": roles[turn.role], "content": turn.text} for turn in vote.turns],
        "chosen": [{"role": "assistant", "content": vote.answers[winner]}],
        "rejected": [{"role": "assistant", "content": vote.answers[loser]}],
        "chosen_ended": vote.ended[winner],
        "rejected_ended": vote.ended[loser],
        "chosen_pane": winner,
        "rejected_pane": loser,
    }
    return dict(decoded(encoded(row)))


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
            vote.answers.keys() == vote.ended.keys() == vote.seeds.keys() == shown,
            "those of the panes shown",
        ),
        "a speaker without a role": (
            all(turn.role in ("human", "assistant") for turn in vote.turns),
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
