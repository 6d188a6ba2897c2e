"""Mistral-7B's shape on a 24 GB card: what fits, what it takes against what was planned, and how fast it is.

Random weights are saved as a model folder and loaded through the real path: NF4, three adapters. Memory is capped to
22 GiB of whatever card is there. Measured: a reward-model step, a PPO update at each limit with every response as long
as it may be (the worst case), the sampler against `generate` under a cap of 1024 with lognormal lengths, and the chat's
three panes against one. `--tiny` runs the same on a small shape and on a CPU, where no peak is measured. Every figure
is written to --out as soon as it is there. Prints one JSON line last.

    python benchmarks/gpu.py [--limits 128,512,1024,2048] [--rollouts 32] [--out FILE]
    python benchmarks/gpu.py --tiny
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
from models import EOS, PAD, SMALL, machine, save_tokenizer  # noqa: E402
from panes import chat_panes  # noqa: E402
from rollout import RowLimits  # noqa: E402
from transformers import MistralConfig, MistralForCausalLM, StoppingCriteriaList  # noqa: E402

SEVEN_B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
}
CARD, CAP_GIB = 24.0, 22.0


class Bench:
    """What is shared by the parts: the models' folder, the settings, the figures so far."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.tiny = given, given.tiny
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.prompt = 16 if self.tiny else 256
        self.vocabulary = 2048 if self.tiny else 32000
        self.folder = Path(given.work or tempfile.mkdtemp()) / ("tiny" if self.tiny else "7b")
        self.result: dict[str, Any] = {"benchmark": "gpu", "tiny": self.tiny, **machine()}

    def note(self, name: str, value: Any, *, quiet: bool = False) -> None:
        """Keep a figure, and write all of them down."""
        self.result[name] = value
        if not quiet:
            print(f"{name}: {json.dumps(value)}", flush=True)
        if self.given.out:
            self.given.out.parent.mkdir(parents=True, exist_ok=True)
            self.given.out.write_text(json.dumps(self.result, indent=2) + "\n", encoding="utf-8")

    def build(self) -> None:
        """Random weights in bfloat16 and a tokenizer, once."""
        if (self.folder / "tokenizer.json").is_file():
            return
        shape = SMALL if self.tiny else SEVEN_B
        torch.manual_seed(0)
        config = MistralConfig(vocab_size=self.vocabulary, bos_token_id=1, eos_token_id=EOS, **shape)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with self.device:
                model = MistralForCausalLM(config)
        finally:
            torch.set_default_dtype(default)
        model.save_pretrained(self.folder, max_shard_size="4GB")
        save_tokenizer(self.folder, self.vocabulary)
        del model
        self.fresh()

    def config(self, *more: str) -> Any:
        from lite_c2f.config.loading import load_config

        settings = [
            f"model.base={self.folder}",
            f"model.instruct={self.folder}",
            f"data.max_prompt_tokens={self.prompt}",
            f"hardware.vram_gib={CARD}",
            f"coarse.rollouts={self.given.rollouts}",
            "coarse.minibatches=1",
            "coarse.epochs=1",
        ]
        return load_config({}, [*settings, *more])

    def fresh(self) -> None:
        from lite_c2f.runtime.batch_size import free

        free()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize()
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)

    def against(self, predicted: float) -> dict[str, float | None]:
        """Predicted and measured peak."""
        measured, planned = self.peak_gib(), round(predicted / 2**30, 3)
        ratio = round(planned / measured, 3) if measured else None
        return {"predicted_gib": planned, "measured_gib": measured, "predicted_over_measured": ratio}


def reward_step(bench: Bench) -> None:
    """A few optimiser steps of the reward stage, pairs as long as they may be, through the real stage."""
    from lite_c2f.backbone.load import plan_here
    from lite_c2f.data.records import Pair, Turn
    from lite_c2f.memory import resolve
    from lite_c2f.reward.train import train_reward
    from lite_c2f.runs.corpus import Corpus
    from lite_c2f.runs.models import ModelPair

    answer = 24 if bench.tiny else 512
    config = bench.config(f"data.max_answer_tokens={answer}", "reward.batch=16", "data.truncated=0")
    plan = plan_here(config)
    config = resolve(config, plan)
    numbers = torch.Generator().manual_seed(0)

    def words(count: int) -> str:
        return " ".join(f"w{n}" for n in torch.randint(3, bench.vocabulary, (count,), generator=numbers).tolist())

    pairs = [Pair((Turn("human", words(bench.prompt)),), words(answer), words(answer)) for _ in range(48)]
    corpus = Corpus(pairs[:32], pairs[32:], [], [], {})
    models = ModelPair(str(bench.folder), str(bench.folder))
    bench.fresh()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as run:
        train_reward(config, models, corpus, Path(run))
    need = next(need for need in plan.needs if need.stage == "reward")
    seconds = round(time.perf_counter() - began, 1)
    bench.note("reward", {"micro_batch": need.batch, "seconds_with_loading": seconds, **bench.against(need.total)})


def build_roles(bench: Bench) -> Any:
    from lite_c2f.backbone.heads import ScalarHead
    from lite_c2f.backbone.load import load_model, uses_checkpointing
    from lite_c2f.backbone.roles import Roles

    config = bench.config(f"coarse.length.start={bench.limits[0]}", f"coarse.length.max={max(bench.limits)}")
    base = load_model(str(bench.folder), config)
    roles = Roles(
        base, config.lora, ("policy", "critic", "reward"), checkpointing=uses_checkpointing(config, bench.device)
    )
    width = base.config.hidden_size
    for name in ("critic", "reward"):
        roles.add_head(name, ScalarHead.of(torch.randn(1, width) * 0.01))
    return roles


def ppo_updates(bench: Bench, roles: Any) -> None:
    """A whole update at each limit: the batches the planner chooses for it, its prediction, the measured peak."""
    from lite_c2f.backbone.load import plan_here
    from lite_c2f.coarse.advantage import gae, token_rewards
    from lite_c2f.coarse.rollout import ResponseEnds, RolloutBatches, RolloutContext, RolloutRequest, collect
    from lite_c2f.coarse.update import update
    from lite_c2f.memory import resolve
    from lite_c2f.reward.score import Normalizer

    optimizers = {
        name: torch.optim.AdamW(roles.trainable(name), lr=1e-6, weight_decay=0.0) for name in ("policy", "critic")
    }
    numbers = torch.Generator().manual_seed(0)
    never = -1  # no token has this id: every response runs into the limit
    found = {}
    for limit in [bench.limits[0], *bench.limits]:  # the first warms up: AdamW's moments are there afterwards
        config = bench.config(f"coarse.length.max={limit}", f"coarse.length.start={limit}")
        plan = plan_here(config)
        settings = resolve(config, plan).coarse
        batches = RolloutBatches.of(settings)
        prompts = torch.randint(3, bench.vocabulary, (settings.rollouts, bench.prompt), generator=numbers).tolist()
        needs = {need.stage: need.total for need in plan.needs}
        bench.fresh()
        began = time.perf_counter()
        context = RolloutContext(roles, settings, ResponseEnds(never, PAD), Normalizer(0.0, 1.0), batches)
        rollout = collect(context, RolloutRequest(prompts, limit, seed=limit))
        sampling = bench.against(max(needs["coarse_sampling"], needs["coarse_scoring"]))
        sampled = time.perf_counter()
        bench.fresh()
        rewards = token_rewards(rollout.scores, rollout.logprobs, rollout.reference, rollout.mask, 0.05)
        advantages = gae(rewards, rollout.values, rollout.mask, 1.0, 0.95)
        figures = update(
            roles,
            optimizers,
            rollout,
            advantages,
            settings,
            torch.Generator().manual_seed(0),
            warm=True,
            batches=batches,
            scales=None,
        )
        updating = bench.against(needs["coarse_update"])
        found[str(limit)] = {
            "sampling_batch": batches.sampling.size,
            "micro_batch": batches.update.size,
            "halved": sum(size.halved for size in batches),
            "rollout_seconds": round(sampled - began, 2),
            "update_seconds": round(time.perf_counter() - sampled, 2),
            "sampling_gap_nats": round(figures["sampling_gap"], 5),
            "rollout": sampling,
            "update": updating,
        }
        print(f"limit {limit}: {json.dumps(found[str(limit)])}", flush=True)
        bench.note("ppo", found, quiet=True)
        del rollout, advantages, rewards


def rollout_speed(bench: Bench, roles: Any) -> None:
    """Tokens a second of the sampler, with and without recorded graphs, and of `generate`, on the same lengths."""
    from lite_c2f.sampling import Sampling, sample
    from lite_c2f.sampling.slots import Graphs

    cap, slots = (48, 8) if bench.tiny else (1024, 32)
    numbers = torch.Generator().manual_seed(2)
    rows = 4 * slots
    lengths = torch.exp(torch.randn(rows, generator=numbers) * 0.9 + (2.5 if bench.tiny else 5.4))
    limits = [int(length) for length in lengths.round().clamp(2, cap)]
    prompts = torch.randint(3, bench.vocabulary, (rows, bench.prompt), generator=numbers).tolist()
    rates: dict[str, float] = {}

    def sampled() -> int:
        with roles.sampling("policy"):
            said = sample(roles.model, prompts, Sampling(cap), eos_ids=[-1], pad_id=PAD, batch=slots, limits=limits)
        return sum(map(len, said.tokens))

    def generated() -> int:
        with roles.use("policy"):
            for first in range(0, slots if not bench.tiny else rows, slots):  # one batch is long enough at 7B
                part = limits[first : first + slots]
                tokens = torch.tensor(prompts[first : first + slots], device=bench.device)
                roles.model.generate(
                    input_ids=tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=max(part),
                    do_sample=True,
                    eos_token_id=None,
                    pad_token_id=PAD,
                    stopping_criteria=StoppingCriteriaList([RowLimits(bench.prompt, part)]),
                )
        return sum(limits if bench.tiny else limits[:slots])

    for name, work in (("sampler", sampled), ("sampler_eager", sampled), ("generate", generated)):
        if name == "sampler_eager" and bench.device.type != "cuda":
            continue
        was, Graphs.refused = Graphs.refused, Graphs.refused or name == "sampler_eager"
        bench.fresh()
        began = time.perf_counter()
        count = work()
        if bench.device.type == "cuda":
            torch.cuda.synchronize()
        rates[name] = round(count / (time.perf_counter() - began), 1)
        Graphs.refused = was
        bench.note("tokens_per_s", {**rates, "cap": cap, "slots": slots, "rows": rows})
    bench.note("graphs_recorded", bench.device.type == "cuda" and not Graphs.refused)
    bench.note("speedup", round(rates["sampler"] / rates["generate"], 2))


def greedy_agreement(bench: Bench, roles: Any) -> None:
    """Share of greedy tokens, up to the first difference, that sampler and `generate` agree on (bfloat16 rounds)."""
    from lite_c2f.sampling import Sampling, sample

    numbers = torch.Generator().manual_seed(3)
    prompts = torch.randint(3, bench.vocabulary, (8, bench.prompt), generator=numbers).tolist()
    with roles.sampling("policy"):
        ours = sample(roles.model, prompts, Sampling(32, temperature=0), eos_ids=[-1], pad_id=PAD, batch=4).tokens
        tokens = torch.tensor(prompts, device=bench.device)
        made = roles.model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=32,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=PAD,
        )[:, bench.prompt :].tolist()
    same = [
        next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), 32)
        for x, y in zip(ours, made, strict=True)
    ]
    bench.note("greedy_agreement", round(sum(same) / (32 * len(same)), 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a small shape; runs on a CPU")
    parser.add_argument("--limits", help="response limits (default: 128,512,1024,2048; tiny: 8,16,32)")
    parser.add_argument("--rollouts", type=int, default=32)
    parser.add_argument("--work", type=Path, help="folder for the random weights, to keep them (15 GB)")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if not given.tiny and not torch.cuda.is_available():
        parser.error("no CUDA GPU here; --tiny runs on a CPU")
    bench = Bench(given)
    bench.limits = [
        int(limit) for limit in (given.limits or ("8,16,32" if given.tiny else "128,512,1024,2048")).split(",")
    ]
    bench.build()
    if bench.device.type == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, CAP_GIB * 2**30 / total))
    bench.note("card_gib", {"planned": CARD, "capped": CAP_GIB if bench.device.type == "cuda" else None})
    reward_step(bench)
    roles = build_roles(bench)
    ppo_updates(bench, roles)
    rollout_speed(bench, roles)
    greedy_agreement(bench, roles)
    chat_panes(bench, roles)
    print(json.dumps(bench.result), flush=True)


if __name__ == "__main__":
    main()
