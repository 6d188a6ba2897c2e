"""Settings against the parent of a run, and the times of an earlier run of the same settings."""

import json

import pytest

pytest.importorskip("gradio")

from lite_c2f.ui import run_html
from lite_c2f.ui.runs import StageState, Started, follow
from lite_c2f.ui.runs.settings import changed_settings, earlier_seconds


def config(file, seed=0, **coarse):
    file.parent.mkdir(parents=True, exist_ok=True)
    values = "".join(f"  {key}: {value}\n" for key, value in coarse.items())
    place = f"run:\n  dir: {file.parent}\n  seed: {seed}\n"
    file.write_text(f"{place}model:\n  base: toy\n  instruct: toy\ncoarse:\n{values}")
    return file


def started(command):
    return Started(1, 0.0, 0.0, command, False, ())


@pytest.fixture
def runs(tmp_path):
    config(tmp_path / "runs" / "first" / "config.yaml", updates=10, kl_coef=0.02)
    config(tmp_path / "runs" / "small-2" / "config.yaml", updates=20, kl_coef=0.02)
    config(tmp_path / "configs" / "small.yaml", updates=20, kl_coef=0.5)
    return tmp_path / "runs"


def test_the_parent_is_the_configuration_of_the_start(runs):
    listed, configs = ["first", "small-2"], {"small": runs.parent / "configs" / "small.yaml"}
    command = f"lite-c2f train {runs / 'first' / 'config.yaml'} coarse.updates=20 --run-dir {runs / 'small-2'}"
    changed = changed_settings(runs / "small-2", started(command), listed, configs)
    assert changed == ("the run first", [("coarse.updates", 10, 20)])
    assert "<tr><th>coarse.updates</th><td>10</td><td>20</td></tr>" in run_html.settings(changed)


def test_without_a_start_the_parent_is_the_configuration_of_the_same_name(runs):
    configs = {"small": runs.parent / "configs" / "small.yaml"}
    expected = ("the configuration small", [("coarse.kl_coef", 0.5, 0.02)])
    for command in ("", "lite-c2f train '", f"lite-c2f train {runs / 'small-2' / 'config.yaml'} --resume"):
        assert changed_settings(runs / "small-2", started(command), ["first", "small-2"], configs) == expected
    assert changed_settings(runs / "first", None, ["first"], configs) is None
    assert "not known" in run_html.settings(None)


def test_a_file_that_is_in_no_list_is_not_opened(runs):
    outside = config(runs.parent / "outside.yaml", updates=1)
    command = f"lite-c2f train {outside} --run-dir {runs / 'first'}"
    assert changed_settings(runs / "first", started(command), ["first", "small-2"], {}) is None


def test_times_of_an_earlier_run_are_of_the_same_settings_and_a_finished_one(runs):
    config(runs / "again" / "config.yaml", seed=1, updates=10, kl_coef=0.02)
    listed = ["again", "small-2", "first"]
    seconds = {"reward": 60, "coarse": 100, "fine": 7, "evaluation": 10}
    for name in ("small-2", "first"):
        (runs / name / "run.json").write_text(json.dumps({"seconds": seconds | {"fine": len(name)}}))
    assert earlier_seconds(runs / "again", listed) == {}  # not finished
    for name in ("small-2", "first"):
        (runs / name / "summary.json").write_text("{}")
    assert earlier_seconds(runs / "again", listed) == {"reward": 60, "coarse": 100, "fine": 5, "comparison": 10}
    config(runs / "again" / "config.yaml", seed=1, updates=11, kl_coef=0.02)
    assert earlier_seconds(runs / "again", listed) == {}


def test_time_left_names_the_stages_ahead(tmp_path):
    stages = (
        StageState("reward", "done", 85, 85, "steps", 60.0, None),
        StageState("coarse", "running", 10, 40, "updates", 30.0, 90.0),
        StageState("fine", "waiting", None, None, "ratios", None, None),
        StageState("comparison", "waiting", None, None, "actors", None, None),
    )
    state = follow(tmp_path / "run")._replace(state="running", stages=stages)
    text = "Coarse Actor, 10 of 40 updates, about 1 min 30 s left in this stage, 1 min 30 s so far; after that: "
    assert f"{text}Fine Actor, Comparison</span>" in run_html.header(state)
    assert "Fine Actor (7 s in an earlier run), Comparison</span>" in run_html.header(state, {"fine": 7.0})
    whole = run_html.header(state, {"fine": 7.0, "comparison": 13.0})  # 90 + 7 + 13 = 110 s
    assert "about 1 min 50 s left in all, if they take as long as in the run before" in whole
    last = state._replace(stages=(*stages[:1], stages[1]._replace(name="comparison")))
    assert "about 1 min 30 s left, 1 min 30 s so far</span>" in run_html.header(last)
