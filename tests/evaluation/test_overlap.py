"""What is repeated and what is kept: offsets by hand, and every stretch against a brute force over all stretches."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_c2f.actors.answers import repeated_ngrams
from lite_c2f.evaluation.overlap import repeated_spans, shared_share, shared_spans

HAND = [  # text, n, what is marked
    ("", 4, []),
    ("a b c", 4, []),
    ("a b c d a b c d", 4, [(8, 15)]),
    ("a b c d, a b c d", 4, [(9, 16)]),
    ("a b c d  A  B\nC D e", 4, [(9, 17)]),  # case and blanks do not count
    ("x a b c x a b c y b c", 2, [(8, 15), (18, 21)]),  # "x a", "a b", "b c" again; then "b c" alone
    ("a b x a b y a b", 2, [(6, 9), (12, 15)]),
    ("go go go", 1, [(3, 8)]),
    ("a a a a a", 4, [(2, 9)]),  # the second of two n-grams repeats the first, though they overlap
    ("--- a --- a ---", 2, [(6, 15)]),  # a run of punctuation is one word: "--- a", "a ---"
    ("don't stop don’t stop", 2, []),  # the apostrophes differ
    ("don't stop; don't stop", 2, [(12, 22)]),
]


@pytest.mark.parametrize(("text", "n", "found"), HAND)
def test_repeated(text, n, found):
    assert repeated_spans(text, n) == found


def test_offsets_are_the_texts_own_where_folding_changes_lengths():
    text = "Die STRASSE ist lang. İ! die straße ist LANG!"
    assert "STRASSE".casefold() == "straße".casefold()
    assert [text[start:end] for start, end in repeated_spans(text, 4)] == ["die straße ist LANG"]
    emoji = "🙂 so it is fine. 🙂 So it is fine"
    assert repeated_spans(emoji, 4) == [(17, 32)]  # a character beyond the BMP is one, as in Python
    accents = "e\u0301te\u0301 un deux trois, x e\u0301te\u0301 un deux trois"
    assert [accents[start:end] for start, end in repeated_spans(accents, 4)] == ["e\u0301te\u0301 un deux trois"]


@pytest.mark.parametrize(
    ("fine", "coarse", "n", "found", "share"),
    [
        ("", "", 4, [], 0.0),
        ("so the sky is blue", "The sky is blue and so on", 4, [(3, 18)], 4 / 5),
        ("the sky is", "the sky is", 4, [], 0.0),  # shorter than n
        ("c d a b", "a b c d", 2, [(0, 7)], 1.0),  # two stretches that touch are one, though coarse has no "d a"
        ("a b x c d", "a b c d", 2, [(0, 3), (6, 9)], 4 / 5),
        ("a b a b a b", "a b", 2, [(0, 11)], 1.0),  # as often as fine says it
        ("a. b. a.", "a.", 1, [(0, 2), (4, 8)], 5 / 6),  # everything but "b"
    ],
)
def test_kept(fine, coarse, n, found, share):
    assert shared_spans(fine, coarse, n) == found
    assert shared_share(fine, coarse, n) == pytest.approx(share, abs=1e-12)


def test_how_repeats_differ_from_the_other_figures():
    assert repeated_spans("a a a a a", 4) == [(2, 9)] and repeated_ngrams([1] * 5) == 0.5
    text = "The sky is blue. the sky is blue"
    assert repeated_spans(text, 4) == [(17, 32)]


def test_stretches_of_no_words_are_refused():
    for call in (repeated_spans, lambda text, n: shared_spans(text, text, n)):
        with pytest.raises(ValueError, match="n=0"):
            call("a", 0)


TEXTS = st.lists(st.sampled_from(["a", "B", "b", "c", "ß", "SS", "é", ".", "..", "\n"]), max_size=14).map(" ".join)


def words_of(text):
    """One word at a time, for texts whose words stand between blanks."""
    return [(match.start(), match.end(), match[0].casefold()) for match in re.finditer(r"\S+", text)]


def spans_of(words, marked):
    spans, before = [], None
    for index in sorted(marked):
        start, end, _ = words[index]
        if before == index - 1 and spans:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
        before = index
    return spans


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS, TEXTS, st.integers(1, 4))
def test_against_all_stretches(fine, coarse, n):
    words = words_of(fine)
    said, other = [word for *_, word in words], [word for *_, word in words_of(coarse)]
    marked = set()
    for first in range(len(said)):
        for last in range(first + n, len(said) + 1):
            size = last - first
            if any(other[at : at + size] == said[first:last] for at in range(len(other) - size + 1)):
                marked.update(range(first, last))
    assert shared_spans(fine, coarse, n) == spans_of(words, marked)
    assert shared_share(fine, coarse, n) == pytest.approx(len(marked) / max(len(said), 1), abs=1e-12)
    again = set()
    for first in range(len(said) - n + 1):
        if any(said[before : before + n] == said[first : first + n] for before in range(first)):
            again.update(range(first, first + n))
    assert repeated_spans(fine, n) == spans_of(words, again)


@given(st.text(max_size=80), st.integers(1, 3))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_spans_are_in_the_text_apart_and_in_order(text, n):
    assert shared_spans(text, text, n) == (
        [(shared_spans(text, text, n)[0])] if shared_spans(text, text, n) else []
    )  # all of it, or nothing
    last = -1
    for start, end in repeated_spans(text, n):
        assert last < start < end <= len(text)
        assert not text[start].isspace() and not text[end - 1].isspace()
        last = end


@pytest.mark.parametrize("text", ["a " * 10_000, "ab" * 10_000, "." * 20_000, "'a" * 10_000, "a\u0301" * 10_000])
def test_long_texts_take_no_time(text):
    """A few ms of this process; a search that grows with the square would take minutes."""
    began = time.process_time()
    repeated_spans(text), shared_spans(text, text, 4)
    assert time.process_time() - began < 10
