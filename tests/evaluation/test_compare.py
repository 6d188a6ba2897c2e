"""A comparison knows what it compares: other answers, prompts or models are not taken for it."""

import pytest

from lite_c2f.config import load_config
from lite_c2f.data.records import Turn
from lite_c2f.evaluation.compare import answered_before
from lite_c2f.inputs import ModelPair
from lite_c2f.pipeline import compared_with, comparison_of
from lite_c2f.runs import write_json

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
    answered_before(config, models, run, TURNS).put("instruct", [["said", 1, "eos", [3]]])
    assert answered_before(config, models, run, TURNS).get("instruct") == [["said", 1, "eos", [3]]]
    assert answered_before(config, models, run, [(Turn("human", "who"),)]).get("instruct") is None
    other = editable("instruct")
    (other / "chat_template.jinja").write_text("{{ messages }}")
    assert answered_before(config, ModelPair(models.base, str(other)), run, TURNS).get("instruct") is None
    for name in FILES:
        (run / name).write_text("another")
        assert answered_before(config, models, run, TURNS).get("instruct") is None
        (run / name).write_text("as it was")
    assert answered_before(config, models, run, TURNS).get("instruct") is not None


def test_a_comparison_of_another_merge_is_not_the_one_that_was_made(run):
    config = load_config({})
    assert compared_with(run) is None
    write_json(run / "evaluation" / "settings.json", comparison_of(config, run))
    write_json(run / "evaluation" / "actors.json", {})
    assert compared_with(run) == comparison_of(config, run)
    assert compared_with(run) != comparison_of(load_config({}, ["evaluation.prompts=9"]), run)
    (run / "fine" / "merge.json").write_text("at another ratio")
    assert compared_with(run) != comparison_of(config, run)
