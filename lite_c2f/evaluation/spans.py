"""Repetition within a text: the spans of n-grams that occurred before, for marking them."""

import re


def repeated_spans(text: str, n: int = 4) -> list[tuple[int, int]]:
    """(start, end), in characters, of the words of n-grams that have occurred earlier in the text.

    >>> repeated_spans("a b c d e a b c d", 4)
    [(10, 17)]
    """
    words = [match.span() for match in re.finditer(r"\S+", text)]
    seen: set[tuple[str, ...]] = set()
    repeated: set[int] = set()  # indices of words
    for first in range(len(words) - n + 1):
        gram = tuple(text[start:end] for start, end in words[first : first + n])
        if gram in seen:
            repeated.update(range(first, first + n))
        seen.add(gram)
    spans: list[tuple[int, int]] = []
    for index in sorted(repeated):
        start, end = words[index]
        if spans and index - 1 in repeated:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def pieces(text: str, n: int = 4) -> list[tuple[str, bool]]:
    """The text in pieces, each with whether it repeats what came before; joined they are the text again.

    >>> pieces("a b c d e a b c d")[-1]
    ('a b c d', True)
    """
    parts, last = [], 0
    for start, end in repeated_spans(text, n):
        parts += [(text[last:start], False), (text[start:end], True)]
        last = end
    return [(part, repeated) for part, repeated in [*parts, (text[last:], False)] if part]
