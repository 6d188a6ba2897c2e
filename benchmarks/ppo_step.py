"""PPO benchmark: time and peak memory of an update with its rollout, against PPOTrainer of TRL 1.12.0 (its last).

Equal on both sides: the model (made here, random weights, ending by itself), LoRA r=16 on policy, critic and reward
model, prompts, the most tokens of a response, optimiser steps and micro-batches, float32 adapters, no checkpointing.
TRL is installed into a folder of its own. Each side runs in processes of its own, in turn: time is the median update,
memory the peak resident set of the process. Both draw their own lengths, with other seeds in each repeat: `time_ratio`
is per response token, `update_ratio` per update.

`--shape toy` (hidden 256, 4 layers; prompts of 32 tokens, 64 responses of at most 128, 2 epochs): `time_ratio` is
measured at vocabulary 2048 with all responses sampled at once on both sides (fastest for TRL), `rss_ratio` at
vocabulary 32000 with 16 at a time (least memory for TRL); both figures of both are in `runs`.
`--shape smollm2` (hidden 576, 30 layers, vocabulary 49152; prompts of 48, 16 responses of at most 48, 2 epochs): one
run. `--minibatches` are the optimiser steps of an epoch. `--before FOLDER`, a checkout of an earlier version, is
measured as a third side: `before_ratio` is ours over that. Prints one JSON line last.

    python benchmarks/ppo_step.py [--shape smollm2] [--minibatches 4] [--before FOLDER] [--trl FOLDER] [--out FILE]
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
warnings.filterwarnings("ignore")

TRL = "1.12.0"
EPOCHS, RANK = 2, 16


class Work(NamedTuple):
    """What one update does."""

    vocabulary: int
    batch: int
    prompt: int
    cap: int
    micro: int
    at_once: int  # responses sampled together
    minibatches: int
    quantization: str
    updates: int

    @property
    def settings(self) -> list[str]:
        return [
            f"model.quantization={self.quantization}",
            f"coarse.rollouts={self.batch}",
            f"coarse.epochs={EPOCHS}",
            f"coarse.micro_batch={self.micro}",
            f"coarse.minibatches={self.minibatches}",
            f"coarse.sampling_batch={self.at_once}",
            f"data.max_prompt_tokens={self.prompt}",
            f"coarse.length.start={self.cap}",
            f"coarse.length.max={self.cap}",
            f"lora.r={RANK}",
        ]

    def prompts(self, updates: int) -> list[list[int]]:
        import torch

        draw, shape = torch.Generator().manual_seed(0), (self.batch * updates, self.prompt)
        return torch.randint(3, self.vocabulary, shape, generator=draw).tolist()


def works(shape: str, minibatches: int, quantization: str, updates: int) -> list[Work]:
    """What is measured at a shape."""
    last = (minibatches, quantization, updates)
    if shape == "toy":
        micro = min(16, 64 // minibatches)
        return [Work(2048, 64, 32, 128, micro, 64, *last), Work(32000, 64, 32, 128, micro, 16, *last)]
    return [Work(49152, 16, 48, 48, min(8, 16 // minibatches), 16, *last)]


def ours(folder: str, work: Work, seed: int = 0) -> dict:
    """Seconds of each update through this project's own stages, and the mean response length."""
    import torch
    from models import EOS, PAD

    from lite_c2f.backbone.heads import ScalarHead
    from lite_c2f.backbone.load import load_model
    from lite_c2f.backbone.roles import Roles
    from lite_c2f.coarse.advantage import gae, token_rewards
    from lite_c2f.coarse.rollout import ResponseEnds, RolloutBatches, RolloutContext, RolloutRequest, collect
    from lite_c2f.coarse.update import update
    from lite_c2f.config.loading import load_config
    from lite_c2f.reward.files import Normalizer

    config = load_config({}, work.settings)
    settings, hidden = config.coarse, json.loads((Path(folder) / "config.json").read_text())["hidden_size"]
    torch.manual_seed(0)
    roles = Roles(load_model(folder, config), config.lora, ("policy", "critic", "reward"))
    for name in ("critic", "reward"):
        roles.add_head(name, ScalarHead.of(torch.randn(1, hidden) * 0.02))
    optimizers = {
        name: torch.optim.AdamW(roles.trainable(name), lr=1e-5, weight_decay=0.0) for name in ("policy", "critic")
    }
    shuffler, batches = torch.Generator().manual_seed(0), RolloutBatches.of(settings)
    context = RolloutContext(roles, settings, ResponseEnds(EOS, PAD), Normalizer(0.0, 1.0), batches)
    prompts = work.prompts(work.updates + 1)
    seconds, lengths, draw = [], [], 1000 * seed
    parts = timed_parts(roles)
    for step in range(work.updates + 1):
        if step == 1:  # the first warms up
            parts.clear()
        began = time.perf_counter()
        chosen = prompts[work.batch * step : work.batch * (step + 1)]
        rollout = collect(context, RolloutRequest(chosen, work.cap, draw + step))
        rewards = token_rewards(rollout.scores, rollout.logprobs, rollout.reference, rollout.mask, 0.05)
        advantages = gae(rewards, rollout.values, rollout.mask, 1.0, 0.95)
        update(roles, optimizers, rollout, advantages, settings, shuffler, train_policy=True, batches=batches)
        seconds.append(time.perf_counter() - began)
        lengths.append(statistics.fmean(map(len, rollout.responses.tokens)))
    parts["rest"] = sum(seconds[1:]) - sum(parts.values())
    return {
        "seconds": seconds[1:],
        "mean_tokens": statistics.fmean(lengths[1:]),
        "parts": {name: round(value / work.updates, 2) for name, value in parts.items()},
    }


def timed_parts(roles) -> dict[str, float]:
    """Seconds spent inside each role's contexts from here on: sampling, scoring and updates of each role."""
    parts: dict[str, float] = defaultdict(float)
    inside: list[str] = []

    def timed(enter, name_of):
        @contextlib.contextmanager
        def context(role, **options):
            began = time.perf_counter()
            inside.append(name_of(role, options))
            try:
                with enter(role, **options):
                    yield
            finally:
                name = inside.pop()
                if not inside:  # sampling enters its role as well
                    parts[name] += time.perf_counter() - began

        return context

    roles.sampling = timed(roles.sampling, lambda role, options: "sampling")
    roles.use = timed(roles.use, lambda role, options: f"{'update' if options.get('train') else 'scoring'}: {role}")
    return parts


def theirs(folder: str, work: Work, seed: int = 0) -> dict:
    """The same through TRL's PPOTrainer; its models are loaded the same way."""
    import torch
    from datasets import Dataset
    from models import EOS, PAD
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import __version__
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    from lite_c2f.backbone.load import load_model
    from lite_c2f.config.loading import load_config

    assert __version__ == TRL, f"TRL {__version__} was found, {TRL} is compared"
    config = load_config({}, work.settings)
    torch.manual_seed(0)

    def classifier(trains: bool):
        base = load_model(folder, config, auto_class=AutoModelForSequenceClassification, num_labels=1)
        base.config.pad_token_id = PAD
        lora = LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS")
        return get_peft_model(base, lora).requires_grad_(trains) if not trains else get_peft_model(base, lora)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    stamps, lengths = [], []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            stamps.append(time.perf_counter())

    truncate = ppo_trainer.truncate_response

    def counted(stop, pad, responses):
        cut = truncate(stop, pad, responses)
        lengths.append(float((cut != pad).sum(1).float().mean()))
        return cut

    ppo_trainer.truncate_response = counted
    with tempfile.TemporaryDirectory() as scratch:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=scratch,
                seed=seed,
                per_device_train_batch_size=work.micro,
                gradient_accumulation_steps=work.batch // work.micro,  # of the whole batch, in TRL
                num_mini_batches=work.minibatches,
                num_ppo_epochs=EPOCHS,
                total_episodes=work.batch * (work.updates + 1),
                local_rollout_forward_batch_size=work.at_once,
                response_length=work.cap,
                temperature=1.0,
                stop_token="eos",
                learning_rate=1e-5,
                kl_coef=0.05,
                num_sample_generations=0,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            ),
            processing_class=tokenizer,
            model=load_model(folder, config),
            ref_model=None,
            reward_model=classifier(trains=False),
            value_model=classifier(trains=True),
            train_dataset=Dataset.from_dict({"input_ids": work.prompts(work.updates + 1)}),
            eval_dataset=Dataset.from_dict({"input_ids": work.prompts(1)}),
            peft_config=LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[Clock()],
        )
        assert trainer.policy_model.generation_config.eos_token_id == EOS
        trainer.train()
    return {
        "seconds": [after - before for before, after in itertools.pairwise(stamps)],
        "mean_tokens": statistics.fmean(lengths),
    }


def install(folder: Path) -> Path:
    """TRL alone, beside the environment: everything it imports is there already."""
    if not (folder / "trl").is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), f"trl=={TRL}"]
        subprocess.run(command, check=True)
    return folder


def child(side: str, folder: Path, work: Work, seed: int, paths: list[str]) -> dict:
    """One side in a process of its own, with its peak resident set. paths: where it finds libraries, first."""
    paths = [*paths, str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps([side, str(folder), list(work), seed])],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def run_child(arguments: str) -> None:
    import resource

    side, folder, work, seed = json.loads(arguments)
    run = theirs if side == "theirs" else ours
    result = run(folder, Work(*work), seed)
    scale = 2**20 if sys.platform == "darwin" else 2**10
    result["rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    print(json.dumps(result))


def compare_sides(shape: str, work: Work, repeats: int, sides: dict[str, list[str]]) -> dict:
    """All sides in turn, `repeats` times. sides: with the folders each finds its libraries in."""
    from models import small_mistral

    results: dict[str, list[dict]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as scratch:
        folder = small_mistral(Path(scratch), work.vocabulary, shape=shape)
        for seed in range(repeats):
            for side, paths in sides.items():
                found = child(side, folder, work, seed, paths)
                results[side].append(found)
                print(side, seed, [round(value, 2) for value in found["seconds"]], round(found["rss_mib"]), flush=True)
    seconds = {
        side: statistics.median(value for run in runs for value in run["seconds"]) for side, runs in results.items()
    }
    memory = {side: max(run["rss_mib"] for run in runs) for side, runs in results.items()}
    tokens = {side: statistics.fmean(run["mean_tokens"] for run in runs) for side, runs in results.items()}
    ratios = {}
    if "theirs" in sides:
        plain = seconds["ours"] / seconds["theirs"]
        ratios = {
            "time_ratio": round(plain * tokens["theirs"] / tokens["ours"], 3),
            "update_ratio": round(plain, 3),
            "rss_ratio": round(memory["ours"] / memory["theirs"], 3),
        }
    if "before" in sides:
        ratios["before_ratio"] = round(seconds["ours"] / seconds["before"], 3)
        ratios["before_rss_ratio"] = round(memory["ours"] / memory["before"], 3)
    return {
        **ratios,
        "seconds": {side: round(value, 2) for side, value in seconds.items()},
        "rss_mib": {side: round(value) for side, value in memory.items()},
        "mean_tokens": {side: round(value, 1) for side, value in tokens.items()},
        "parts": {side: median_parts(runs) for side, runs in results.items() if "parts" in runs[0]},
        **work._asdict(),
    }


def median_parts(runs: list[dict]) -> dict[str, float]:
    """Seconds per update of each part."""
    return {name: round(statistics.median(run["parts"][name] for run in runs), 2) for name in runs[0]["parts"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=("toy", "smollm2"), default="toy")
    parser.add_argument("--minibatches", type=int, choices=(1, 2, 4), help="of an epoch (default: as shipped, 2 or 4)")
    parser.add_argument("--quantization", choices=("nf4", "none"), default="nf4")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--trl", type=Path, help=f"folder with TRL {TRL} (default: installed into a temporary one)")
    parser.add_argument("--no-trl", action="store_true", help="measure our own side alone")
    parser.add_argument("--before", type=Path, help="checkout of an earlier version, as a third side")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return run_child(options.child)
    from models import machine, report

    minibatches = options.minibatches or {"toy": 2, "smollm2": 4}[options.shape]
    with tempfile.TemporaryDirectory() as scratch:
        sides: dict[str, list[str]] = {"ours": []}
        if not options.no_trl:
            sides["theirs"] = [str(install(options.trl or Path(scratch)))]
        if options.before:
            sides["before"] = [str(options.before.resolve())]
        runs = [
            compare_sides(options.shape, work, options.repeats, sides)
            for work in works(options.shape, minibatches, options.quantization, options.updates)
        ]
    ratios = {name: runs[0][name] for name in ("time_ratio", "rss_ratio", "before_ratio") if name in runs[0]}
    if "rss_ratio" in ratios:
        ratios["rss_ratio"] = runs[-1]["rss_ratio"]
    result = {
        "benchmark": "ppo_step",
        "unit": f"this project / TRL {TRL}, one PPO update with its rollout",
        "shape": options.shape,
        **ratios,
        "runs": runs,
        "epochs": EPOCHS,
        "quantization": options.quantization,
        "trl": TRL,
        "datasets": version("datasets"),
        **machine(),
    }
    return report(result, options.out)


if __name__ == "__main__":
    main()
