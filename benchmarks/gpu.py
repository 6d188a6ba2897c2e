"""GPU benchmark: Mistral-7B's shape on a 24 GB card; what fits, measured against planned memory, and speed.

Random weights are saved as a model folder and loaded through the real path: NF4, three adapters. Memory is capped to
22 GiB of whatever card is there. Measured: a reward-model step, a PPO update at each limit with every response as long
as the limit (the worst case), the sampler against `generate` under a cap of 1024 with lognormal lengths, and the chat's
three panes against one. `--tiny` runs the same on a small shape and on a CPU, where no peak is measured. Every figure
is written to --out as soon as it is there. `--model smollm2` trains configs/smollm2.yaml instead, all stages on a real
model, and measures those. Prints one JSON line last.

    python benchmarks/gpu.py [--limits 128,512,1024,2048] [--rollouts 32] [--out FILE]
    python benchmarks/gpu.py --model smollm2 [--work FOLDER] [--out FILE]
    python benchmarks/gpu.py [--model smollm2] --tiny
"""

import argparse
import json
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from gpu_run import CAP_GIB, CARD, GpuRun  # noqa: E402
from models import PAD  # noqa: E402
from panes import chat_panes  # noqa: E402
from rollout import RowLimits  # noqa: E402
from transformers import StoppingCriteriaList  # noqa: E402


def reward_step(gpu: GpuRun) -> None:
    """A few optimiser steps of the reward stage, pairs as long as they may be, through the real stage."""
    from lite_c2f.backbone.machine import plan_here
    from lite_c2f.data.records import Pair, Turn
    from lite_c2f.memory import resolve
    from lite_c2f.reward.train import train_reward
    from lite_c2f.runs.corpus import Corpus
    from lite_c2f.runs.model_pair import ModelPair

    answer = 24 if gpu.tiny else 512
    config = gpu.config(f"data.max_answer_tokens={answer}", "reward.batch=16", "data.truncated=0")
    plan = plan_here(config)
    config = resolve(config, plan)
    numbers = torch.Generator().manual_seed(0)

    def words(count: int) -> str:
        return " ".join(f"w{n}" for n in torch.randint(3, gpu.vocabulary, (count,), generator=numbers).tolist())

    pairs = [Pair((Turn("human", words(gpu.prompt)),), words(answer), words(answer)) for _ in range(48)]
    corpus = Corpus(pairs[:32], pairs[32:], [], [], {})
    models = ModelPair(str(gpu.folder), str(gpu.folder))
    gpu.fresh()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as run:
        train_reward(config, models, corpus, Path(run))
    need = next(need for need in plan.needs if need.stage == "reward")
    seconds = round(time.perf_counter() - began, 1)
    gpu.note("reward", {"micro_batch": need.batch, "seconds_with_loading": seconds, **gpu.against(need.total)})


def build_roles(gpu: GpuRun) -> Any:
    from lite_c2f.backbone.heads import ScalarHead
    from lite_c2f.backbone.load import load_model
    from lite_c2f.backbone.machine import uses_checkpointing
    from lite_c2f.backbone.roles import Roles

    config = gpu.config(f"coarse.length.start={gpu.limits[0]}", f"coarse.length.max={max(gpu.limits)}")
    base = load_model(str(gpu.folder), config)
    roles = Roles(
        base, config.lora, ("policy", "critic", "reward"), checkpointing=uses_checkpointing(config, gpu.device)
    )
    width = base.config.hidden_size
    for name in ("critic", "reward"):
        roles.add_head(name, ScalarHead.of(torch.randn(1, width) * 0.01))
    return roles


def ppo_updates(gpu: GpuRun, roles: Any) -> None:
    """A whole update at each limit: the batches the planner chooses for it, its prediction, the measured peak."""
    from lite_c2f.backbone.machine import plan_here
    from lite_c2f.coarse.advantage import gae, token_rewards
    from lite_c2f.coarse.rollout import ResponseEnds, RolloutBatches, RolloutContext, RolloutRequest, collect
    from lite_c2f.coarse.update import update
    from lite_c2f.memory import resolve
    from lite_c2f.reward.files import Normalizer

    optimizers = {
        name: torch.optim.AdamW(roles.trainable(name), lr=1e-6, weight_decay=0.0) for name in ("policy", "critic")
    }
    numbers = torch.Generator().manual_seed(0)
    never = -1  # no token has this id: every response runs into the limit
    results = {}
    for limit in [gpu.limits[0], *gpu.limits]:  # the first warms up: AdamW's moments are there afterwards
        config = gpu.config(f"coarse.length.max={limit}", f"coarse.length.start={limit}")
        plan = plan_here(config)
        settings = resolve(config, plan).coarse
        batches = RolloutBatches.of(settings)
        prompts = torch.randint(3, gpu.vocabulary, (settings.rollouts, gpu.prompt), generator=numbers).tolist()
        needs = {need.stage: need.total for need in plan.needs}
        gpu.fresh()
        began = time.perf_counter()
        context = RolloutContext(roles, settings, ResponseEnds(never, PAD), Normalizer(0.0, 1.0), batches)
        rollout = collect(context, RolloutRequest(prompts, limit, seed=limit))
        sampling = gpu.against(max(needs["coarse_sampling"], needs["coarse_scoring"]))
        sampled = time.perf_counter()
        gpu.fresh()
        rewards = token_rewards(rollout.scores, rollout.logprobs, rollout.reference, rollout.mask, 0.05)
        advantages = gae(rewards, rollout.values, rollout.mask, 1.0, 0.95)
        update(
            roles,
            optimizers,
            rollout,
            advantages,
            settings,
            torch.Generator().manual_seed(0),
            train_policy=True,
            batches=batches,
        )
        updating = gpu.against(needs["coarse_update"])
        results[str(limit)] = {
            "sampling_batch": batches.sampling.size,
            "micro_batch": batches.update.size,
            "halved": sum(size.halved for size in batches),
            "rollout_seconds": round(sampled - began, 2),
            "update_seconds": round(time.perf_counter() - sampled, 2),
            "sampling_gap_nats": round(rollout.sampling_gap, 5),
            "rollout": sampling,
            "update": updating,
        }
        print(f"limit {limit}: {json.dumps(results[str(limit)])}", flush=True)
        gpu.note("ppo", results, quiet=True)
        del rollout, advantages, rewards


def rollout_speed(gpu: GpuRun, roles: Any) -> None:
    """Tokens per second of the sampler, with and without recorded graphs, and of `generate`, on the same lengths."""
    from lite_c2f.sampling import Sampling, sample
    from lite_c2f.sampling.slots import Graphs

    cap, slots = (48, 8) if gpu.tiny else (1024, 32)
    numbers = torch.Generator().manual_seed(2)
    rows = 4 * slots
    lengths = torch.exp(torch.randn(rows, generator=numbers) * 0.9 + (2.5 if gpu.tiny else 5.4))
    limits = [int(length) for length in lengths.round().clamp(2, cap)]
    prompts = torch.randint(3, gpu.vocabulary, (rows, gpu.prompt), generator=numbers).tolist()
    rates: dict[str, float] = {}

    def sampled() -> int:
        with roles.sampling("policy"):
            responses = sample(
                roles.model, prompts, Sampling(cap), eos_ids=[-1], pad_id=PAD, batch=slots, limits=limits
            )
        return sum(map(len, responses.tokens))

    def generated() -> int:
        with roles.use("policy"):
            for first in range(0, slots if not gpu.tiny else rows, slots):  # one batch is long enough at 7B
                part = limits[first : first + slots]
                tokens = torch.tensor(prompts[first : first + slots], device=gpu.device)
                roles.model.generate(
                    input_ids=tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=max(part),
                    do_sample=True,
                    eos_token_id=None,
                    pad_token_id=PAD,
                    stopping_criteria=StoppingCriteriaList([RowLimits(gpu.prompt, part)]),
                )
        return sum(limits if gpu.tiny else limits[:slots])

    for name, work in (("sampler", sampled), ("sampler_eager", sampled), ("generate", generated)):
        if name == "sampler_eager" and gpu.device.type != "cuda":
            continue
        before, Graphs.refused = Graphs.refused, Graphs.refused or name == "sampler_eager"
        gpu.fresh()
        began = time.perf_counter()
        count = work()
        if gpu.device.type == "cuda":
            torch.cuda.synchronize()
        rates[name] = round(count / (time.perf_counter() - began), 1)
        Graphs.refused = before
        gpu.note("tokens_per_s", {**rates, "cap": cap, "slots": slots, "rows": rows})
    gpu.note("graphs_recorded", gpu.device.type == "cuda" and not Graphs.refused)
    gpu.note("speedup", round(rates["sampler"] / rates["generate"], 2))


def greedy_agreement(gpu: GpuRun, roles: Any) -> None:
    """Share of greedy tokens, up to the first difference, that sampler and `generate` agree on (bfloat16 rounds)."""
    from lite_c2f.sampling import Sampling, sample

    numbers = torch.Generator().manual_seed(3)
    prompts = torch.randint(3, gpu.vocabulary, (8, gpu.prompt), generator=numbers).tolist()
    with roles.sampling("policy"):
        ours = sample(roles.model, prompts, Sampling(32, temperature=0), eos_ids=[-1], pad_id=PAD, batch=4).tokens
        tokens = torch.tensor(prompts, device=gpu.device)
        theirs = roles.model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=32,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=PAD,
        )[:, gpu.prompt :].tolist()
    same = [
        next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), 32)
        for x, y in zip(ours, theirs, strict=True)
    ]
    gpu.note("greedy_agreement", round(sum(same) / (32 * len(same)), 3))


def real_model(gpu: GpuRun) -> None:
    """All stages of configs/smollm2.yaml, the last one the comparison; `--tiny` trains a few steps of each."""
    from lite_c2f import train
    from lite_c2f.config.loading import load_config
    from lite_c2f.smollm import CONFIG

    settings = []
    if gpu.tiny:
        settings += ["reward.max_pairs=32", "coarse.updates=2", "coarse.rollouts=4", "evaluation.prompts=4"]
        settings += ["evaluation.max_tokens=48", "fine.max_tokens=48"]
    run = gpu.folder.with_name("smollm2-run")
    gpu.fresh()
    gpu.note("summary", train(load_config(CONFIG, settings), run))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if line["stage"] == "coarse"]
    gpu.note("tokens_per_s", [round(line["tokens_per_s"], 1) for line in updates])
    gpu.note("update_seconds", [round(line["seconds"], 2) for line in updates])
    gpu.note("peak_gib", gpu.peak_gib())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a small shape; runs on a CPU")
    parser.add_argument("--model", choices=("7b", "smollm2"), default="7b")
    parser.add_argument("--limits", help="response limits (default: 128,512,1024,2048; tiny: 8,16,32)")
    parser.add_argument("--rollouts", type=int, default=32)
    parser.add_argument("--work", type=Path, help="folder for the random weights, to keep them (15 GB)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("no CUDA GPU here; --tiny runs on a CPU")
    gpu = GpuRun(options)
    gpu.limits = [
        int(limit) for limit in (options.limits or ("8,16,32" if options.tiny else "128,512,1024,2048")).split(",")
    ]
    if options.model == "7b":
        gpu.build()
    if gpu.device.type == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, CAP_GIB * 2**30 / total))
    gpu.note("card_gib", {"planned": CARD, "capped": CAP_GIB if gpu.device.type == "cuda" else None})
    if options.model == "smollm2":
        real_model(gpu)
    else:
        reward_step(gpu)
        roles = build_roles(gpu)
        ppo_updates(gpu, roles)
        rollout_speed(gpu, roles)
        greedy_agreement(gpu, roles)
        chat_panes(gpu, roles)
    print(json.dumps(gpu.result), flush=True)


if __name__ == "__main__":
    main()
