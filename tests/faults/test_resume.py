"""Stopped and started again, a stage ends as one that was never stopped: the same bytes, the same figures."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parents[2] / "configs" / "toy.yaml"
SMALL = [
    "reward.max_pairs=96",
    "reward.epochs=1",
    "coarse.updates=8",
    "coarse.critic_warmup=2",
    "coarse.rollouts=8",
    "coarse.sample_every=2",
    "coarse.length.start=8",
    "run.checkpoint_every=2",
]
TIMES = ("seconds", "sampling_seconds", "tokens_per_s", "peak_memory_mib")


def command(run, *more):
    return [sys.executable, "-m", "lite_c2f", "train", str(CONFIG), *SMALL, *more, "--run-dir", str(run)]


def finish(run, *more):
    done = subprocess.run(command(run, *more), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def figures(run):
    """Everything in metrics.jsonl but the clock and the memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def published(run):
    """The bytes of what a stage published."""
    files = [
        *run.glob("*/adapter/*.safetensors"),
        *run.glob("coarse/critic/*.safetensors"),
        run / "coarse/samples.jsonl",
    ]
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(files)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, toy_models):
    """Reward and coarse stage without an interruption."""
    run = tmp_path_factory.mktemp("whole") / "run"
    for stage in ("reward", "coarse"):
        finish(run, "--stage", stage)
    assert not (run / "coarse" / "checkpoints").exists()
    return run


def same(run, whole):
    assert published(run).keys() == published(whole).keys()
    assert [name for name, content in published(run).items() if content != published(whole)[name]] == []
    assert figures(run) == figures(whole)


def stopped(run, how, after, *more):
    """Start a stage, send a signal when metrics.jsonl has a line of update `after`, and wait for the end."""
    process = subprocess.Popen(command(run, "--stage", "coarse", *more), stderr=subprocess.PIPE, text=True)
    file = run / "metrics.jsonl"
    while process.poll() is None:
        if file.is_file() and f'"stage": "coarse", "step": {after},' in file.read_text():
            break
        time.sleep(0.01)
    process.send_signal(how)
    _, errors = process.communicate()
    return process.returncode, errors


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_update_and_saves_it(tmp_path, whole, how):
    run = tmp_path / "run"
    finish(run, "--stage", "reward")
    code, errors = stopped(run, how, 3)
    assert code == 130 and "finishing this step" in errors and "same command" in errors
    steps = sorted(folder.name for folder in (run / "coarse" / "checkpoints").iterdir())
    assert steps[-1] in ("step-000003", "step-000004", "step-000005")
    errors = finish(run, "--stage", "coarse")
    assert f"going on after update {int(steps[-1][-6:])}" in errors
    same(run, whole)


def test_kills_at_random_moments(tmp_path, whole):
    """Ten times kill -9 somewhere in the coarse stage: each time it goes on, and in the end nothing differs."""
    run, chance, killed = tmp_path / "run", random.Random(0), 0
    finish(run, "--stage", "reward")
    for _ in range(10):
        if (run / "coarse" / "metrics.json").is_file():
            break
        before = max((int(path.name[-6:]) for path in run.glob("coarse/checkpoints/step-??????")), default=0)
        code, _ = stopped(run, signal.SIGKILL, before + chance.randint(1, 3))
        killed += code == -signal.SIGKILL
    assert killed >= 3
    finish(run, "--stage", "coarse")
    same(run, whole)


def test_a_damaged_checkpoint_costs_updates_not_the_run(tmp_path, whole):
    run = tmp_path / "run"
    finish(run, "--stage", "reward")
    stopped(run, signal.SIGKILL, 7)
    newest = max((run / "coarse" / "checkpoints").iterdir())
    content = bytearray((newest / "tensors.safetensors").read_bytes())
    content[-7] ^= 1
    (newest / "tensors.safetensors").write_bytes(content)
    errors = finish(run, "--stage", "coarse")
    assert "is damaged" in errors and "going on after update" in errors
    same(run, whole)


def test_other_settings_are_refused_with_the_difference(tmp_path, whole):
    run = tmp_path / "run"
    finish(run, "--stage", "reward")
    stopped(run, signal.SIGINT, 3)
    done = subprocess.run(command(run, "--stage", "coarse", "coarse.lr=0.5"), capture_output=True, text=True)
    assert done.returncode == 2 and "coarse.lr=" in done.stderr and "now 0.5" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error:")
