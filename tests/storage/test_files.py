"""Whole or not at all; and what a run directory refuses."""

import json

import pytest

from lite_c2f.config.loading import load_config
from lite_c2f.errors import RunError
from lite_c2f.runs.manifest import REQUIRED_METRICS, check_run, check_stages, save_config
from lite_c2f.storage.files import publish_folder, read_json, write_json, write_text
from lite_c2f.storage.metrics import Metrics


def test_a_folder_appears_whole(tmp_path):
    with publish_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), publish_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_older_folder_is_kept_unless_it_may_be_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match="exists"), publish_folder(tmp_path / "out"):
        pass
    with pytest.raises(ZeroDivisionError), publish_folder(tmp_path / "out", replace=True):
        raise ZeroDivisionError
    assert (tmp_path / "out").is_dir()
    with publish_folder(tmp_path / "out", replace=True) as folder:
        (folder / "new").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]


def test_files_are_replaced_whole_and_nan_is_no_json(tmp_path):
    write_text(tmp_path / "a", "old")
    with pytest.raises(ValueError):
        write_json(tmp_path / "a", {"x": float("nan")})
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(RunError, match="not JSON"):
        read_json(tmp_path / "b.json")


def test_metrics_of_an_interrupted_stage_are_forgotten(tmp_path):
    log = Metrics(tmp_path)
    log.write("reward", 1, {"loss": 0.5})
    log.write("coarse", 1, {"reward": -1.0})
    log.put_back("coarse", [])
    log.write("coarse", 1, {"reward": -2.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"stage": "reward", "step": 1, "loss": 0.5},
        {"stage": "coarse", "step": 1, "reward": -2.0},
    ]


@pytest.fixture
def run(tmp_path):
    """A run directory in which the reward and the coarse stage are published."""
    run = tmp_path / "run"
    save_config(run, load_config({}))
    for stage in ("reward", "coarse"):
        write_json(run / stage / "metrics.json", dict.fromkeys(REQUIRED_METRICS[stage], 0.5))
    return run


def test_a_run_goes_on_with_the_settings_it_was_made_with(run):
    check_run(run, load_config({}, ["fine.ratio=0.5", "evaluation.prompts=9", "run.dir=elsewhere"]))
    check_stages(run, ("fine",))


@pytest.mark.parametrize("override", ["lora.r=4", "coarse.lr=1e-3", "coarse.length.max=999", "run.seed=7"])
def test_a_setting_that_contradicts_a_published_stage_is_refused(run, override):
    with pytest.raises(RunError, match=override.split("=")[0]):
        check_run(run, load_config({}, [override]))


def test_a_later_stage_does_not_outlive_the_one_it_was_made_from(run):
    (run / "reward" / "metrics.json").unlink()
    with pytest.raises(RunError, match="coarse stage but not the reward stage"):
        check_run(run, load_config({}))


def test_a_stages_lines_are_put_back_at_once_and_others_stay(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.put_back("coarse", [])
    assert not metrics.path.exists()
    metrics.write("reward", 1, {"loss": 0.5})
    for step in (1, 2, 3):
        metrics.write("coarse", step, {"reward": step / 2})
    with metrics.path.open("a") as file:
        file.write('{"stage": "coa')  # a kill
    metrics.put_back("coarse", [{"reward": 0.5}, {"reward": 1.0}])
    rows = [json.loads(line) for line in metrics.path.read_text().splitlines()]
    assert rows == [
        {"stage": "reward", "step": 1, "loss": 0.5},
        {"stage": "coarse", "step": 1, "reward": 0.5},
        {"stage": "coarse", "step": 2, "reward": 1.0},
    ]
    before = metrics.path.stat()
    metrics.put_back("coarse", [{"reward": 0.5}, {"reward": 1.0}])
    assert metrics.path.stat().st_ino == before.st_ino  # who follows it has nothing to read again
