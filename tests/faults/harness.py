"""The small toy run in real processes: started, stopped where it has come to a step, and compared with a whole one."""

import functools
import json
from pathlib import Path

from processes import Command, hold

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
    """Start, and send a signal while the line behind this stage's step `after` is about to be written.

    Returns exit code and messages.
    """
    hand = run.parent / f"{run.name} at {stage} {after}"
    mark = f'"stage": "{stage}", "step": {after},'
    command = train(run, *more, patch=functools.partial(hold, run / "metrics.jsonl", mark, hand))
    command.until_held(hand)
    command.send(how)
    command.let_go(hand)
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
