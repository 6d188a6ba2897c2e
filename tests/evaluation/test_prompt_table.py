"""Rows of the table of held-out prompts: how lines become rows, presets, filters, search and order, by hand."""

import json

import pytest

from lite_c2f.errors import RunError
from lite_c2f.evaluation.prompt_table import PromptRow, Query, read_prompts, rows_of, select, sort_keys

# prompt, actor, tokens, reward, share repeated, ending
LINES = (
    ("Why?", "instruct", 10, 0.5, 0.0, "eos"),
    ("Why?", "fine", 30, 0.25, 0.5, "limit"),  # lost by 0.25
    ("how?", "instruct", 40, -1.0, 0.1, "eos"),
    ("how?", "fine", 5, 0.0, 0.0, "eos"),  # won
    ("how?", "instruct", 7, 2.0, 0.0, "limit"),  # the same prompt again
    ("how?", "fine", 20, 1.0, 0.2, "limit"),  # lost by 1
    ("Who?", "instruct", 3, 0.0, 0.0, "eos"),  # without an answer of Fine
)


def line(prompt, actor, tokens, reward, repeated, finish, **more):
    answer = {"prompt": prompt, "actor": actor, "response": f"{actor} on {prompt}", "finish": finish}
    return answer | {"tokens": tokens, "reward": reward, "repeated_4gram": repeated} | more


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "responses.jsonl"
    lines = [line(*each) for each in LINES]
    lines[0] |= {"source": "a", "row": {"category": "maths"}}
    lines[-1] |= {"source": "b", "row": {"category": 3}}  # no category: it is no text
    file.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return read_prompts(file)


def numbers(rows, **query):
    return [row.number for row in select(rows, Query(**query))]


def test_a_prompt_that_stands_twice_has_two_rows(rows):
    assert [(row.prompt, list(row.answers)) for row in rows] == [
        ("Why?", ["instruct", "fine"]),
        ("how?", ["instruct", "fine"]),
        ("how?", ["instruct", "fine"]),
        ("Who?", ["instruct"]),
    ]
    assert [(row.source, row.category) for row in rows] == [("a", "maths"), ("", ""), ("", ""), ("b", "")]


def test_presets_show_the_worst_first(rows):
    assert numbers(rows) == [0, 1, 2, 3]
    assert numbers(rows, preset="lost") == [2, 0]  # by 1 and by 0.25
    assert numbers(rows, preset="longest") == [1, 0, 2, 3]  # 40, 30, 20, 3 tokens
    assert numbers(rows, preset="repeated") == [0, 2, 1]  # 0.5, 0.2, 0.1; the last repeats nothing
    assert numbers(rows, preset="cut") == [2, 0]  # two answers, one


def test_every_column_sorts_and_what_lacks_the_actor_comes_last(rows):
    assert numbers(rows, column="reward:fine") == [1, 0, 2, 3]  # 0, 0.25, 1, none
    assert numbers(rows, column="reward:fine", descending=True) == [2, 0, 1, 3]
    assert numbers(rows, column="tokens:instruct") == [3, 2, 0, 1]  # 3, 7, 10, 40
    assert numbers(rows, column="cut:fine", descending=True) == [0, 2, 1, 3]  # equal ones stay as they were
    assert numbers(rows, column="prompt") == [1, 2, 3, 0]  # how, how, who, why, whatever the case
    assert numbers(rows, preset="lost", column="tokens:fine") == [2, 0]  # 20, 30, of the preset's rows alone
    keys = sort_keys(["fine"])
    assert keys == ["prompt", "source", "category", "reward:fine", "tokens:fine", "repeated:fine", "cut:fine"]
    assert all(len(numbers(rows, column=key)) == 4 for key in keys)
    with pytest.raises(KeyError):
        select(rows, Query(column="nonsense:fine"))


def test_filters_and_search_in_prompts_and_answers(rows):
    assert numbers(rows, source="b") == [3] and numbers(rows, category="maths") == [0]
    assert numbers(rows, source="b", category="maths") == []
    assert numbers(rows, search=" WHO") == [3]
    assert numbers(rows, search="fine on") == [0, 1, 2]
    assert numbers(rows, search="fine on", preset="cut") == [2, 0]


def test_a_file_of_another_format_is_named(tmp_path):
    file = tmp_path / "responses.jsonl"
    assert read_prompts(file) == []
    file.write_text('{"prompt": "?", "actor": "fine"}\n')
    with pytest.raises(RunError, match=r"responses\.jsonl' has another format"):
        read_prompts(file)


def test_answers_without_a_reward_come_last_and_lose_to_nobody():
    lines = [
        line("a", "instruct", 1, 1.0, 0.0, "eos"),
        line("a", "fine", 1, None, 0.0, "eos"),
        line("b", "instruct", 1, 1.0, 0.0, "eos"),
        line("b", "fine", 1, 0.5, 0.0, "eos"),
        line("c", "fine", 0, None, 0.0, "error", message="no memory"),
    ]
    rows = rows_of(lines)
    assert numbers(rows, column="reward:fine") == numbers(rows, column="reward:fine", descending=True) == [1, 0, 2]
    assert numbers(rows, preset="lost") == [1]
    assert (rows[2].answers["fine"].message, rows[1].answers["fine"].message) == ("no memory", "")


def test_prompts_that_nobody_has_answered_yet():
    rows = [PromptRow(number, text, "", "", {}) for number, text in enumerate("ab")]
    assert numbers(rows) == numbers(rows, preset="longest") == numbers(rows, column="tokens:fine") == [0, 1]
    assert numbers(rows, preset="repeated") == numbers(rows, preset="cut") == numbers(rows, preset="lost") == []
