"""Two processes of a launcher give what one gives, resume, and end together."""

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from harness import CONFIG, SMALL, figures, finish, leftovers, same, train
from safetensors.torch import load_file

from lite_c2f.pipeline import train as training

pytestmark = pytest.mark.slow

OF_A_PROCESS = {"sampling_batch", "micro_batch"}


def launch(run, *more):
    """`train` in two processes, on CPUs with gloo; torchrun is what `accelerate launch` uses too."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "-m", "lite_c2f", "train", str(CONFIG), *SMALL, *more, "--run-dir", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def done(process):
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return errors


def member(rank, port):
    """In a new process: be one of two that a launcher has started, with a thread of its own; the second is late."""
    torch.set_num_threads(1)
    if rank == 1:
        prepare = training.prepare
        training.prepare = lambda *given, **named: (time.sleep(2), prepare(*given, **named))[1]
    size, where = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1", **size, **where})


def forked(run, *more):
    """`train` in two processes as `launch` starts them, without a launcher and its imports."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    members = [functools.partial(member, rank, port) for rank in range(2)]
    logs = [run.parent / f"{run.name}-{rank}.txt" for rank in range(2)]
    return [train(run, *more, patch=patch, log=log) for patch, log in zip(members, logs, strict=True)]


def finished(commands):
    for command in commands:
        assert command.wait() == 0, command.said()


def with_reward_model(source, run):
    """A run that has the reward model of another, and nothing after it."""
    run.mkdir(parents=True)
    shutil.copytree(source / "reward", run / "reward")
    for name in ("config.yaml", "run.json"):
        shutil.copy(source / name, run / name)
    return run


@pytest.fixture(scope="module")
def two(tmp_path_factory, toy_models):
    """A whole run by two processes, without an interruption."""
    run = tmp_path_factory.mktemp("two") / "run"
    done(launch(run))
    assert json.loads((run / "run.json").read_text())["processes"] == 2
    assert (run / "evaluation" / "actors.json").is_file() and leftovers(run) == []
    return run


def test_two_processes_give_the_reward_model_of_one(two, tmp_path):
    """Six steps apart, so that rounding has had time to grow."""
    finish(tmp_path / "run", "--stage", "reward")
    left, right = (load_file(run / "reward/adapter/adapter_model.safetensors") for run in (tmp_path / "run", two))
    assert max(float((left[name] - right[name]).abs().max()) for name in left) < 1e-4


def test_two_processes_give_the_updates_of_one(two, tmp_path):
    """Three updates of critic and policy, two epochs of two minibatches each: adapters within 1e-5."""
    short = ("--stage", "coarse", "coarse.updates=3", "coarse.critic_warmup=1")
    runs = [with_reward_model(two, tmp_path / name) for name in ("one", "two")]
    finish(runs[0], *short)
    finished(forked(runs[1], *short))
    for part in ("adapter/adapter_model", "critic/adapter_model", "critic/head"):
        left, right = (load_file(run / "coarse" / f"{part}.safetensors") for run in runs)
        assert left.keys() == right.keys()
        assert max(float((left[name] - right[name]).abs().max()) for name in left) < 1e-5, part
    for left, right in zip(*map(figures, runs), strict=True):
        for name in left.keys() - OF_A_PROCESS - {"stage"}:
            assert right[name] == pytest.approx(left[name], rel=1e-4, abs=1e-6), (left["step"], name)


FUNCTION = """
from pathlib import Path

def letters(inputs, log, end=99):
    with Path(log).open("a") as file:
        file.write(f"{len(inputs.responses)}\\n")
    if len(Path(log).read_text().split()) == end:
        raise ValueError("no more")
    return [float(len(text)) for text in inputs.responses]
"""


def with_function(tmp_path, name, end=99):
    """Settings of a run that learns from a function alone: two updates, an evaluation before and after them."""
    (tmp_path / "mine.py").write_text(FUNCTION)
    arguments = f"{{log: '{tmp_path / name}.log', end: {end}}}"
    source = f"coarse.rewards=[{{function: '{tmp_path / 'mine.py'}:letters', arguments: {arguments}}}]"
    return ("--stage", "coarse", source, "data.prompts=[toy]", "coarse.updates=2", "coarse.critic_warmup=1",
            "coarse.evaluate_every=2", "coarse.evaluate_prompts=5", "coarse.sample_every=9",
            "coarse.length={mode: fixed, start: 8}")  # fmt: skip


def test_two_processes_give_the_rewards_of_one(toy_models, tmp_path):
    """Each response is scored once: 5 held-out ones, 8 of an update, 4 samples, 8 of an update, 5, 4 samples."""
    runs = [tmp_path / "one", tmp_path / "two"]
    finish(runs[0], *with_function(tmp_path, "one"))
    finished(forked(runs[1], *with_function(tmp_path, "two")))
    for run in runs:
        assert sorted((tmp_path / f"{run.name}.log").read_text().split()) == sorted("584854"), run
    for left, right in zip(*map(figures, runs), strict=True):
        for name in left.keys() - OF_A_PROCESS - {"stage", "function_seconds"}:
            assert right[name] == pytest.approx(left[name], rel=1e-4, abs=1e-6), (left["stage"], left["step"], name)
    left, right = (json.loads((run / "coarse" / "metrics.json").read_text()) for run in runs)
    assert left["mix"]["stats"]["letters"] == pytest.approx(right["mix"]["stats"]["letters"])


def test_a_function_that_raises_ends_both_with_one_line(toy_models, tmp_path):
    """In the second update; the first is saved. The corrected file goes on where --force says so."""
    began, settings = time.monotonic(), with_function(tmp_path, "run", end=4)
    commands = forked(tmp_path / "run", *settings)
    assert [command.wait() for command in commands] == [2, 2]
    first, other = (command.said() for command in commands)
    assert first.count("error: ") == 1 and "reward 'letters' (" in first and "raised ValueError: no more" in first
    assert "error" not in other, other
    assert (tmp_path / "run" / "coarse" / "checkpoints" / "step-000001").is_dir()
    assert time.monotonic() - began < 300
    (tmp_path / "mine.py").write_text(FUNCTION.replace("raise ValueError", "ValueError"))
    alone = forked(tmp_path / "run", *settings)
    assert [command.wait() for command in alone] == [2, 2] and "a corrected one with --force" in alone[0].said()
    finished(forked(tmp_path / "run", *settings, "--force"))
    assert [line["step"] for line in figures(tmp_path / "run") if line["stage"] == "coarse"] == [1, 2]


def test_killed_in_both_stages_two_processes_go_on_to_the_same_end(two, tmp_path):
    run = tmp_path / "run"
    for stage, step in (("reward", 3), ("coarse", 5)):
        commands = forked(run)
        file, mark = run / "metrics.jsonl", f'"stage": "{stage}", "step": {step},'
        commands[0].until(lambda file=file, mark=mark: file.is_file() and mark in file.read_text())
        for command in commands:
            command.send(signal.SIGKILL)
        assert -signal.SIGKILL in [command.wait() for command in commands]
    alone = train(run)
    assert alone.wait() == 2 and "made with processes=2, now 1" in alone.said(), alone.said()
    finished(forked(run))
    same(run, two)


def test_ctrl_c_saves_once_and_ends_all(two, tmp_path):
    run = with_reward_model(two, tmp_path / "run")
    process = launch(run, "--stage", "coarse")
    file = run / "metrics.jsonl"
    while process.poll() is None and not (file.is_file() and '"step": 3,' in file.read_text()):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=900)
    assert process.returncode != 0 and errors.count("interrupted; what was done is saved") == 1, errors
    newest = max(path.name for path in (run / "coarse" / "checkpoints").iterdir())
    assert newest == f"step-{[line['step'] for line in figures(run) if line['stage'] == 'coarse'][-1]:06d}"


def test_bad_input_is_told_once(tmp_path):
    process = launch(tmp_path / "run", "coarse.rollouts=7", "coarse.minibatches=1")
    _, errors = process.communicate(timeout=900)
    assert process.returncode != 0 and not (tmp_path / "run").exists()
    ours = [line for line in errors.splitlines() if "error: " in line and "elastic" not in line]
    assert ours[0].removeprefix("process 1: ").startswith("error: ")
    assert sum("coarse.rollouts / coarse.minibatches is 7 with 2 processes" in line for line in ours) == 1
