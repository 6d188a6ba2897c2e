"""Time to reward: PPO with a critic here, against GRPO and RLOO of TRL, on the toy world.

Equal for all: base model (NF4), LoRA, reward model, prompts, responses per step and most tokens of a response, and
the number of generated tokens after which training ends. Each algorithm runs at three learning rates and counts at its
best; all else is as `configs/toy.yaml` or TRL has it by default, at a constant rate. The base ends a response by the
next turn's marker, so TRL generates with that as a stop text. The adapter is put aside as training goes on (that time
is not counted) and answers held-out prompts afterwards, sampled and judged alike. `top` is the highest reward that any
ends at (mean of its last three); reported are CPU seconds and generated tokens until an arm has `share` of the rise
from the base to it, first and to the end, null where it never has. Every run has one thread. Prints one JSON line last.

    python benchmarks/time_to_reward.py [--seed 0] [--tokens 60000] [--lanes 2] [--out FILE]
"""

import argparse
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
warnings.filterwarnings("ignore")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "evidence")]

RATES = {"ppo": (3e-4, 1e-3, 3e-3), "grpo": (1e-3, 3e-3, 1e-2), "rloo": (1e-3, 3e-3, 1e-2)}  # none is best at an end
WORLD, LONGEST, HELD_OUT = "toy", 96, 128
EVERY = 2  # steps between adapters put aside
SHARE = 0.9


def ppo(seed: int, rate: float, tokens: int, folder: Path, rewards: Path) -> list[dict[str, Any]]:
    """Train here; returns the adapters put aside, with the seconds and tokens before them."""
    import shutil

    from safetensors.torch import load_file
    from worlds import config_of, corpus_of, models_of

    from lite_c2f.coarse.train import train_coarse

    overrides = (
        f"coarse.lr={rate}",
        f"coarse.token_budget={tokens}",
        "coarse.sample_every=1000",
        f"run.checkpoint_every={EVERY}",
        "run.keep_checkpoints=1000",
    )
    config = config_of(WORLD, seed, overrides)
    shutil.copytree(rewards / "reward", folder / "reward")
    found: list[dict[str, Any]] = []
    seconds: list[float] = []
    mark = 0.0

    def put_aside(step: int, _: int, line: dict[str, float]) -> None:
        """Read what the update before left: a checkpoint is written after this call."""
        nonlocal mark
        # before the first update the models are loaded, which is not counted: its wall time stands for it
        seconds.append(seconds[-1] + time.process_time() - mark if seconds else line["seconds"])
        for saved in folder.glob("coarse/checkpoints/step-*"):
            number = int(saved.name.removeprefix("step-"))
            if number and number not in {point["step"] for point in found}:
                weights = load_file(saved / "tensors.safetensors")
                adapter = {key.removeprefix("policy."): value for key, value in weights.items() if key[:7] == "policy."}
                found.append({"step": number, "adapter": adapter})
        mark = time.process_time()

    train_coarse(config, models_of(WORLD), corpus_of(WORLD, seed), folder, put_aside)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if line["stage"] == "coarse"]
    last = {"step": len(updates), "adapter": load_file(folder / "coarse" / "adapter" / "adapter_model.safetensors")}
    spent = list(itertools.accumulate(line["tokens"] * config.coarse.rollouts for line in updates))
    return [
        point | {"seconds": seconds[point["step"] - 1], "tokens": spent[point["step"] - 1]} for point in [*found, last]
    ]


def by_trl(name: str, seed: int, rate: float, tokens: int, folder: Path, rewards: Path) -> list[dict[str, Any]]:
    """The same with one of TRL's trainers, rewarded by the same reward model."""
    from arms import judge_of
    from datasets import Dataset
    from peft import get_peft_model_state_dict
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
    from worlds import config_of, corpus_of, models_of

    from lite_c2f.actors.models import prompts_of_base
    from lite_c2f.backbone.load import load_model, load_tokenizer
    from lite_c2f.backbone.roles import lora_config
    from lite_c2f.data.encode import render

    config, models, corpus = config_of(WORLD, seed), models_of(WORLD), corpus_of(WORLD, seed)
    tokenizer, judge = load_tokenizer(models.base), judge_of(config, models, rewards)
    tokenizer.pad_token = tokenizer.eos_token  # what follows a stop text: TRL reads a row up to its first end token
    turns = [prompt.turns for prompt in corpus.train_prompts]
    texts = [render(turn) for turn in turns]
    assert tokenizer(texts[:32])["input_ids"] == prompts_of_base(tokenizer, config, turns[:32])
    turns_of = dict(zip(texts, turns, strict=True))
    found: list[dict[str, Any]] = []
    spent = lost = 0.0

    def reward(prompts, completion_ids, **_):
        nonlocal spent
        spent += sum(map(len, completion_ids))
        return judge(
            [turns_of[text] for text in prompts], [answer_of(tokenizer, config, ids) for ids in completion_ids]
        )

    class PutAside(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            nonlocal lost
            now = time.process_time()
            if state.global_step % EVERY == 0:
                weights = get_peft_model_state_dict(model, save_embedding_layers=False)
                adapter = {key: value.detach().clone() for key, value in weights.items()}
                point = {"step": state.global_step, "seconds": now - began - lost, "tokens": spent}
                found.append(point | {"adapter": adapter})
                lost += time.process_time() - now
            control.should_training_stop = spent >= tokens

    settings, trainer = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}[name]
    arguments = settings(
        output_dir=str(folder),
        seed=seed,
        learning_rate=rate,
        lr_scheduler_type="constant",
        per_device_train_batch_size=config.coarse.rollouts,
        gradient_accumulation_steps=1,
        max_completion_length=LONGEST,
        generation_kwargs={"stop_strings": list(config.model.stop)},
        max_steps=100_000,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=100_000,
        disable_tqdm=True,
    )
    run = trainer(
        model=load_model(models.base, config),
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
        peft_config=lora_config(config.lora, "CAUSAL_LM"),
        callbacks=[PutAside()],
    )
    run.model.generate = functools.partial(run.model.generate, tokenizer=tokenizer)  # which stop texts need
    began = time.process_time()
    run.train()
    return found


def answer_of(tokenizer: Any, config: Any, ids: list[int]) -> Any:
    """A completion of TRL's as an answer: up to its end token or the first stop text, without either."""
    from lite_c2f.actors.answers import Answer
    from lite_c2f.sampling.stops import before_stop

    ids, finish = list(ids), "limit"
    if tokenizer.eos_token_id in ids:
        ids, finish = ids[: ids.index(tokenizer.eos_token_id)], "eos"
    text = tokenizer.decode(ids, skip_special_tokens=True)
    kept = before_stop(text, config.model.stop)
    if kept != text:
        lengths = [len(tokenizer.decode(ids[:count], skip_special_tokens=True)) for count in range(len(ids) + 1)]
        ids, finish = ids[: max(count for count, length in enumerate(lengths) if length <= len(kept))], "stop"
    return Answer(tokenizer.decode(ids, skip_special_tokens=True).strip(), len(ids), finish, ids)


def judged(seed: int, points: list[dict[str, Any]], rewards: Path) -> list[list[float]]:
    """[seconds, tokens, mean reward of held-out prompts] of the base and every adapter put aside."""
    from arms import judge_of
    from peft import set_peft_model_state_dict
    from worlds import config_of, corpus_of, models_of

    from lite_c2f.actors.models import answer_base
    from lite_c2f.backbone.load import load_model, load_tokenizer
    from lite_c2f.backbone.roles import Roles
    from lite_c2f.sampling import Sampling

    config, models = config_of(WORLD, seed), models_of(WORLD)
    tokenizer, judge = load_tokenizer(models.base), judge_of(config, models, rewards)
    roles = Roles(load_model(models.base, config), config.lora, ("policy",))
    turns = [prompt.turns for prompt in corpus_of(WORLD, seed).held_out_prompts[:HELD_OUT]]
    curve = []
    for point in ({"seconds": 0.0, "tokens": 0}, *points):
        if "adapter" in point:
            missing = set_peft_model_state_dict(roles.model, point["adapter"], adapter_name="policy")
            assert not missing.unexpected_keys
        sampling = Sampling(LONGEST, config.coarse.temperature, seed=seed)
        answers = answer_base(roles, "policy", tokenizer, config, turns, sampling, HELD_OUT)
        curve.append(
            [round(point["seconds"], 1), round(point["tokens"]), round(statistics.fmean(judge(turns, answers)), 4)]
        )
    return curve


def run_child(arguments: str) -> None:
    """One run in this process: `reward` trains the reward model that all share."""
    name, seed, rate, tokens, folder, rewards = json.loads(arguments)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if name == "reward":
        from arms import train_reward_model

        train_reward_model(WORLD, seed, Path(rewards))
        return
    if name == "ppo":
        points = ppo(seed, rate, tokens, Path(folder), Path(rewards))
    else:
        points = by_trl(name, seed, rate, tokens, Path(folder), Path(rewards))
    print(json.dumps(judged(seed, points, Path(rewards))))


def child(name: str, seed: int, rate: float, tokens: int, scratch: Path) -> Any:
    """A run in a process of its own."""
    folder = scratch / f"{name}-{rate}"
    folder.mkdir()
    arguments = json.dumps([name, seed, rate, tokens, str(folder), str(scratch / "rewards")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, __file__, "--child", arguments], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    if name == "reward":
        return None
    curve = json.loads(done.stdout.splitlines()[-1])
    print(f"{name} {rate:g}: {curve[0][2]:+.2f} -> {curve[-1][2]:+.2f} in {curve[-1][0]:.0f} s", flush=True)
    return curve


def reached(curve: list[list[float]], reward: float, *, kept: bool) -> dict[str, float | None]:
    """Seconds and tokens until a curve first has a reward; kept: until it has it and keeps it to the end.

    >>> reached([[0, 0, 0.0], [9, 100, 0.5], [20, 210, 0.4], [30, 320, 0.9]], 0.45, kept=False)
    {'seconds': 9, 'tokens': 100}
    >>> reached([[0, 0, 0.0], [9, 100, 0.5], [20, 210, 0.4], [30, 320, 0.9]], 0.45, kept=True)
    {'seconds': 30, 'tokens': 320}
    """
    has = [value >= reward for _, _, value in curve]
    if kept:
        has = [all(has[place:]) for place in range(len(has))]
    seconds, tokens, _ = curve[has.index(True)] if any(has) else (None, None, None)
    return {"seconds": seconds, "tokens": tokens}


def figures(curves: dict[str, dict[float, list[list[float]]]]) -> dict[str, Any]:
    """Of every algorithm its best learning rate, and when it had the share of the rise, and kept it.

    The best rate is the one that keeps it soonest; where none does, the one with the highest mean of its last three
    rewards.
    """
    last = {
        name: {rate: statistics.fmean(point[2] for point in curve[-3:]) for rate, curve in by_rate.items()}
        for name, by_rate in curves.items()
    }
    base = statistics.fmean(curve[0][2] for by_rate in curves.values() for curve in by_rate.values())
    top = max(value for by_rate in last.values() for value in by_rate.values())
    wanted = base + SHARE * (top - base)
    arms = {}
    for name, by_rate in last.items():
        kept = {rate: reached(curve, wanted, kept=True) for rate, curve in curves[name].items()}
        found = {rate: figures["seconds"] for rate, figures in kept.items() if figures["seconds"] is not None}
        best = min(found, key=found.__getitem__) if found else max(by_rate, key=by_rate.__getitem__)
        arms[name] = {
            "learning_rate": best,
            "reward_last": round(by_rate[best], 3),
            "kept_after": kept[best],
            "seconds_in_all": curves[name][best][-1][0],
            "tokens_in_all": curves[name][best][-1][1],
            "by_rate": {
                f"{rate:g}": {
                    "reward_last": round(by_rate[rate], 3),
                    "first_after": reached(curve, wanted, kept=False),
                    "kept_after": kept[rate],
                }
                for rate, curve in curves[name].items()
            },
        }
    return {"base": round(base, 3), "top": round(top, 3), "wanted": round(wanted, 3), "arms": arms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=60_000, help="generated tokens of each run")
    parser.add_argument("--lanes", type=int, default=2, help="runs side by side")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return run_child(options.child)
    from models import machine, report

    arms = [(name, rate) for name, rates in RATES.items() for rate in rates]
    with tempfile.TemporaryDirectory() as text, ThreadPoolExecutor(options.lanes) as pool:
        scratch = Path(text)
        child("reward", options.seed, 0.0, 0, scratch)
        runs = pool.map(lambda arm: child(arm[0], options.seed, arm[1], options.tokens, scratch), arms)
        curves: dict[str, dict[float, list]] = {name: {} for name in RATES}
        for (name, rate), curve in zip(arms, runs, strict=True):
            curves[name][rate] = curve
    result = {
        "benchmark": "time_to_reward",
        "unit": "CPU seconds of training, one thread; generated tokens",
        "world": WORLD,
        "seed": options.seed,
        "share": SHARE,
        **figures(curves),
        "curves": {name: {f"{rate:g}": curve for rate, curve in by_rate.items()} for name, by_rate in curves.items()},
        "budget_tokens": options.tokens,
        "held_out": HELD_OUT,
        **machine(),
    }
    return report(result, options.out)


if __name__ == "__main__":
    main()
