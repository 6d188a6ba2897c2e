"""Difference of two texts by words, from Python's difflib: which words one has more than the other, and less.

Words are those of `overlap`, told apart by case too; blanks and line breaks alone make no difference.
"""

from collections import Counter
from difflib import SequenceMatcher
from functools import lru_cache
from typing import NamedTuple

from lite_c2f.evaluation.overlap import Span, word_spans

# Pairs of equal words beyond which words that are frequent start no match: two texts of 1,000 words that repeat a few
# take 5 s otherwise. Two ordinary texts of that length have about 15,000.
MOST_PAIRS = 30_000


class WordDiff(NamedTuple):
    """What was changed to get from one text to another."""

    added: tuple[Span, ...]  # of the other text, in order
    removed: tuple[
        tuple[int, str], ...
    ]  # (index in the other text before which it stood, words of the first), in order


@lru_cache(maxsize=256)
def word_diff(before: str, after: str) -> WordDiff:
    """The changes from `before` to `after`.

    >>> word_diff("It is a red box.", "It is a box, too.")
    WordDiff(added=(Span(start=11, end=16),), removed=((8, 'red'),))
    """
    old, new = word_spans(before), word_spans(after)
    old_words, new_words = [before[a:b] for a, b in old], [after[a:b] for a, b in new]
    counts = Counter(new_words)
    frequent_are_junk = sum(counts[word] for word in old_words) > MOST_PAIRS
    added, removed = list[Span](), list[tuple[int, str]]()
    for kind, a, b, c, d in SequenceMatcher(None, old_words, new_words, autojunk=frequent_are_junk).get_opcodes():
        if kind == "equal":
            continue
        if d > c:
            added.append(Span(new[c].start, new[d - 1].end))
        if b > a:
            place = new[c].start if c < len(new) else len(after)
            removed.append((place, before[old[a].start : old[b - 1].end]))
    return WordDiff(tuple(added), tuple(removed))
