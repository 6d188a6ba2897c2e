"""Figures of rows alone, by hand."""

import pytest

from lite_c2f.evaluation.page import Chart, Table
from lite_c2f.evaluation.row_figures import blocks_of_rows, means, win_rates


def row(prompt, actor, reward, tokens=4, finish="eos", repeated=0.0):
    answer = {"response": "5", "finish": finish, "tokens": tokens, "repeated_4gram": repeated}
    return {"prompt": prompt, "actor": actor, "reward": reward, **answer}


ROWS = [
    row("a", "instruct", 0.0),
    row("a", "fine", 1.0, tokens=2, repeated=0.5),
    row("b", "instruct", 2.0),
    row("b", "fine", 3.0, tokens=6, finish="limit"),
    row("c", "instruct", 1.0),
    row("c", "fine", None, tokens=0, finish="error"),
    row("d", "fine", None, tokens=4),
]


def test_means_and_their_errors():
    """Fine: rewards 1 and 3, tokens 2, 6, 4, of which one hit the limit; standard errors 1 and 2 / sqrt(3)."""
    fine = [each for each in ROWS if each["actor"] == "fine" and each["finish"] != "error"]
    expected = {"reward": 2.0, "tokens": 4.0, "repeated_4gram": 1 / 6, "eos": 2 / 3}
    assert means(fine) == pytest.approx(expected)
    table = next(block for block in blocks_of_rows(ROWS) if isinstance(block, Table))
    assert list(table.rows) == ["instruct", "fine"]  # in the order of the report; the others have no answers
    assert table.rows["fine"][:2] == ["2.000 ± 1.000", "4.000 ± 1.155"]


def test_wins_are_of_the_prompts_that_both_have_a_reward_on():
    """On a and b, where Fine won both; Wilson's interval of 2 of 2 begins at 1 / (1 + 1.96^2 / 2) = 0.342."""
    scored = [each for each in ROWS if each["reward"] is not None]
    wins = win_rates(scored)
    assert list(wins) == ["fine over instruct"]
    assert wins["fine over instruct"]["rate"] == 1.0
    assert wins["fine over instruct"]["low"] == pytest.approx(0.3424, abs=1e-4)
    assert "prompts" not in wins["fine over instruct"]


def test_without_rewards_there_are_neither_wins_nor_charts_and_without_answers_nothing():
    blocks = blocks_of_rows([{**each, "reward": None} for each in ROWS])
    assert len([block for block in blocks if isinstance(block, Table)]) == 1
    assert not any(isinstance(block, Chart) for block in blocks)
    assert blocks_of_rows([]) == blocks_of_rows([ROWS[5]]) == []
