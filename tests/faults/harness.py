"""Starts the command line in real processes, and stops them in every way there is.

Processes are forked from a server that has the libraries loaded: a start takes a moment instead of seconds, and is
then a process like any other.
"""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

CONFIG = Path(__file__).parents[2] / "configs" / "toy.yaml"
SMALL = [
    "reward.max_pairs=192",
    "reward.epochs=1",
    "coarse.updates=8",
    "coarse.critic_warmup=2",
    "coarse.rollouts=8",
    "coarse.sample_every=2",
    "coarse.length.start=8",
    "fine.ratios=[0.5,1.0]",
    "fine.prompts=8",
    "evaluation.prompts=16",
    "run.checkpoint_every=2",
]
TIMES = ("seconds", "sampling_seconds", "tokens_per_s", "peak_memory_mib")
PATIENCE = 240.0

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["lite_c2f.cli", "lite_c2f.pipeline", "lite_c2f.terminal"])


def work(arguments, errors, patch):
    """In the new process: the command line, its messages in a file."""
    os.setsid()
    out = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1), os.dup2(out, 2)
    if patch is not None:
        patch()
    from lite_c2f.cli import main

    main(arguments)


class Command:
    """A command that runs. patch: a function of the test module, called first in the new process."""

    def __init__(self, *arguments, patch=None, log):
        self.log = Path(log)
        self.process = server.Process(target=work, args=([str(part) for part in arguments], str(log), patch))
        self.process.start()

    def wait(self):
        """Its exit code; negative for a signal."""
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"still running after {PATIENCE} s: {self.said()}")
        return self.process.exitcode

    def said(self):
        return self.log.read_text() if self.log.is_file() else ""

    def send(self, number):
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def until(self, happened):
        """Wait until something is so, or the command has ended."""
        end = time.monotonic() + PATIENCE
        while self.process.is_alive() and not happened() and time.monotonic() < end:
            time.sleep(0.005)


def train(run, *more, patch=None, log=None):
    """Start `train` on the small toy run. log: where its messages go, beside the run by default."""
    log = log or run.parent / f"{run.name}.txt"
    return Command("train", CONFIG, *SMALL, *more, "--run-dir", run, patch=patch, log=log)


def finish(run, *more, patch=None):
    """`train` to its end; returns what it said."""
    command = train(run, *more, patch=patch)
    assert command.wait() == 0, command.said()
    return command.said()


def stopped(run, how, stage, after, *more):
    """Start, and send a signal when metrics.jsonl has a line of this stage's step; returns exit code and messages."""
    file, mark = run / "metrics.jsonl", f'"stage": "{stage}", "step": {after},'
    command = train(run, *more)
    command.until(lambda: file.is_file() and mark in file.read_text())
    command.send(how)
    return command.wait(), command.said()


def figures(run):
    """Everything in metrics.jsonl but the clock and the memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def published(run):
    """The bytes of what the stages published."""
    kinds = (
        "*/adapter/*.safetensors",
        "coarse/critic/*.safetensors",
        "coarse/samples.jsonl",
        "fine/model/*.safetensors",
    )
    files = [file for kind in kinds for file in run.glob(kind)]
    files += [run / "fine" / "ratios.json", run / "evaluation" / "actors.json", run / "evaluation" / "responses.jsonl"]
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(files) if file.is_file()}


def same(run, whole, stage=None):
    """Both runs published the same bytes and the same figures. stage: of this stage alone."""
    left, right = (
        {name: content for name, content in published(one).items() if stage is None or name.startswith(f"{stage}/")}
        for one in (run, whole)
    )
    assert left.keys() == right.keys() and left
    assert [name for name in left if left[name] != right[name]] == []
    mine, theirs = ([line for line in figures(one) if stage is None or line["stage"] == stage] for one in (run, whole))
    assert mine == theirs


def leftovers(run):
    """What should not be there when all is published."""
    kinds = ("*/checkpoints", "**/.*", "*/trials.jsonl", "evaluation/answers.jsonl")
    return [str(path.relative_to(run)) for kind in kinds for path in run.glob(kind)]


SIGNALS = {"kill": signal.SIGKILL, "Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}
