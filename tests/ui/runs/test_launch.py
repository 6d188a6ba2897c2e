"""Names and configurations that are refused; a real training that is started, followed, stopped and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lite_c2f.errors import ConfigError, RunError
from lite_c2f.storage.lock import locked, owner
from lite_c2f.ui.runs import follow, launch, names

TOY = Path(__file__).parents[3] / "configs" / "toy.yaml"
SMALL = """
model: {base: toy, instruct: toy}
data: {preferences: [toy], max_prompt_tokens: 128, max_answer_tokens: 128, truncated: 0}
lora: {r: 8, alpha: 16}
reward: {batch: 32, micro_batch: 32, max_pairs: 64}
coarse:
  {updates: 500, sample_every: 1000, rollouts: 8, sampling_batch: 8, micro_batch: 8, critic_warmup: 1,
   length: {start: 8, max: 16}}
fine: {ratios: [0.5, 1.0], prompts: 8, max_tokens: 16}
evaluation: {prompts: 8, max_tokens: 16, batch: 8}
run: {checkpoint_every: 1000}
"""
BAD_NAMES = ("", ".", "..", "../x", "a/b", "/etc", "a\\b", "A", "-x", ".x", "x\n", "a b", "x" * 65, "ü", "con", None, 3)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_new_run_needs_a_slug(name, tmp_path):
    with pytest.raises(RunError, match="run name"):
        launch.start(tmp_path, name, {"missing": tmp_path / "missing.yaml"}, "missing")  # would end at once
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "toy-1", "0.x_y-z", "x" * 64])
def test_slugs(name, tmp_path):
    assert launch.new_run(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("config", ["", "toy.yaml", str(TOY), "../configs/toy.yaml", None, ["toy"]])
def test_a_configuration_is_one_of_the_list(config, tmp_path):
    with pytest.raises(RunError, match="one of the list"):
        launch.start(tmp_path, "new", {"toy": TOY}, config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../outside", "..", "", "missing", None, ".started"])
def test_a_run_is_one_of_the_list(name, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.yaml").write_text("{}")
    (tmp_path / "runs" / "there").mkdir(parents=True)
    (tmp_path / "runs" / "there" / "config.yaml").write_text("{}")
    for act in (launch.known_run, launch.resume):
        with pytest.raises(RunError, match="no run"):
            act(tmp_path / "runs", name)
    assert launch.known_run(tmp_path / "runs", "there") == tmp_path / "runs" / "there"


def test_the_command_is_what_one_types():
    run = Path("runs/x")
    assert launch.command(TOY, run) == ["lite-c2f", "train", str(TOY), "--run-dir", "runs/x"]
    assert launch.command(TOY, run, 7, 20)[3:] == ["run.seed=7", "coarse.updates=20", "--run-dir", "runs/x"]
    expected = ["lite-c2f", "train", "runs/x/config.yaml", "--run-dir", "runs/x", "--resume"]
    assert launch.resume_command(run) == expected


@pytest.mark.parametrize("value", [1.5, float("nan"), float("inf"), "1 --force", True, [1]])
def test_numbers_are_whole(value):
    with pytest.raises(RunError, match="whole number"):
        launch.command(TOY, Path("runs/x"), updates=value)


def test_settings_that_training_would_refuse_start_nothing(tmp_path):
    """Two updates of the policy, the first two of which train the critic alone."""
    with pytest.raises(ConfigError, match=r"coarse\.updates=2 is not above coarse\.critic_warmup=2"):
        launch.start(tmp_path, "new", {"toy": TOY}, "toy", updates=2)
    assert list(tmp_path.iterdir()) == []
    assert launch.new_command(tmp_path, "new", {"toy": TOY}, "toy", updates=3)[3] == "coarse.updates=3"


def test_a_run_that_exists_or_is_in_use_is_not_started(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.yaml").write_text("{}")
    with pytest.raises(RunError, match="there is a run 'there'"):
        launch.start(tmp_path, "there", {"toy": TOY}, "toy")
    with locked(tmp_path / "busy"), pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
        launch.start(tmp_path, "busy", {"toy": TOY}, "toy")


def test_only_training_is_stopped(tmp_path):
    with pytest.raises(RunError, match="no process trains"):
        launch.stop(tmp_path)
    with locked(tmp_path), pytest.raises(RunError, match="is no training"):
        launch.stop(tmp_path)  # this very process
    (tmp_path / ".lock").write_text("process 1\n")  # nobody holds it
    with pytest.raises(RunError, match="no process trains"):
        launch.stop(tmp_path)


def until(happened, seconds=900.0):
    """Wait for it; what it returned."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := happened():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def seen_by_another(run):
    """The state that a new process reads, as a restarted server does."""
    code = "import sys, json; from pathlib import Path; from lite_c2f.ui.runs import follow\n"
    code += (
        "s = follow(Path(sys.argv[1])); print(json.dumps([s.state, s.stages[1].done, s.started and s.started.process]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_start_that_fails_says_why(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("data: {preferences: [nowhere.jsonl]}\n")  # settings that are right, and data that is not there
    launch.start(tmp_path / "runs", "failing", {"bad": bad}, "bad")
    state = until(lambda: (found := follow(tmp_path / "runs" / "failing")).state == "failed" and found)
    assert state.message.startswith("error: ") and "no such file or folder 'nowhere.jsonl'" in state.message
    assert names(tmp_path / "runs") == ["failing"]
    assert not (tmp_path / "runs" / "failing").exists()


@pytest.mark.slow
def test_a_run_is_started_followed_stopped_and_resumed(tmp_path, toy_models):
    config, runs = tmp_path / "small.yaml", tmp_path / "runs"
    config.write_text(SMALL)
    run = runs / "small"
    number = launch.start(runs, "small", {"small": config}, "small", seed=1)
    try:
        assert follow(run).state == "starting"
        with pytest.raises(RunError, match="in use by a process that was just started"):
            launch.start(runs, "small", {"small": config}, "small")
        state = until(lambda: (now := follow(run)).stages[1].seconds_left and now.stages[1].done >= 3 and now)
        assert (state.state, state.working) == ("running", f"process {number}")
        assert [stage.state for stage in state.stages] == ["done", "running", "waiting", "waiting"]
        assert state.stages[1].total == 500 and state.stages[1].seconds_left > 0
        assert len(state.series["coarse"]["reward"]) >= 3 and state.series["reward"]["loss"]
        assert {sample.step for sample in state.samples} == {1}
        assert seen_by_another(run)[0] == "running" and seen_by_another(run)[2] == number
        assert psutil.Process(number).cmdline()[1:4] == ["-m", "lite_c2f", "train"]
        assert os.getsid(number) == number  # a terminal that closes does not take it along

        assert launch.stop(run) == number
        with pytest.raises(RunError, match="is stopping already"):
            launch.stop(run)  # a second signal would lose the update under way
        state = until(lambda: (found := follow(run)).working is None and found)
        assert (state.state, state.stages[1].state) == ("interrupted", "interrupted")
        stopped_at = state.stages[1].done
        assert seen_by_another(run) == ["interrupted", stopped_at, number]

        launch.resume(runs, "small")
        state = until(lambda: (found := follow(run)).stages[1].done > stopped_at and found)
        assert state.state == "running" and owner(run).process != number
        steps = [step for step, _ in state.series["coarse"]["reward"]]
        assert steps == list(range(1, len(steps) + 1))  # none lost, none twice
        launch.stop(run)
        assert until(lambda: follow(run).working is None)
    finally:
        for process in {number, getattr(follow(run).started, "process", number)}:
            if psutil.pid_exists(process) and launch.is_training(psutil.Process(process).cmdline()):
                os.kill(process, signal.SIGKILL)
