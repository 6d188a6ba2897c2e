"""Rollout benchmark: the sampler against transformers' `generate` and `generate_batch` (continuous batching).

Same model, prompts and slots on all sides. Three kinds of lengths: `eos`, the model ends by itself (sampled, so each
side draws its own lengths: tokens per second are compared); `fixed` and `lognormal`, lengths set for each row (equal
work, greedy). `generate` answers in batches of the slot count, as it must; continuous batching refills its slots, with
attention `paged|sdpa`. Prints one JSON line last; `speedup` is that of `eos`.

    python benchmarks/rollout.py [--shape smollm2] [--no-lora] [--threads 1] [--quantization nf4] [--out FILE]
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from models import EOS, PAD, machine, report, small_mistral  # noqa: E402
from transformers import ContinuousBatchingConfig, StoppingCriteria, StoppingCriteriaList  # noqa: E402

PROMPT = 32


class Task(NamedTuple):
    """What is answered."""

    vocabulary: int
    slots: int
    rows: int
    cap: int  # most tokens of a response
    mean_length: float  # of responses that the model ends by itself, in tokens


TASKS = {"toy": Task(2048, 16, 64, 128, 40.0), "smollm2": Task(49152, 12, 24, 48, 24.0)}


def lengths_of(kind: str, task: Task) -> list[int] | None:
    """Tokens of each response, or None where the model decides."""
    draw = torch.Generator().manual_seed(1)
    if kind == "fixed":
        return [task.cap // 2] * task.rows
    if kind == "lognormal":
        values = torch.exp(torch.randn(task.rows, generator=draw) * 0.9) * task.cap * 0.21
        return [int(value) for value in values.round().clamp(2, task.cap)]
    return None


class RowLimits(StoppingCriteria):
    """Ends each row of a `generate` batch at its own length."""

    def __init__(self, prompt: int, limits: list[int]) -> None:
        self.prompt, self.limits = prompt, torch.tensor(limits)

    def __call__(self, input_ids, scores, **_):
        return input_ids.shape[1] - self.prompt >= self.limits.to(input_ids.device)


def by_generate(roles, role: str, prompts: list[list[int]], limits: list[int] | None, task: Task, seed: int) -> int:
    """Tokens of responses, answered batch by batch."""
    model = roles.model
    torch.manual_seed(seed)
    count = 0
    for first in range(0, len(prompts), task.slots):
        tokens = torch.tensor(prompts[first : first + task.slots], device=model.device)
        part = limits[first : first + task.slots] if limits else None
        criteria = {"stopping_criteria": StoppingCriteriaList([RowLimits(PROMPT, part)])} if part else {}
        with roles.use(role):
            responses = model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=max(part) if part else task.cap,
                do_sample=part is None,
                eos_token_id=None if part else EOS,
                pad_token_id=PAD,
                **criteria,
            )[:, PROMPT:]
        if part:
            count += sum(part)
        else:
            ended = responses == EOS
            count += sum(int(row.nonzero()[0]) + 1 if row.any() else responses.shape[1] for row in ended)
    return count


def by_continuous(roles, role: str, prompts: list[list[int]], limits: list[int] | None, task: Task, seed: int) -> int:
    """Tokens of responses, answered by transformers' continuous batching."""
    model, config = roles.model, roles.model.generation_config
    config.do_sample, config.pad_token_id = limits is None, PAD
    pages = 2 * task.slots  # of 256 tokens; by default its cache takes most of the memory there is, on a CPU too
    settings = ContinuousBatchingConfig(
        max_requests_per_batch=task.slots, num_blocks=pages, max_batch_tokens=task.slots * PROMPT, seed=seed
    )
    with roles.use(role), torch.no_grad():
        manager = model.init_continuous_batching(generation_config=config, continuous_batching_config=settings)
        manager.start()
        try:
            for row, prompt in enumerate(prompts):
                most, end = (limits[row], -1) if limits else (task.cap, EOS)
                manager.add_request(prompt, str(row), max_new_tokens=most, eos_token_id=end)
            done: dict[str, int] = {}
            while len(done) < len(prompts):
                result = manager.get_result(timeout=60)
                if result is None or result.error:
                    raise SystemExit(f"continuous batching stopped: {result and result.error}")
                if result.is_finished():
                    done[result.request_id] = len(result.generated_tokens)
        finally:
            manager.stop(block=True)
            manager.destroy()
    if limits:
        assert [done[str(row)] for row in range(len(prompts))] == limits
    return sum(done.values())


def by_slots(roles, role: str, prompts: list[list[int]], limits: list[int] | None, task: Task, seed: int) -> int:
    """Tokens of responses, answered by the sampler."""
    from lite_c2f.sampling import Sampling, sample

    sampling = Sampling(task.cap, temperature=0.0 if limits else 1.0, seed=seed)
    eos_ids = [] if limits else [EOS]
    with roles.sampling(role):
        responses = sample(roles.model, prompts, sampling, eos_ids=eos_ids, pad_id=PAD, batch=task.slots, limits=limits)
    return sum(map(len, responses.tokens))


def tokens_per_s(work: Callable[[], int]) -> float:
    began = time.perf_counter()
    return work() / (time.perf_counter() - began)


def measure(task: Task, shape: str, quantization: str, role: str, repeats: int) -> dict[str, dict]:
    """All sides in turn, for each kind of lengths. role: `policy`, or `reference` without an adapter."""
    from lite_c2f.backbone.load import load_model
    from lite_c2f.backbone.roles import Roles
    from lite_c2f.config.loading import load_config
    from lite_c2f.config.settings import Lora

    settings = [f"model.quantization={quantization}", "data.max_prompt_tokens=32", "coarse.length.max=128"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = small_mistral(Path(scratch), task.vocabulary, task.mean_length, shape=shape)
        roles = Roles(load_model(str(folder), load_config({}, settings)), Lora(r=16, alpha=32), ("policy",))
    roles.model.generation_config.top_k = 0  # no filter on any side
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, task.vocabulary, (task.rows, PROMPT), generator=draw).tolist()
    sides = {"ours": by_slots, "generate": by_generate, "generate_batch": by_continuous}
    results = {}
    for kind in ("eos", "fixed", "lognormal"):
        limits = lengths_of(kind, task)
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for repeat in range(repeats + 1):  # the first warms up
            for name, answer in sides.items():
                rate = tokens_per_s(lambda: answer(roles, role, prompts, limits, task, repeat))  # noqa: B023
                if repeat:
                    rates[name].append(rate)
        results[kind] = {name: over(rates["ours"], rates[name]) for name in sides if name != "ours"}
        results[kind]["tokens_per_s"] = {name: round(statistics.median(rate), 1) for name, rate in rates.items()}
        print(kind, results[kind], flush=True)
    return results


def over(ours: list[float], theirs: list[float]) -> dict:
    """How many times as fast, with its range."""
    pairs = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return {"speedup": round(statistics.median(pairs), 2), "range": [round(min(pairs), 2), round(max(pairs), 2)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=TASKS, default="toy")
    parser.add_argument("--lora", action=argparse.BooleanOptionalAction, default=True, help="sample with an adapter")
    parser.add_argument("--threads", type=int, help="(default: as PyTorch chooses)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quantization", choices=("nf4", "none"), default="nf4")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    role, task = "policy" if options.lora else "reference", TASKS[options.shape]
    results = measure(task, options.shape, options.quantization, role, options.repeats)
    result = {
        "benchmark": "rollout",
        "unit": "tokens per second of the sampler / of the other; median of pairs run one after the other",
        "speedup": {name: results["eos"][name]["speedup"] for name in ("generate", "generate_batch")},
        "lengths": results,
        "shape": options.shape,
        "lora": options.lora,
        **task._asdict(),
        "prompt": PROMPT,
        "quantization": options.quantization,
        **machine(),
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
