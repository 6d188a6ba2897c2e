"""What can be said of responses without a model: variety, repetition, and how much of them is needed.

Everything is a pure function of texts or token ids; definitions without a source are our own.
"""

import re
import zlib
from collections.abc import Callable, Hashable, Sequence
from statistics import fmean

Checker = Callable[[str], bool]  # does a response name the right answer?
VERBOSE = 0.5  # share of the words that could go


def ngrams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """All runs of n tokens (or words), in order."""
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def distinct(responses: Sequence[Sequence[int]], n: int) -> float:
    """Distinct-n of a set of responses (arXiv 1510.03055): different n-grams over all n-grams; 0 where there are none.

    >>> distinct([[1, 2, 1, 2], [1, 2]], 2)
    0.5
    """
    grams = [gram for response in responses for gram in ngrams(response, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def compression_ratio(texts: Sequence[str]) -> float:
    """Bytes of all texts together over their bytes when compressed by zlib (arXiv 2403.00553): higher is more alike.

    Sets of the same size compare best: a longer text compresses better. 0 for no text.
    """
    content = "\n".join(texts).encode()
    return len(content) / len(zlib.compress(content, 9)) if content else 0.0


def self_repetition(turns: Sequence[Sequence[Hashable]], n: int = 4) -> float:
    """Share of the n-grams of later answers of a conversation that an earlier answer of it has; 0 where there are none.

    >>> self_repetition([[1, 2, 3], [1, 2, 9]], 2)
    0.5
    """
    repeated, total = said_before(turns, n)
    return repeated / total if total else 0.0


def said_before(turns: Sequence[Sequence[Hashable]], n: int = 4) -> tuple[int, int]:
    """(n-grams of later answers that an earlier answer has, all n-grams of later answers)."""
    seen: set[tuple[Hashable, ...]] = set(ngrams(turns[0], n)) if turns else set()
    repeated = total = 0
    for turn in turns[1:]:
        grams = ngrams(turn, n)
        repeated += sum(gram in seen for gram in grams)
        total += len(grams)
        seen.update(grams)
    return repeated, total


def clauses(text: str) -> list[str]:
    """A text cut behind every full stop, comma, colon, semicolon and line break; joined they are the text again."""
    return [part for part in re.split(r"(?<=[.!?,;:\n])(?=\s|$)", text) if part.strip()]


def removable(text: str, right: Checker) -> float | None:
    """Share of the words of a right response that can be removed, clause by clause, and the answer is still right.

    Greedy from the front, which keeps what stands last. None for a response that is wrong as it is: there is no answer
    to keep. Reasoning counts as removable: a reader needs the answer alone, what the model needed is another matter.

    >>> removable("Let me see. I add. The answer is 5.", lambda text: "answer is 5" in text)
    0.5555555555555556
    """
    if not right(text):
        return None
    kept = clauses(text)
    index = 0
    while index < len(kept):
        without = kept[:index] + kept[index + 1 :]
        if right("".join(without)):
            kept = without
        else:
            index += 1
    words = len(text.split())
    return 1 - len("".join(kept).split()) / words if words else 0.0


def after_answer(text: str, right: Checker) -> float | None:
    """Share of the words that stand after the right answer has been given for the first time; None if it never is."""
    parts = clauses(text)
    for count in range(1, len(parts) + 1):
        if right("".join(parts[:count])):
            words = len(text.split())
            return 1 - len("".join(parts[:count]).split()) / words if words else 0.0
    return None


def verbosity(texts: Sequence[str], checkers: Sequence[Checker]) -> dict[str, float]:
    """Verbosity compensation, after arXiv 2411.07858: do models talk around what they are unsure of?

    removable, after_answer: means over right responses. verbose: share of all responses that are longer than twice the
    median of the right ones once everything removable is gone from those. verbose_accuracy, concise_accuracy: accuracy
    of the two groups, where both exist: a lower one among the verbose is compensation.
    """
    told = [removable(text, right) for text, right in zip(texts, checkers, strict=True)]
    needed = [(1 - share) * len(text.split()) for text, share in zip(texts, told, strict=True) if share is not None]
    late = [
        share
        for text, right in zip(texts, checkers, strict=True)
        if right(text) and (share := after_answer(text, right)) is not None
    ]
    if not needed:
        return {"verbose": 0.0}
    enough = sorted(needed)[len(needed) // 2] / (1 - VERBOSE)
    verbose = [len(text.split()) > enough for text in texts]
    figures = {
        "removable": fmean(share for share in told if share is not None),
        "after_answer": fmean(late) if late else 0.0,
        "verbose": fmean(verbose),
    }
    for name, wanted in (("verbose_accuracy", True), ("concise_accuracy", False)):
        group = [share is not None for share, is_verbose in zip(told, verbose, strict=True) if is_verbose == wanted]
        if group and 0 < sum(verbose) < len(verbose):
            figures[name] = fmean(group)
    return figures
