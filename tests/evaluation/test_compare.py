"""A comparison knows what it compares: other answers, prompts or models are not taken for it."""

from datetime import date

import pytest

from lite_c2f.actors.answers import Answer
from lite_c2f.config.loading import load_config
from lite_c2f.data.records import Prompt, Turn
from lite_c2f.evaluation.compare import answer_cache, by_source, row_of_data
from lite_c2f.pipeline.comparison import comparison_settings, last_comparison_settings
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.storage.files import write_json

FILES = ("coarse/adapter/adapter_model.safetensors", "reward/adapter/adapter_model.safetensors", "fine/merge.json")
TURNS = [(Turn("human", "why"),)]


@pytest.fixture
def run(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("as it was")
    return tmp_path


def test_kept_answers_are_those_of_the_same_prompts_actors_and_models(run, pico, editable):
    config, models = load_config({}), ModelPair(str(pico["base"]), str(pico["instruct"]))
    answer_cache(config, models, run, TURNS).put("instruct", [["said", 1, "eos", [3]]])
    assert answer_cache(config, models, run, TURNS).get("instruct") == [["said", 1, "eos", [3]]]
    assert answer_cache(config, models, run, [(Turn("human", "who"),)]).get("instruct") is None
    other = editable("instruct")
    (other / "chat_template.jinja").write_text("{{ messages }}")
    assert answer_cache(config, ModelPair(models.base, str(other)), run, TURNS).get("instruct") is None
    for name in FILES:
        (run / name).write_text("another")
        assert answer_cache(config, models, run, TURNS).get("instruct") is None
        (run / name).write_text("as it was")
    assert answer_cache(config, models, run, TURNS).get("instruct") is not None


def test_figures_of_each_source_by_hand():
    prompts = [Prompt((Turn("human", "?"),), {}, source) for source in ("b", "a", "b", "b")]
    said = [Answer("x", tokens, finish, [1]) for tokens, finish in ((2, "eos"), (8, "limit"), (4, "eos"), (6, "limit"))]
    found = by_source(prompts, {"fine": said, "base": said[::-1]}, {"fine": [1, 2, 3, 5], "base": [5, 3, 2, 1]})
    plain = {"repeated_4gram": 0.0}
    assert found == {
        "a": {
            "fine": {"reward": 2, "tokens": 8, "eos": 0, "prompts": 1, **plain},
            "base": {"reward": 3, "tokens": 4, "eos": 1, "prompts": 1, **plain},
        },
        "b": {
            "fine": {"reward": 3, "tokens": 4, "eos": 0.6667, "prompts": 3, **plain},  # (1+3+5)/3, (2+4+6)/3, 2 of 3
            "base": {"reward": 2.6667, "tokens": 5.3333, "eos": 0.3333, "prompts": 3, **plain},  # 8/3, (6+8+2)/3
        },
    }
    toy = Prompt((Turn("human", "?"),), {"toy_answer": 5, "toy_steps": 1}, "toy")
    right = Answer("1 + 4 = 5. The answer is 5", 2, "eos", [1])
    mixed = by_source([*prompts, toy], {"fine": [*said, right]}, {"fine": [0] * 5})
    assert mixed["toy"]["fine"]["accuracy"] == 1.0 and "accuracy" not in mixed["a"]["fine"]


def test_a_comparison_of_another_merge_is_not_the_one_that_was_made(run):
    config = load_config({})
    assert last_comparison_settings(run) is None
    write_json(run / "evaluation" / "settings.json", comparison_settings(config, run))
    write_json(run / "evaluation" / "actors.json", {})
    assert last_comparison_settings(run) == comparison_settings(config, run)
    assert last_comparison_settings(run) != comparison_settings(load_config({}, ["evaluation.prompts=9"]), run)
    (run / "fine" / "merge.json").write_text("at another ratio")
    assert last_comparison_settings(run) != comparison_settings(config, run)


def test_columns_that_are_no_json_are_left_out():
    extra = {"answer": float("nan"), "when": {"at": date(2026, 1, 2)}, "topic": ["sums", 3]}
    assert row_of_data(Prompt((Turn("human", "?"),), extra)) == {"row": {"topic": ["sums", 3]}}
