"""Questions of the embedded real model: answers worked out by hand."""

import random
import re

import pytest

from lite_c2f.smollm import questions as kinds
from lite_c2f.smollm.questions import KINDS, OPEN, CheckedQuestion, is_right, questions


def test_there_are_many_different_ones_on_two_sides():
    trained, held_out = questions(480, 0, held_out=False), questions(160, 1, held_out=True)
    texts = {question.text for question in trained}, {question.text for question in held_out}
    assert [len(side) for side in texts] == [480, 160] and not texts[0] & texts[1]
    for side in (trained, held_out):
        assert {question.kind for question in side} == {kind.__name__ for kind in KINDS} - {"open_question"} | {"open"}
    assert questions(480, 0, held_out=False) == trained
    assert len(set(OPEN)) == len(OPEN) and all(text.endswith("?") for text in OPEN)


def numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def test_answers_follow_from_the_text():
    """Worked out again from the numbers that stand in the question."""
    rng = random.Random(3)
    for _ in range(200):
        start, gain, loss = numbers((question := kinds.stock(rng)).text)
        assert question.answer == str(start + gain - loss)
        total, aside, people = numbers((question := kinds.sharing(rng)).text)
        assert question.answer == str((total - aside) / people).removesuffix(".0")
        hour, minute, takes = numbers((question := kinds.arrival(rng)).text)
        end = hour * 60 + minute + takes
        assert question.answer == f"{end // 60}:{end % 60:02}"
        there, first, second = numbers((question := kinds.schedule(rng)).text)
        assert question.answer == ("yes" if first + second <= there else "no")
        a, b, c, d = numbers((question := kinds.shopping(rng)).text)
        expected = a * b + c * d if " each and " in question.text else a * c + b * d
        assert question.answer == str(expected)
        a, b, c, d = numbers((question := kinds.offer(rng)).text)
        assert question.answer == question.options[0 if a * b > c * d else 1] and a * b != c * d
        values = numbers((question := kinds.packing(rng)).text)
        assert question.answer == str(values[0] * values[1] + values[2] if len(values) == 3 else values[0] // values[1])


def test_who_is_the_tallest():
    rng = random.Random(0)
    for _ in range(50):
        question = kinds.order(rng)
        above = dict(re.findall(r"(\w+) is \w+ than (\w+)", question.text))
        (top,) = set(above) - set(above.values())
        (bottom,) = set(above.values()) - set(above)
        wanted = bottom if re.search(r"shortest|youngest|slowest", question.text) else top
        assert question.answer == wanted


@pytest.mark.parametrize(
    ("question", "response", "right"),
    [
        (CheckedQuestion("stock", "", "12"), "8 + 4 = 12. So 12 apples are left.", True),
        (CheckedQuestion("stock", "", "12"), "The answer is 1,200.", False),
        (CheckedQuestion("stock", "", "1200"), "The answer is 1,200.", True),
        (CheckedQuestion("stock", "", "12"), "I do not know.", False),
        (CheckedQuestion("stock", "", "12"), "It is 12.5", False),
        (CheckedQuestion("arrival", "", "9:05"), "It arrives at 09:05.", True),
        (CheckedQuestion("arrival", "", "9:05"), "It leaves at 9:05 and arrives at 9:50.", False),
        (CheckedQuestion("schedule", "", "no", ("yes", "no")), "No, 50 is more than 40. Yes would be wrong.", True),
        (CheckedQuestion("schedule", "", "no", ("yes", "no")), "I know that it is.", False),
        (
            CheckedQuestion("order", "", "Ben", ("Ann", "Ben", "Leo")),
            "Ann is taller than Leo, so the tallest is Ben.",
            True,
        ),
        (CheckedQuestion("order", "", "Ben", ("Ann", "Ben", "Leo")), "Ben is not the tallest, Ann is.", False),
        (CheckedQuestion("open", ""), "Anything.", None),
    ],
)
def test_an_answer_is_read_from_the_text(question, response, right):
    assert is_right(question, response) is right
