"""Overlap of texts: what a text repeats of itself, and keeps of another one; spans of characters, to mark on a page.

Words are runs of letters and digits (an apostrophe inside belongs to them) or runs of punctuation, compared without
regard to case; scripts that put no blanks between words count a clause as one. `answers.repeated_ngrams`, the figure of
the comparison, counts n-grams of tokens; here words are counted, so that what is marked can be read.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_WORD = re.compile(r"\w+(?:['’]\w+|[\u0300-\u036f]+\w*)*|[^\w\s]+")  # U+0300-036F: accents written after their letter


class Span(NamedTuple):
    """A stretch of a text, from the first character of a word to behind the last one of another."""

    start: int
    end: int


def repeated(text: str, n: int = 4) -> list[Span]:
    """Stretches that were said before: the words of n-grams that occurred earlier in the text (they may overlap).

    Sorted, apart from each other: stretches that touch are one. Time and memory grow with the number of words times n.
    Raises ValueError for n below 1.

    >>> repeated("One two three four. And one two three four!", 4)
    [Span(start=24, end=42)]
    """
    words, grams = _read(text, n, {})
    return _spans(words, _again(grams), n)


def pieces(text: str, n: int = 4) -> list[tuple[str, bool]]:
    """The text in pieces, each with whether it repeats what came before; joined they are the text again.

    >>> pieces("a b c d e a b c d")[-1]
    ('a b c d', True)
    """
    parts, last = [], 0
    for start, end in repeated(text, n):
        parts += [(text[last:start], False), (text[start:end], True)]
        last = end
    return [(part, again) for part, again in [*parts, (text[last:], False)] if part]


def kept(fine: str, coarse: str, n: int = 4) -> list[Span]:
    """Stretches of `fine`, of n words or more, that occur in `coarse` too, wherever it has them.

    Sorted, apart from each other: two stretches that touch are one, even if `coarse` says them in different places.
    Time and memory grow with the number of words of both times n. Raises ValueError for n below 1.

    >>> kept("So the sky is very blue.", "The sky is very large.", 4)
    [Span(start=3, end=18)]
    """
    words, spans = _kept(fine, coarse, n)
    return _spans(words, spans, n)


def kept_share(fine: str, coarse: str, n: int = 4) -> float:
    """Share of the words of `fine` within `kept`, 0 to 1; 0 for a text without words."""
    words, spans = _kept(fine, coarse, n)
    return _share(words, spans, n)


Gram = tuple[int, ...]


def _read(text: str, n: int, numbers: dict[str, int]) -> tuple[list[Span], Iterable[Gram]]:
    """Places of the words, and the n-grams that begin at each of them. numbers: of the words that are known."""
    if n < 1:
        raise ValueError(f"n={n}: stretches of at least one word")
    words, ids = [], []
    for match in _WORD.finditer(text):
        words.append(Span(*match.span()))
        ids.append(numbers.setdefault(match[0].casefold(), len(numbers)))
    return words, zip(*(itertools.islice(ids, first, None) for first in range(n)), strict=False)


def _again(grams: Iterable[Gram]) -> list[int]:
    """Where n-grams begin that occurred earlier."""
    seen: set[Gram] = set()
    spans = []
    for first, gram in enumerate(grams):
        if gram in seen:
            spans.append(first)
        else:
            seen.add(gram)
    return spans


def _kept(fine: str, coarse: str, n: int) -> tuple[list[Span], list[int]]:
    """Places of the words of `fine`, and where n-grams begin in it that `coarse` has."""
    numbers: dict[str, int] = {}
    known = set(_read(coarse, n, numbers)[1])
    words, grams = _read(fine, n, numbers)
    return words, [first for first, gram in enumerate(grams) if gram in known]


def _runs(starts: Iterable[int], n: int) -> list[tuple[int, int]]:
    """(first, behind the last) word of what n-grams that begin at `starts`, in order, cover together."""
    runs: list[tuple[int, int]] = []
    for first in starts:
        if runs and first <= runs[-1][1]:
            runs[-1] = (runs[-1][0], first + n)
        else:
            runs.append((first, first + n))
    return runs


def _spans(words: Sequence[Span], starts: Iterable[int], n: int) -> list[Span]:
    return [Span(words[first].start, words[last - 1].end) for first, last in _runs(starts, n)]


def _share(words: Sequence[Span], starts: Iterable[int], n: int) -> float:
    covered = sum(last - first for first, last in _runs(starts, n))
    return covered / len(words) if words else 0.0
