"""PPO benchmark: time and peak memory of an update with its rollout, against PPOTrainer of TRL 1.12.0 (its last).

Equal on both sides: the model (hidden 256, 4 layers, made here, ending by itself), LoRA r=16 on policy, critic and
reward model, prompts of 32 tokens, responses of at most 128, 64 of them per update, 2 epochs of one optimiser step in
micro-batches of 16, float32 adapters, no checkpointing. TRL is installed into a folder of its own. Each side runs in
processes of its own, in turn: time is the median update, memory the peak resident set of the process. Both draw their
own lengths, with other seeds in each repeat: `time_ratio` is per response token, `update_ratio` per update.
`time_ratio` is measured at vocabulary 2048 with all 64 responses sampled at once on both sides (fastest for TRL),
`rss_ratio` at vocabulary 32000 with 16 at a time (least memory for TRL); both figures of both are in `runs`. Prints one
JSON line last.

    python benchmarks/ppo_step.py [--quantization nf4] [--repeats 3] [--updates 3] [--trl FOLDER] [--out FILE]
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
warnings.filterwarnings("ignore")

TRL = "1.12.0"
BATCH, PROMPT, CAP, EPOCHS, MICRO, RANK = 64, 32, 128, 2, 16, 16
SETTINGS = [
    f"coarse.rollouts={BATCH}",
    f"coarse.epochs={EPOCHS}",
    f"coarse.micro_batch={MICRO}",
    "coarse.minibatches=1",
    f"data.max_prompt_tokens={PROMPT}",
    f"coarse.length.max={CAP}",
    f"lora.r={RANK}",
]


def prompts_of(vocabulary: int, count: int) -> list[list[int]]:
    import torch

    return torch.randint(3, vocabulary, (count, PROMPT), generator=torch.Generator().manual_seed(0)).tolist()


def ours(folder: str, vocabulary: int, quantization: str, updates: int, at_once: int, seed: int = 0) -> dict:
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
    from lite_c2f.reward.score import Normalizer

    config = load_config({}, [*SETTINGS, f"model.quantization={quantization}", f"coarse.sampling_batch={at_once}"])
    settings = config.coarse
    torch.manual_seed(0)
    roles = Roles(load_model(folder, config), config.lora, ("policy", "critic", "reward"))
    for name in ("critic", "reward"):
        roles.add_head(name, ScalarHead.of(torch.randn(1, 256) * 0.02))
    optimizers = {
        name: torch.optim.AdamW(roles.trainable(name), lr=1e-5, weight_decay=0.0) for name in ("policy", "critic")
    }
    shuffler, batches = torch.Generator().manual_seed(0), RolloutBatches.of(settings)
    context = RolloutContext(roles, settings, ResponseEnds(EOS, PAD), Normalizer(0.0, 1.0), batches)
    prompts = prompts_of(vocabulary, BATCH * (updates + 1))
    seconds, lengths, draw = [], [], 1000 * seed
    for step in range(updates + 1):
        began = time.perf_counter()
        chosen = prompts[BATCH * step : BATCH * (step + 1)]
        rollout = collect(context, RolloutRequest(chosen, CAP, draw + step))
        rewards = token_rewards(rollout.scores, rollout.logprobs, rollout.reference, rollout.mask, 0.05)
        advantages = gae(rewards, rollout.values, rollout.mask, 1.0, 0.95)
        update(roles, optimizers, rollout, advantages, settings, shuffler, train_policy=True, batches=batches)
        seconds.append(time.perf_counter() - began)
        lengths.append(statistics.fmean(map(len, rollout.responses.tokens)))
    return {"seconds": seconds[1:], "mean_tokens": statistics.fmean(lengths[1:])}


def theirs(folder: str, vocabulary: int, quantization: str, updates: int, at_once: int, seed: int = 0) -> dict:
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
    config = load_config({}, [*SETTINGS, f"model.quantization={quantization}"])
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
                per_device_train_batch_size=MICRO,
                gradient_accumulation_steps=BATCH // MICRO,
                num_mini_batches=1,
                num_ppo_epochs=EPOCHS,
                total_episodes=BATCH * (updates + 1),
                local_rollout_forward_batch_size=at_once,
                response_length=CAP,
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
            train_dataset=Dataset.from_dict({"input_ids": prompts_of(vocabulary, BATCH * (updates + 1))}),
            eval_dataset=Dataset.from_dict({"input_ids": prompts_of(vocabulary, BATCH)}),
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


def child(
    side: str, folder: Path, options: argparse.Namespace, vocabulary: int, at_once: int, trl: Path, seed: int
) -> dict:
    """One side in a process of its own; with its peak resident set."""
    paths = [str(trl)] if side == "theirs" else []
    paths += [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    arguments = (side, folder, vocabulary, options.quantization, options.updates, at_once, seed)
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps([str(argument) for argument in arguments])],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def run_child(arguments: str) -> None:
    import resource

    side, folder, vocabulary, quantization, updates, at_once, seed = json.loads(arguments)
    work = {"ours": ours, "theirs": theirs}[side]
    result = work(folder, int(vocabulary), quantization, int(updates), int(at_once), int(seed))
    scale = 2**20 if sys.platform == "darwin" else 2**10
    result["rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    print(json.dumps(result))


def compare_sides(options: argparse.Namespace, vocabulary: int, at_once: int, trl: Path) -> dict:
    """Both sides in turn, `repeats` times."""
    from models import small_mistral

    results: dict[str, list[dict]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = small_mistral(Path(scratch), vocabulary)
        for seed in range(options.repeats):
            for side in results:
                results[side].append(child(side, folder, options, vocabulary, at_once, trl, seed))
    seconds = {
        side: statistics.median(value for run in runs for value in run["seconds"]) for side, runs in results.items()
    }
    memory = {side: max(run["rss_mib"] for run in runs) for side, runs in results.items()}
    tokens = {side: statistics.fmean(run["mean_tokens"] for run in runs) for side, runs in results.items()}
    plain = seconds["ours"] / seconds["theirs"]
    return {
        "vocabulary": vocabulary,
        "sampled_at_once": at_once,
        "time_ratio": round(plain * tokens["theirs"] / tokens["ours"], 3),
        "update_ratio": round(plain, 3),
        "rss_ratio": round(memory["ours"] / memory["theirs"], 3),
        "seconds": {side: round(value, 2) for side, value in seconds.items()},
        "rss_mib": {side: round(value) for side, value in memory.items()},
        "mean_tokens": {side: round(value, 1) for side, value in tokens.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quantization", choices=("nf4", "none"), default="nf4")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--trl", type=Path, help=f"folder with TRL {TRL} (default: installed into a temporary one)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return run_child(options.child)
    from models import machine, report

    with tempfile.TemporaryDirectory() as scratch:
        trl = install(options.trl or Path(scratch))
        small, large = compare_sides(options, 2048, BATCH, trl), compare_sides(options, 32000, MICRO, trl)
    result = {
        "benchmark": "ppo_step",
        "unit": f"this project / TRL {TRL}, one PPO update with its rollout",
        "time_ratio": small["time_ratio"],
        "rss_ratio": large["rss_ratio"],
        "runs": [small, large],
        "batch": BATCH,
        "prompt": PROMPT,
        "cap": CAP,
        "epochs": EPOCHS,
        "quantization": options.quantization,
        "trl": TRL,
        "datasets": version("datasets"),
        **machine(),
    }
    return report(result, options.out)


if __name__ == "__main__":
    main()
