"""Where a text repeats itself."""

import html
import re


def repeated_spans(text: str, n: int = 4) -> list[tuple[int, int]]:
    """(start, end) in characters of what was said before: words of an n-gram that has occurred earlier in the text.

    >>> repeated_spans("a b c d e a b c d", 4)
    [(10, 17)]
    """
    words = [match.span() for match in re.finditer(r"\S+", text)]
    seen: set[tuple[str, ...]] = set()
    again: set[int] = set()
    for first in range(len(words) - n + 1):
        gram = tuple(text[start:end] for start, end in words[first : first + n])
        if gram in seen:
            again.update(range(first, first + n))
        seen.add(gram)
    spans: list[tuple[int, int]] = []
    for index in sorted(again):
        start, end = words[index]
        if spans and index - 1 in again:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def marked(text: str, n: int = 4) -> str:
    """The text as HTML, what it repeats in <mark>; everything in it is escaped."""
    parts, last = [], 0
    for start, end in repeated_spans(text, n):
        parts += [html.escape(text[last:start]), f"<mark>{html.escape(text[start:end])}</mark>"]
        last = end
    return "".join([*parts, html.escape(text[last:])])
