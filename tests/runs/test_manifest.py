"""What may change between two commands on the same run."""

import json

import pytest

from lite_c2f.config.loading import load_config, with_defaults
from lite_c2f.errors import ConfigError, RunError
from lite_c2f.runs.manifest import check_actor_settings, check_run, save_accepted, save_settings, write_summary
from lite_c2f.storage.files import write_json


@pytest.fixture
def run(tmp_path):
    """A run whose reward stage is published."""
    (tmp_path / "config.yaml").write_text(load_config({}, ["reward.micro_batch=8"]).to_yaml())
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "metrics.json").write_text(json.dumps({"accuracy": 0.9, "mean": 0.0, "std": 1.0}))
    return tmp_path


@pytest.mark.parametrize(
    "change", [["reward.micro_batch=auto"], ["reward.micro_batch=2"], ["hardware.vram_gib=12"], ["coarse.updates=7"]]
)
def test_what_only_memory_and_later_stages_depend_on_may_change(run, change):
    check_run(run, load_config({}, ["reward.micro_batch=8", *change]))


@pytest.mark.parametrize("change", ["reward.lr=0.5", "reward.batch=64", "lora.r=4", "data.truncated=0.5"])
def test_what_a_published_stage_was_made_with_may_not(run, change):
    with pytest.raises(RunError, match=change.split("=")[0].replace(".", r"\.")):
        check_run(run, load_config({}, [change]))


def test_what_was_accepted_once_needs_no_force_again(run):
    save_settings(run, "reward", load_config({}))
    save_accepted(run, load_config({}))  # nothing differs
    changed = load_config({}, ["reward.lr=0.5"])
    with pytest.raises(RunError, match=r"reward\.lr"):
        check_run(run, changed)
    (note,) = check_run(run, changed, force=True)
    save_accepted(run, changed)
    assert check_run(run, changed) == [note] and "stays as it was made, with reward.lr=" in note
    assert check_run(run, load_config({})) == []  # as it was made
    for other in (["reward.lr=0.6"], ["reward.lr=0.5", "reward.epochs=3"]):
        with pytest.raises(RunError, match=r"reward\.lr"):
            check_run(run, load_config({}, other))
    (run / "config.yaml").write_text(load_config({}, ["lora.r=4"]).to_yaml())
    with pytest.raises(RunError, match=r"lora\.r"):  # was never accepted
        check_run(run, load_config({}, ["lora.r=4", "reward.lr=0.5"]))


@pytest.mark.parametrize("key", ["center", "warmup"])
def test_a_run_of_an_earlier_version_goes_on_with_new_settings_at_their_defaults(run, key):
    """What was written down then does not name a setting that came later."""
    config = load_config({}, ["reward.micro_batch=8"])
    save_settings(run, "reward", config)
    file = run / "reward" / "settings.json"
    saved = json.loads(file.read_text())
    place = next(value for value in (saved, *saved.values()) if isinstance(value, dict) and "reward" in value)
    del place["reward"][key]
    file.write_text(json.dumps(saved))
    assert check_run(run, config) == []
    with pytest.raises(RunError, match=rf"reward\.{key}=0\.\d+, now 0\.5"):
        check_run(run, load_config({}, [f"reward.{key}=0.5"]))


def test_only_what_is_known_now_is_completed():
    now = {"coarse": {"lr": 1.0, "clip": 0.5, "length": {"tau": 0.3}}, "run": {"seed": 0}}
    before = {"coarse": {"lr": 2.0, "gone": 1, "length": {}}, "other": [1]}
    found = with_defaults(before, now)
    assert found == {"coarse": {"lr": 2.0, "gone": 1, "clip": 0.2, "length": {"tau": 0.2}}, "other": [1]}
    assert with_defaults(None, now) is None


def test_the_summary_has_figures_of_each_source_where_there_are_several(run):
    """The reward model's and the actors'; with one source it stays as it was."""
    write_json(run / "run.json", {"seconds": {"reward": 1.0}})
    assert write_summary(run)["reward_model"] == {"accuracy": 0.9}
    saved = {"accuracy": 0.9, "mean": 0.0, "std": 1.0, "accuracy_by_source": {"toy": 0.9}}
    write_json(run / "reward" / "metrics.json", saved)
    assert write_summary(run)["reward_model"] == {"accuracy": 0.9}
    saved["accuracy_by_source"] = {"a": 0.8, "b": 1.0}
    write_json(run / "reward" / "metrics.json", saved)
    assert write_summary(run)["reward_model"] == {"accuracy": 0.9, "accuracy_by_source": {"a": 0.8, "b": 1.0}}
    write_json(run / "evaluation" / "actors.json", {})
    write_json(run / "evaluation" / "metrics.json", {"wins": {}})
    assert "by_source" not in write_summary(run)
    write_json(run / "evaluation" / "metrics.json", {"wins": {}, "by_source": {"a": {}, "b": {}}})
    assert write_summary(run)["by_source"] == {"a": {}, "b": {}}


@pytest.mark.parametrize(
    "change", ["lora.alpha=8", "model.base_revision=x", "model.stop=[x]", "model.prompt_template='Q {prompt} A'"]
)
def test_the_actors_own_settings_may_not_change_when_they_are_asked(change):
    made = load_config({})
    check_actor_settings(load_config({}, ["evaluation.max_tokens=7", "model.quantization=none"]), made)
    with pytest.raises(ConfigError, match=change.split("=")[0].replace(".", r"\.")):
        check_actor_settings(load_config({}, [change]), made)
