"""Votes as preference data: the pairs that training reads, from what voters chose."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.errors import DataError
from lite_c2f.storage.files import jsonl_text, write_text
from lite_c2f.ui.store.tuples import decoded, encoded
from lite_c2f.ui.store.votes import Vote, by_answers, conversation_of, current


class Exported(NamedTuple):
    """Number of pairs written, and of votes left out by reason."""

    pairs: int
    skipped: dict[str, int]


class NoPairsError(DataError):
    """No vote makes a pair."""


class _Side(NamedTuple):
    text: str
    ended: bool


def export(votes: Sequence[Vote], file: Path) -> Exported:
    """Write `as_jsonl` of the votes to a new file, which appears whole or not at all.

    Raises DataError for a file that exists or is no .jsonl, and when no vote makes a pair.
    """
    if not file.name.lower().endswith(".jsonl"):
        raise DataError.because(f"'{file}'", "a name that ends with .jsonl", "choose another")
    if file.exists() or file.is_symlink():
        raise DataError.because(f"'{file}' exists", "a new file", "choose another name or remove it")
    text, exported = as_jsonl(votes)
    write_text(file, text)
    return exported


def as_jsonl(votes: Sequence[Vote]) -> tuple[str, Exported]:
    """A preference dataset, one pair per line, that `load_pairs` and `lite-c2f train` read.

    {"prompt": [messages], "chosen": [message], "rejected": [message], "chosen_ended", "rejected_ended", "chosen_pane",
    "rejected_pane"}: TRL's conversational form, and whether a text ended by itself. Of three answers the chosen one
    makes a pair with each of the others. The same pair is written once, however many votes it has. Where votes on a
    pair disagree, the side with more votes is written and the others are "outvoted"; at equal votes the pair is left
    out ("contradictory"): two opposite pairs would only pull their margin to zero. A pair needs one prompt: answers
    that were given in different conversations make none ("different conversations").

    Raises NoPairsError when no vote makes a pair.
    """
    skipped: Counter[str] = Counter()
    rows: dict[Any, dict[str, Any]] = {}
    counts: Counter[Any] = Counter()
    latest, counted = list(by_answers(votes).values()), current(votes)
    skipped["changed"], skipped["taken back"] = len(votes) - len(latest), len(latest) - len(counted)
    for vote in counted:
        for pane in _losers(vote, skipped):
            chosen, rejected = (
                _Side(vote.answers[name].strip(), vote.ended[name]) for name in (str(vote.winner), pane)
            )
            turns = conversation_of(vote, pane)
            if turns != conversation_of(vote, str(vote.winner)):
                skipped["different conversations"] += 1
            elif not (chosen.text and rejected.text):
                skipped["empty answer"] += 1
            elif chosen == rejected:
                skipped["sides equal"] += 1
            else:
                prompt = (vote.system.strip(), *(turn._replace(text=turn.text.strip()) for turn in turns))
                counts[prompt, chosen, rejected] += 1
                rows.setdefault((prompt, chosen, rejected), _row(vote, pane))
    pairs = [row for key, row in rows.items() if _wins(key, counts, skipped)]
    left_out = {reason: count for reason, count in skipped.items() if count}
    if not pairs:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.items()) or "no votes"
        raise NoPairsError.because(f"no vote makes a pair ({reasons})", "a vote for one answer", "vote on some more")
    return jsonl_text(pairs), Exported(len(pairs), left_out)


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
        "prompt": system + [{"role": roles[turn.role], "content": turn.text} for turn in conversation_of(vote, winner)],
        "chosen": [{"role": "assistant", "content": vote.answers[winner]}],
        "rejected": [{"role": "assistant", "content": vote.answers[loser]}],
        "chosen_ended": vote.ended[winner],
        "rejected_ended": vote.ended[loser],
        "chosen_pane": winner,
        "rejected_pane": loser,
    }
    return dict(decoded(encoded(row)))
