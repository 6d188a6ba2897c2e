"""Overlap of texts: repetition within a text and word sequences shared with another one, as spans of characters.

Words are runs of letters and digits (with inner apostrophes) or runs of punctuation, compared case-insensitively; in
scripts without spaces a clause counts as one word. `answers.repeated_ngrams`, the metric of the comparison, counts
n-grams of tokens; here n-grams are of words, so that the marked spans are readable.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_WORD = re.compile(r"\w+(?:['’]\w+|[\u0300-\u036f]+\w*)*|[^\w\s]+")  # U+0300-036F: accents written after their letter


class Span(NamedTuple):
    """A span of a text: index of its first character, and index after its last one."""

    start: int
    end: int


def repeated_spans(text: str, n: int = 4) -> list[Span]:
    """Spans of the word n-grams that occurred earlier in the text (the n-grams may overlap).

    Sorted and disjoint: touching spans are merged. Time and memory grow with the number of words times n.
    Raises ValueError for n below 1.

    >>> repeated("One two three four. And one two three four!", 4)
    [Span(start=24, end=42)]
    """
    words, grams = _words_and_ngrams(text, n, {})
    return _spans(words, _repeated_starts(grams), n)


def marked_pieces(text: str, n: int = 4) -> list[tuple[str, bool]]:
    """(part of the text, whether it repeats earlier text) for all parts; joined they give the text.

    >>> pieces("a b c d e a b c d")[-1]
    ('a b c d', True)
    """
    parts, last = [], 0
    for start, end in repeated_spans(text, n):
        parts += [(text[last:start], False), (text[start:end], True)]
        last = end
    return [(part, is_repeated) for part, is_repeated in [*parts, (text[last:], False)] if part]


def shared_spans(fine: str, coarse: str, n: int = 4) -> list[Span]:
    """Spans of `fine`, of n words or more, that also occur anywhere in `coarse`.

    Sorted and disjoint: touching spans are merged, even if they occur in different places of `coarse`.
    Time and memory grow with the number of words of both times n. Raises ValueError for n below 1.

    >>> kept("So the sky is very blue.", "The sky is very large.", 4)
    [Span(start=3, end=18)]
    """
    words, spans = _shared_starts(fine, coarse, n)
    return _spans(words, spans, n)


def shared_share(fine: str, coarse: str, n: int = 4) -> float:
    """Share of the words of `fine` within `shared_spans`, 0 to 1; 0 for a text without words."""
    words, spans = _shared_starts(fine, coarse, n)
    return _share(words, spans, n)


def word_count(text: str) -> int:
    """Number of words and runs of signs of a text."""
    return len(word_spans(text))


def word_spans(text: str) -> list[Span]:
    """The words and runs of signs of a text, in order.

    >>> word_spans("So, yes")
    [Span(start=0, end=2), Span(start=2, end=3), Span(start=4, end=7)]
    """
    return [Span(*match.span()) for match in _WORD.finditer(text)]


Gram = tuple[int, ...]


def _words_and_ngrams(text: str, n: int, numbers: dict[str, int]) -> tuple[list[Span], Iterable[Gram]]:
    """(spans of the words, n-grams by first word). numbers: ids of known words, extended here."""
    if n < 1:
        raise ValueError(f"n={n}: expected at least one word")
    words, ids = [], []
    for match in _WORD.finditer(text):
        words.append(Span(*match.span()))
        ids.append(numbers.setdefault(match[0].casefold(), len(numbers)))
    return words, zip(*(itertools.islice(ids, first, None) for first in range(n)), strict=False)


def _repeated_starts(grams: Iterable[Gram]) -> list[int]:
    """Index of the first word of each n-gram that occurred earlier."""
    seen: set[Gram] = set()
    spans = []
    for first, gram in enumerate(grams):
        if gram in seen:
            spans.append(first)
        else:
            seen.add(gram)
    return spans


def _shared_starts(fine: str, coarse: str, n: int) -> tuple[list[Span], list[int]]:
    """(spans of the words of `fine`, first word of each n-gram that `coarse` has too)."""
    numbers: dict[str, int] = {}
    known = set(_words_and_ngrams(coarse, n, numbers)[1])
    words, grams = _words_and_ngrams(fine, n, numbers)
    return words, [first for first, gram in enumerate(grams) if gram in known]


def _runs(starts: Iterable[int], n: int) -> list[tuple[int, int]]:
    """(first word, word after the last) of the merged n-grams that begin at `starts`, in order."""
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
