"""The toy world says what it should: right arithmetic, a clean split, pairs that prefer the better answer."""

import itertools
import random
import re

import pytest

from lite_c2f.toy import world
from lite_c2f.toy.world import Problem, analytic, direct, is_analytic, is_right

PROBLEM = Problem("Tom", "apples", 3, (4, -2), ("finds", "loses"))


def test_a_problem_in_words():
    assert PROBLEM.question == "Tom has 3 apples, first finds 4, second loses 2. How many now?"
    assert PROBLEM.answer == 5
    assert direct(PROBLEM) == "The answer is 5."
    assert analytic(PROBLEM) == (
        "Let us think step by step. Tom starts with 3 apples, first finds 4, so 3 + 4 = 7, "
        "second loses 2, so 7 - 2 = 5. The answer is 5."
    )
    assert analytic(PROBLEM, 1).endswith("so 7 - 2 = 6. The answer is 6.")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("The answer is 5.", True),
        ("The answer is 4. The answer is 5.", True),
        ("The answer is 5. The answer is 4.", False),
        ("5", False),
        ("The answer is 55.", False),
    ],
)
def test_right(text, right):
    assert is_right(text, 5) is right


def test_analytic_needs_every_step_and_an_answer():
    assert is_analytic(analytic(PROBLEM), 2) and not is_analytic(analytic(PROBLEM), 3)
    assert not is_analytic(direct(PROBLEM), 2)
    assert not is_analytic(analytic(PROBLEM).split(" The answer")[0], 2)


def sample(held_out, count=3000):
    return list(itertools.islice(world.problems(random.Random(1), held_out=held_out), count))


def test_problems_have_three_to_five_operands_and_no_negative_total():
    found = sample(False)
    assert {len(problem.changes) for problem in found} == {2, 3, 4}
    for problem in found:
        total = problem.start
        for change in problem.changes:
            total += change
            assert 1 <= abs(change) <= 9 and total >= 0


def test_held_out_problems_are_never_in_training():
    training = {(problem.start, problem.changes) for problem in sample(False)}
    held_out = {(problem.start, problem.changes) for problem in sample(True, 300)}
    assert not training & held_out
    texts = " ".join(pair.turns[0].text for pair in world.pairs(400, 0))
    for prompt in world.prompts(50, 0, held_out=True):
        assert re.split(" has ", prompt.turns[0].text)[1] not in texts


def test_pairs_prefer_the_better_answer():
    found = world.pairs(600, 3)
    assert found == world.pairs(600, 3) != world.pairs(600, 4)
    kinds = {(pair.chosen_ended, pair.rejected_ended) for pair in found}
    assert kinds == {(True, True), (True, False), (False, True), (False, False)}
    for pair in found:
        assert pair.chosen != pair.rejected
        assert pair.chosen not in world.RUDE
        if pair.chosen_ended:
            problem_is_right = re.search(r"The answer is (\d+)\.$", pair.chosen)
            assert problem_is_right
        if not pair.chosen_ended and not pair.rejected_ended:
            assert pair.chosen.startswith(pair.rejected)  # the longer cut is preferred


def test_another_world_differs_where_it_says():
    other = world.World(operations=(3, 5), base_analytic=0.0, base_direct=0.0, base_rambling=1.0, flipped=1.0)
    found = itertools.islice(world.problems(random.Random(1), held_out=False, world=other), 500)
    assert {len(problem.changes) for problem in found} == {3, 4, 5}
    text = world.base_answer(random.Random(0), PROBLEM, other)
    assert "answer" not in text and len(re.findall(r"[.?]", text)) >= 9 and "{" not in text
    assert world.is_rambling(text) and all(world.is_rambling(s.format(name="Tom", thing="pens")) for s in world.IDLE)
    assert not any(world.is_rambling(said) for said in (analytic(PROBLEM), direct(PROBLEM), *world.RUDE, ""))
    plain = world.pairs(200, 0, world=other._replace(flipped=0.0))
    turned = world.pairs(200, 0, world=other)
    assert [(pair.chosen, pair.chosen_ended) for pair in plain] == [
        (pair.rejected, pair.rejected_ended) for pair in turned
    ]
    assert any(pair.rejected.startswith(("Tom likes", "Who does not like", "It is nice")) for pair in plain)
    texts = {world.base_answer(random.Random(seed), PROBLEM) for seed in range(300)}
    assert texts == {analytic(PROBLEM), direct(PROBLEM), *world.RUDE}  # the default world does not ramble


@pytest.mark.filterwarnings("ignore")
def test_every_word_and_number_is_one_token():
    from lite_c2f.toy.build import make_tokenizer

    tokenizer = make_tokenizer()
    ids = tokenizer.encode(analytic(PROBLEM), add_special_tokens=False)
    assert len(ids) == len(re.findall(r"\w+|[^\w\s]", analytic(PROBLEM)))
    text = "Zürich 東京 \n\t🙂"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
