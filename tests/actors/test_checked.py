"""Accuracy and analysis of answers to questions that can be checked: worked out by hand."""

from lite_c2f.actors.answers import Answer, checked
from lite_c2f.data.records import Prompt, Turn
from lite_c2f.smollm.questions import CheckedQuestion

PENS = CheckedQuestion("packing", "Ben has 3 boxes with 4 pens each and finds 2 pens. How many pens?", "14")
OPEN = CheckedQuestion("open", "How can I remove a coffee stain from a cotton shirt?")
ANSWERS = {
    "3 x 4 = 12 pens are in boxes. So with 2 more pens it is 14.": PENS,  # right, and analyses
    "It is 14.": PENS,  # right
    "3 x 4 = 11 pens are in boxes. So with 2 more pens it is 13.": PENS,  # analyses
    "No idea.": PENS,
    "Use soap.": OPEN,  # nothing to check
}


def prompt(question):
    return Prompt((Turn("human", question.text),), {"smollm_question": question})


def answer(text):
    return Answer(text, 1, "eos", [1])


def test_accuracy_is_of_what_can_be_checked_and_analysis_of_all():
    figures = checked([prompt(question) for question in ANSWERS.values()], [answer(text) for text in ANSWERS])
    assert figures == {"accuracy": 2 / 4, "analytic": 2 / 5}
    assert checked([prompt(OPEN)], [answer("Use soap.")]) == {"analytic": 0.0}
    assert checked([Prompt((Turn("human", "?"),), {})], [answer("a")]) == {}
