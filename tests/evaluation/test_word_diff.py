"""Difference of two texts by words: against a brute-force longest common subsequence, and its limits."""

import random
import time

from lite_c2f.evaluation.overlap import word_spans
from lite_c2f.evaluation.word_diff import MOST_PAIRS, word_diff


def words(text):
    return [text[start:end] for start, end in word_spans(text)]


def test_words_that_went_and_came():
    """`red` went from before `box`; `, too` came behind it."""
    text = "It is a box, too."
    diff = word_diff("It is a red box.", text)
    assert [text[a:b] for a, b in diff.added] == [", too"] and diff.removed == ((text.index("box"), "red"),)
    assert word_diff("Same\n\nwords", "Same words") == ((), ())  # blanks are no words
    assert word_diff("it", "It") == (((0, 2),), ((0, "it"),))  # case is a difference
    assert word_diff("", "a b") == (((0, 3),), ()) and word_diff("a b", "") == ((), ((0, "a b"),))


def test_taking_the_changes_back_gives_the_first_text():
    """Whatever the texts: what is not added stands in both in the same order, and what is removed is the rest."""
    draw = random.Random(0)
    for _ in range(200):
        before, after = (" ".join(draw.choices("abcdef", k=draw.randrange(12))) for _ in range(2))
        diff = word_diff(before, after)
        rebuilt, removed = [], list(diff.removed)
        for (start, _), word in zip(word_spans(after), words(after), strict=True):
            while removed and removed[0][0] <= start:
                rebuilt += words(removed.pop(0)[1])
            if not any(first <= start < end for first, end in diff.added):
                rebuilt.append(word)
        rebuilt += [word for _, text in removed for word in words(text)]
        assert rebuilt == words(before), (before, after)


def test_answers_that_repeat_themselves_do_not_take_long():
    """Two cycles of 7 and of 5 words, 1,000 long: 4.6 s where each pair of equal words may start a match."""
    before, after = (" ".join(f"w{n % cycle}" for n in range(1000)) for cycle in (7, 5))
    assert MOST_PAIRS < 5 * (1000 // 7) * (1000 // 5)
    begun = time.process_time()
    diff = word_diff(before, after)
    assert time.process_time() - begun < 1.0
    assert diff.added or diff.removed
