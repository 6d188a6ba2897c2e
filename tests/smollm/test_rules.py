"""Rules that order answers: grades and orders worked out by hand."""

import pytest

from lite_c2f.data.records import Turn
from lite_c2f.smollm.questions import CheckedQuestion
from lite_c2f.smollm.rules import (
    Grade,
    conclusion,
    focus,
    grade,
    is_reasoned,
    pairs_of_answers,
    repeated_share,
    sentences,
    steps,
    subjects,
)

PENS = "Ben has 3 boxes with 4 pens each and finds 2 pens. How many pens does he have?"
STAIN = "How can I remove a coffee stain from a cotton shirt?"


def test_what_a_question_is_about():
    assert subjects(PENS) == {"3", "4", "2", "box", "pen", "find"}
    assert subjects(STAIN) == {"remove", "coffee", "stain", "cotton", "shirt"}
    assert subjects("Then there would be more.") == set()


def test_sentences_are_those_of_four_words():
    assert sentences("One two three four. Five six. Seven eight\nnine ten eleven twelve!") == [
        "One two three four.",
        "nine ten eleven twelve!",
    ]


@pytest.mark.parametrize(
    ("question", "answer", "count"),
    [
        (PENS, "14", 0),
        (PENS, "The answer is 14 pens.", 0),
        (PENS, "There are 3 boxes with 4 pens each. 3 x 4 = 12 pens. So with 2 more pens it is 14.", 2),
        (PENS, "3 x 4 = 12 pens. 3 x 4 = 12 pens. 3 x 4 = 12 pens.", 1),  # written three times
        (PENS, "There is 5 + 6 = 11. So with 7 it is 18 pens.", 0),  # numbers of its own
        (PENS, "I was there because of rain. Then we had tea.", 0),  # of something else
        (STAIN, "Use cold water because heat sets a coffee stain. Then wash the cotton shirt as usual.", 2),
        (STAIN, "First\nThen\nSo", 0),  # a word is no step
        (STAIN, "I like coffee when it is warm.", 0),
    ],
)
def test_steps_of_an_answer(question, answer, count):
    assert steps(question, answer) == count and is_reasoned(question, answer) == (count >= 2)


def test_focus_is_the_share_of_sentences_on_the_question():
    assert focus(STAIN, "Wash the shirt in cold water. Bears sleep through the winter.") == 0.5
    assert focus(STAIN, "Bears sleep through the winter.") == 0.0 and focus(STAIN, "Never.") == 1.0  # no sentence


def test_repetition_is_that_of_runs_of_four_words():
    assert repeated_share("one two three four " * 4) == pytest.approx(1 - 4 / 13)
    assert repeated_share("no no no no no") == 0.0  # too short to tell
    assert repeated_share("the quick brown fox jumps over the lazy dog and then sleeps well") == 0.0


def test_what_the_rules_see():
    question = CheckedQuestion("packing", PENS, "14")
    answer = "3 x 4 = 12 pens are in boxes. So with 2 more pens it is 14."
    assert grade(question, answer, ended=True) == Grade(True, True, True, 2, True)
    more = answer + " First count the 3 boxes. Then count the 2 pens he finds."
    assert grade(question, more, ended=False) == Grade(True, True, False, 4, False)  # the last number is 2
    assert grade(CheckedQuestion("open", STAIN), "Bears sleep through the winter.", ended=True) == Grade(
        True, False, None, 0, True
    )


LOOP = "it is 14 pens and so " * 6
ORDERED = (  # the best first; each beats all that follow by the first rule that tells it from them
    ("So 3 x 4 = 12 pens, and then 2. 12 + 2 = 14 pens. First count the 3 boxes. Then add 2 to the pens: 14.", True),
    ("3 x 4 = 12 pens are in boxes. So with 2 more pens it is 14.", True),
    ("3 x 4 = 12 pens are in boxes. So with 2 more pens it is 14", False),
    ("It is 14.", True),
    ("3 x 4 = 11 pens are in boxes. So with 2 more pens it is 13.", True),
    ("It is 13 pens.", True),
    ("Bears sleep through the winter. They wake up in spring.", True),
    (LOOP, True),
)


def test_the_first_rule_that_differs_decides():
    question = CheckedQuestion("packing", PENS, "14")
    for place, better in enumerate(ORDERED):
        for worse in ORDERED[place + 1 :]:
            for order in ((better, worse), (worse, better)):
                pair = pairs_of_answers(question, order)[0]
                assert (pair.chosen, pair.rejected) == (better[0].strip(), worse[0].strip())
                assert (pair.chosen_ended, pair.rejected_ended) == (better[1], worse[1])
    pair = pairs_of_answers(question, ORDERED[3:0:-1])[0]
    assert (pair.turns, pair.chosen, pair.rejected) == ((Turn("human", PENS),), ORDERED[1][0], ORDERED[3][0])
    assert pairs_of_answers(question, [("It is 13 pens.", True), ("It is 12 pens.", True)]) == []
    assert pairs_of_answers(question, [("It is 14.", True), ("", True)]) == [] == pairs_of_answers(question, ())


def test_the_best_answer_is_better_than_its_conclusion():
    question = CheckedQuestion("packing", PENS, "14")
    (pair,) = pairs_of_answers(question, [ORDERED[1], ORDERED[1]])
    assert (pair.chosen, pair.rejected) == (ORDERED[1][0], "So with 2 more pens it is 14.")
    assert pair.chosen_ended and pair.rejected_ended
    assert pairs_of_answers(question, [ORDERED[2]]) == []  # cut off, so that its last sentence is no conclusion
    assert pairs_of_answers(question, [ORDERED[3]]) == []  # no analysis
    assert conclusion("First\n3 + 4 = 7\n#### 7") == "#### 7" and conclusion("It is 7") == "It is 7"


def test_of_equal_answers_the_one_on_the_question_counts():
    question = CheckedQuestion("open", STAIN)
    better = ("Wash the shirt with soap. Rinse the cotton shirt well.", True)
    worse = ("Wash the shirt with soap. Bears sleep through the winter.", True)
    bad = ("Bears sleep through the winter.", True)
    assert grade(question, better[0], ended=True) == grade(question, worse[0], ended=True)
    for answers in ([bad, better, worse], [worse, bad, better]):
        assert [(p.chosen, p.rejected) for p in pairs_of_answers(question, answers)] == [(better[0], bad[0])]
