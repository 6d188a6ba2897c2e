"""Saved prompt sets: whole, of one owner alone, bounded; questions in their order, with answers as they come."""

import json

import pytest

from lite_c2f.errors import RunError
from lite_c2f.evaluation.prompt_table import read_prompts
from lite_c2f.storage.files import write_jsonl
from lite_c2f.ui.store import prompt_sets

OWNER, OTHER = "ab" * 16, "cd" * 16
ACTORS = ("base", "instruct", "coarse", "fine")


def rows(question, finish="eos"):
    answer = {"response": "5", "finish": finish, "tokens": 3, "reward": 0.5, "repeated_4gram": 0.0, "seed": 7}
    return [{"prompt": question, "actor": actor, **answer} for actor in ACTORS]


@pytest.fixture
def made():
    return prompt_sets.new(OWNER, "mine", ["a", "b", "c"], {"seed": 7}, {"name": "toy"})


def test_a_set_is_read_as_it_was_saved_and_by_its_owner_alone(tmp_path, made):
    made = prompt_sets.answered(made, rows("b"))
    prompt_sets.save(tmp_path, made)
    assert prompt_sets.load(tmp_path, OWNER, made.id) == made
    assert prompt_sets.list_sets(tmp_path, OWNER) == [prompt_sets.SetEntry(made.id, "mine", made.created, 1, 3)]
    assert prompt_sets.list_sets(tmp_path, OTHER) == []
    for owner, id in (
        (OTHER, made.id),
        (OWNER, OTHER),
        ("..", made.id),
        (OWNER, f"../{OWNER}/{made.id}"),
        (OWNER, None),
    ):
        for action in (prompt_sets.load, prompt_sets.delete, prompt_sets.stamp_of):
            with pytest.raises(RunError, match="no such prompt set"):
                action(tmp_path, owner, id)
    prompt_sets.delete(tmp_path, OWNER, made.id)
    assert prompt_sets.list_sets(tmp_path, OWNER) == []


def test_no_symlink_is_followed(tmp_path, made):
    prompt_sets.save(tmp_path / "real", made)
    sets = tmp_path / "sets"
    (sets / OTHER).mkdir(parents=True)
    (sets / OWNER).symlink_to(tmp_path / "real" / OWNER)
    (sets / OTHER / f"{made.id}.json").symlink_to(tmp_path / "real" / OWNER / f"{made.id}.json")
    for owner in (OWNER, OTHER):
        assert prompt_sets.list_sets(sets, owner) == []
        with pytest.raises(RunError, match="no such prompt set"):
            prompt_sets.load(sets, owner, made.id)
    with pytest.raises(RunError, match="no such prompt set"):
        prompt_sets.save(sets, made)


def test_answers_stand_in_the_order_of_the_questions_and_a_failed_one_is_asked_again(tmp_path, made):
    assert prompt_sets.unanswered(made) == [0, 1, 2]
    made = prompt_sets.answered(prompt_sets.answered(made, rows("c")), rows("a", finish="error"))
    assert prompt_sets.unanswered(made) == [0, 1]
    assert [row["prompt"] for row in made.rows] == ["a"] * 4 + ["c"] * 4
    made = prompt_sets.answered(made, rows("a"))
    assert prompt_sets.unanswered(made) == [1] and len(made.rows) == 8
    table = prompt_sets.table(made)
    assert [(row.number, row.prompt, len(row.answers)) for row in table] == [(0, "a", 4), (1, "b", 0), (2, "c", 4)]
    write_jsonl(tmp_path / "responses.jsonl", list(made.rows))  # as they are exported
    exported = read_prompts(tmp_path / "responses.jsonl")
    assert [(row.prompt, row.answers) for row in exported] == [
        (row.prompt, row.answers) for row in table if row.answers
    ]


def test_an_owner_has_so_many_sets_and_bytes(tmp_path, made, monkeypatch):
    prompt_sets.save(tmp_path, made)
    prompt_sets.check_room(tmp_path, OWNER)
    monkeypatch.setattr(prompt_sets, "MAX_SETS", 1)
    with pytest.raises(RunError, match="you have 1 sets; expected fewer than 1; delete one"):
        prompt_sets.check_room(tmp_path, OWNER)
    prompt_sets.check_room(tmp_path, OTHER)
    monkeypatch.setattr(prompt_sets, "MAX_SETS", 2)
    monkeypatch.setattr(prompt_sets, "MAX_BYTES", 100)
    with pytest.raises(RunError, match="MiB"):
        prompt_sets.check_room(tmp_path, OWNER)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [{"prompt": "a"}]},
        {"rows": rows("another question")},
        {"rows": [{**rows("a")[0], "actor": "<b>"}]},
        {"rows": [{**rows("a")[0], "reward": "high"}]},
        {"questions": "a"},
        {"schema": 2},
        {"more": 1},
    ],
)
def test_a_damaged_set_is_named_left_out_of_the_list_and_can_be_deleted(tmp_path, made, change):
    prompt_sets.save(tmp_path, made)
    file = tmp_path / OWNER / f"{made.id}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(RunError, match=f"set {made.id} (is damaged|has schema 2)"):
        prompt_sets.load(tmp_path, OWNER, made.id)
    assert prompt_sets.list_sets(tmp_path, OWNER) == []
    prompt_sets.delete(tmp_path, OWNER, made.id)


def test_a_set_of_another_name_or_owner_is_no_set_of_this_one(tmp_path, made):
    prompt_sets.save(tmp_path, made)
    (tmp_path / OWNER / f"{OTHER}.json").write_bytes((tmp_path / OWNER / f"{made.id}.json").read_bytes())
    with pytest.raises(RunError, match="no such prompt set"):
        prompt_sets.load(tmp_path, OWNER, OTHER)
