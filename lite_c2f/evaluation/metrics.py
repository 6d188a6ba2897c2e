"""Metrics of responses that need no model: variety, repetition, and verbosity.

Everything is a pure function of texts or token ids; definitions without a source are our own.
"""

import re
import zlib
from collections.abc import Callable, Hashable, Sequence
from statistics import fmean, median_high

Checker = Callable[[str], bool]  # whether a response has the right answer
VERBOSE_SHARE = 0.5  # share of removable words above which a response is verbose


def ngrams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """All runs of n tokens (or words), in order."""
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def distinct(responses: Sequence[Sequence[int]], n: int) -> float:
    """Distinct-n of a set of responses (arXiv 1510.03055): distinct n-grams over all n-grams; 0 without n-grams.

    >>> distinct([[1, 2, 1, 2], [1, 2]], 2)
    0.5
    """
    grams = [gram for response in responses for gram in ngrams(response, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def compression_ratio(texts: Sequence[str]) -> float:
    """Bytes of all texts together over their zlib-compressed bytes (arXiv 2403.00553): higher means more alike.

    Compare sets of the same size only, because longer texts compress better. 0 for no text.
    """
    content = "\n".join(texts).encode()
    return len(content) / len(zlib.compress(content, 9)) if content else 0.0


def repeated_ngrams_across(turns: Sequence[Sequence[Hashable]], n: int = 4) -> tuple[int, int]:
    """(n-grams of later turns that an earlier turn has, all n-grams of later turns).

    >>> repeated_across([[1, 2, 3], [1, 2, 9]], 2)
    (1, 2)
    """
    seen: set[tuple[Hashable, ...]] = set(ngrams(turns[0], n)) if turns else set()
    repeated = total = 0
    for turn in turns[1:]:
        grams = ngrams(turn, n)
        repeated += sum(gram in seen for gram in grams)
        total += len(grams)
        seen.update(grams)
    return repeated, total


def split_clauses(text: str) -> list[str]:
    """A text split after every full stop, comma, colon, semicolon and line break; joined they give the text."""
    return [part for part in re.split(r"(?<=[.!?,;:\n])(?=\s|$)", text) if part.strip()]


def removable_share(text: str, right: Checker) -> float | None:
    """Share of the words of a right response that can be removed, clause by clause, with the answer still right.

    Greedy from the front, so that the last of two equal clauses stays. None for a wrong response. Reasoning counts as
    removable: the metric is about what a reader needs, not what the model needed.

    >>> removable("Let me see. I add. The answer is 5.", lambda text: "answer is 5" in text)
    0.5555555555555556
    """
    if not right(text):
        return None
    remaining = split_clauses(text)
    index = 0
    while index < len(remaining):
        without = remaining[:index] + remaining[index + 1 :]
        if right("".join(without)):
            remaining = without
        else:
            index += 1
    words = len(text.split())
    return 1 - len("".join(remaining).split()) / words if words else 0.0


def share_after_answer(text: str, right: Checker) -> float | None:
    """Share of the words after the first clause that completes the right answer; None if there is no right answer."""
    parts = split_clauses(text)
    for count in range(1, len(parts) + 1):
        if right("".join(parts[:count])):
            words = len(text.split())
            return 1 - len("".join(parts[:count]).split()) / words if words else 0.0
    return None


def verbosity(texts: Sequence[str], checkers: Sequence[Checker]) -> dict[str, float]:
    """Verbosity compensation, after arXiv 2411.07858: whether responses are longer where the model is less often right.

    removable, after_answer: means over right responses. verbose: share of all responses that are longer than twice the
    median of the right ones once everything removable is gone from those. verbose_accuracy, concise_accuracy: accuracy
    of the two groups, if both exist: a lower accuracy of the verbose ones is compensation.
    """
    shares = [removable_share(text, right) for text, right in zip(texts, checkers, strict=True)]
    needed = [(1 - share) * len(text.split()) for text, share in zip(texts, shares, strict=True) if share is not None]
    after = [
        share
        for text, right in zip(texts, checkers, strict=True)
        if right(text) and (share := share_after_answer(text, right)) is not None
    ]
    if not needed:
        return {"verbose": 0.0}
    longest_concise = median_high(needed) / (1 - VERBOSE_SHARE)
    verbose = [len(text.split()) > longest_concise for text in texts]
    figures = {
        "removable": fmean(share for share in shares if share is not None),
        "after_answer": fmean(after) if after else 0.0,
        "verbose": fmean(verbose),
    }
    for name, is_verbose_group in (("verbose_accuracy", True), ("concise_accuracy", False)):
        group = [
            share is not None
            for share, is_verbose in zip(shares, verbose, strict=True)
            if is_verbose == is_verbose_group
        ]
        if group and 0 < sum(verbose) < len(verbose):
            figures[name] = fmean(group)
    return figures
