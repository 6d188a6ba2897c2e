"""Rollout benchmark: the sampler against transformers' `generate` with the same model, prompts and slots.

Three kinds of lengths: `eos`, the model ends by itself (sampled, so both sides draw their own lengths: tokens per
second are compared); `fixed` and `lognormal`, lengths set for each row (equal work, greedy). `generate` answers in
batches of the slot count, as it must. Prints one JSON line last; `speedup` is that of `eos`.

    python benchmarks/rollout.py [--slots 16] [--work 4] [--repeats 5] [--quantization nf4] [--out FILE]
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from models import EOS, PAD, machine, report, small_mistral  # noqa: E402
from transformers import StoppingCriteria, StoppingCriteriaList  # noqa: E402

PROMPT, CAP = 32, 128


def lengths_of(kind: str, rows: int) -> list[int] | None:
    """Tokens of each response, or None where the model decides."""
    draw = torch.Generator().manual_seed(1)
    if kind == "fixed":
        return [CAP // 2] * rows
    if kind == "lognormal":
        values = torch.exp(torch.randn(rows, generator=draw) * 0.9 + 3.3)
        return [int(value) for value in values.round().clamp(2, CAP)]
    return None


class RowLimits(StoppingCriteria):
    """Ends each row of a `generate` batch at its own length."""

    def __init__(self, prompt: int, limits: list[int]) -> None:
        self.prompt, self.limits = prompt, torch.tensor(limits)

    def __call__(self, input_ids, scores, **_):
        return input_ids.shape[1] - self.prompt >= self.limits.to(input_ids.device)


def by_generate(roles, prompts: list[list[int]], limits: list[int] | None, slots: int, seed: int) -> int:
    """Tokens of responses, answered batch by batch."""
    model = roles.model
    torch.manual_seed(seed)
    count = 0
    for first in range(0, len(prompts), slots):
        tokens = torch.tensor(prompts[first : first + slots], device=model.device)
        part = limits[first : first + slots] if limits else None
        criteria = {"stopping_criteria": StoppingCriteriaList([RowLimits(PROMPT, part)])} if part else {}
        with roles.use("policy"):
            responses = model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=max(part) if part else CAP,
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


def by_slots(roles, prompts: list[list[int]], limits: list[int] | None, slots: int, seed: int) -> int:
    """Tokens of responses, answered by the sampler."""
    from lite_c2f.sampling import Sampling, sample

    sampling = Sampling(CAP, temperature=0.0 if limits else 1.0, seed=seed)
    eos_ids = [] if limits else [EOS]
    with roles.sampling("policy"):
        responses = sample(roles.model, prompts, sampling, eos_ids=eos_ids, pad_id=PAD, batch=slots, limits=limits)
    return sum(map(len, responses.tokens))


def tokens_per_s(work: Callable[[], int]) -> float:
    began = time.perf_counter()
    return work() / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--work", type=int, default=4, help="rows per slot")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--quantization", choices=("nf4", "none"), default="nf4")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    from lite_c2f.backbone.load import load_model
    from lite_c2f.backbone.roles import Roles
    from lite_c2f.config.loading import load_config
    from lite_c2f.config.settings import Lora

    settings = [f"model.quantization={options.quantization}", "data.max_prompt_tokens=32", "coarse.length.max=128"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = small_mistral(Path(scratch), options.vocabulary)
        roles = Roles(load_model(str(folder), load_config({}, settings)), Lora(r=16, alpha=32), ("policy",))
    roles.model.generation_config.top_k = 0  # no filter on either side
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, options.vocabulary, (options.slots * options.work, PROMPT), generator=draw).tolist()
    results = {}
    for kind in ("eos", "fixed", "lognormal"):
        limits = lengths_of(kind, len(prompts))
        rates: dict[str, list[float]] = {"ours": [], "generate": []}
        for repeat in range(options.repeats + 1):  # the first warms up
            for name, answer in (("ours", by_slots), ("generate", by_generate)):
                rate = tokens_per_s(lambda: answer(roles, prompts, limits, options.slots, repeat))  # noqa: B023
                if repeat:
                    rates[name].append(rate)
        pairs = [ours / theirs for ours, theirs in zip(rates["ours"], rates["generate"], strict=True)]
        results[kind] = {
            "speedup": round(statistics.median(pairs), 3),
            "range": [round(min(pairs), 3), round(max(pairs), 3)],
            **{f"{name}_tokens_per_s": round(statistics.median(rate)) for name, rate in rates.items()},
        }
    result = {
        "benchmark": "rollout",
        "unit": "tokens per second of the sampler / of generate; median of pairs run one after the other",
        "speedup": results["eos"]["speedup"],
        "lengths": results,
        "slots": options.slots,
        "rows": len(prompts),
        "cap": CAP,
        "prompt": PROMPT,
        "vocabulary": options.vocabulary,
        "quantization": options.quantization,
        **machine(),
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
