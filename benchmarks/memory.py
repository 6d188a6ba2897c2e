"""Memory benchmark: the planner's predictions against allocated bytes; sampling, scoring, an update, several limits.

Runs the real code on a Mistral of small width on a CPU, in NF4 with bfloat16 arithmetic and checkpointing as on a GPU,
and reads every allocation from the profiler's trace: exact, but for what only a GPU has (kernel workspaces, rounding of
blocks). Three things are put as they are on a GPU: PEFT is told that autocast is on (it asks for CUDA's), adapters are
copied to bfloat16 for sampling, and the tile of logits is counted as on a CPU. Prints one JSON line last;
`largest_error` is |predicted / measured - 1|.

    python benchmarks/memory.py [--hidden 512] [--layers 8] [--out FILE]
"""

import argparse
import gc
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from models import PAD, machine, report, save_tokenizer  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from transformers import MistralConfig, MistralForCausalLM  # noqa: E402

PROMPT = 64


def peak_bytes(work: Callable[[], None]) -> int:
    """The most that was allocated at once while the work ran, beyond what was there before."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        work()
    total = highest = 0
    for event in trace.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            highest = max(highest, total)
    return highest


def build(hidden: int, layers: int, vocabulary: int, rank: int):
    """Roles on a Mistral with the 7B's proportions: intermediate 3.5 h, a quarter of the heads for keys and values."""
    from lite_c2f.backbone import roles as roles_module
    from lite_c2f.backbone.copies import _linear_layers, half_copies
    from lite_c2f.backbone.heads import ScalarHead
    from lite_c2f.backbone.load import load_model
    from lite_c2f.config.loading import load_config
    from lite_c2f.config.settings import Lora

    settings = ["model.compute_dtype=bfloat16"]
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = MistralConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=hidden * 7 // 2,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 256,
            max_position_embeddings=8192,
            sliding_window=None,
        )
        MistralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        save_tokenizer(Path(folder), vocabulary)
        base = load_model(folder, load_config({}, settings))
    roles = roles_module.Roles(base, Lora(r=rank, alpha=32), ("policy", "critic", "reward"), checkpointing=True)
    for name in ("critic", "reward"):
        roles.add_head(name, ScalarHead.of(torch.randn(1, hidden) * 0.01))
    torch.is_autocast_enabled = lambda *_: True
    roles_module.sampling_copies = lambda model: half_copies(_linear_layers(model))
    return roles


def measure(roles, sizes, limit: int, rows: int) -> dict[str, dict[str, float]]:
    """Predicted and measured bytes of the three parts of an update at one limit, all rows as long as they can be."""
    from lite_c2f.coarse.advantage import Advantages
    from lite_c2f.coarse.rollout import Rollout, RolloutBatches, role_outputs
    from lite_c2f.coarse.update import Minibatch, gradients
    from lite_c2f.config.loading import load_config
    from lite_c2f.memory.sizes import PROMPT_TOKENS
    from lite_c2f.sampling import Sampling, sample

    settings = load_config({}, [f"coarse.micro_batch={rows}", f"coarse.sampling_batch={4 * rows}"]).coarse
    batches = RolloutBatches.of(settings)
    width, vocabulary = PROMPT + limit, roles.lm_head.weight.shape[0]
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, vocabulary, (4 * rows, PROMPT), generator=draw).tolist()

    with roles.sampling("policy"):
        eos = [sample(roles.model, prompts[:1], Sampling(4, temperature=0), eos_ids=[], pad_id=PAD).tokens[0][-1]]

    def sampling() -> None:
        with roles.sampling("policy"):
            # a few tokens each, but slots as long as the limit asks for: the first row may go on, and ends by itself
            limits = [limit, *[4] * (len(prompts) - 1)]
            greedy = Sampling(limit, temperature=0)
            sample(roles.model, prompts, greedy, eos_ids=eos, pad_id=PAD, batch=4 * rows, limits=limits)

    both = 2 * rows  # two micro-batches: gradients of the first are there while the second is computed
    tokens = torch.randint(3, vocabulary, (both, width), generator=draw)
    mask = torch.zeros(both, width - 1, dtype=torch.bool)
    mask[:, PROMPT - 1 :] = True
    flat = torch.zeros(mask.shape)
    rollout = Rollout(tokens, mask, [width] * both, flat, flat, flat, flat, flat[:, 0], None)
    minibatch = Minibatch(rollout, Advantages(flat + 1.0, flat), range(both), int(mask.sum()))

    def scoring() -> None:
        role_outputs(roles, "policy", tokens, mask, rollout.lengths, range(rows), 1.0, batches.update)

    def update() -> None:
        for role in ("critic", "policy"):
            gradients(roles, role, minibatch, settings, batches)
            for parameter in roles.trainable(role):
                parameter.grad = None  # as the optimiser's step does

    update()
    response_tokens = rows * limit
    reading = min(4 * rows * PROMPT, PROMPT_TOKENS)
    cache = sizes.cache(4 * rows * width)
    predicted = {
        "sampling": cache + sizes.adapter_copy + max(sizes.forward(reading), sizes.drawing(4 * rows)),
        "scoring": max(sizes.forward(rows * width), sizes.head(response_tokens, gradients=False)),
        "update": sizes.adapter
        + max(
            sizes.backward(rows * width),
            sizes.dtype * sizes.shape.layers * sizes.shape.hidden * rows * width
            + sizes.head(response_tokens, gradients=True),
        ),
    }
    figures = {}
    for name, work in (("sampling", sampling), ("scoring", scoring), ("update", update)):
        measured = peak_bytes(work)
        figures[name] = {
            "predicted_mib": round(predicted[name] / 2**20, 1),
            "measured_mib": round(measured / 2**20, 1),
            "ratio": round(predicted[name] / measured, 3),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--limits", default="128,512,1024")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    from lite_c2f.memory.sizes import Bytes, Shape

    roles = build(options.hidden, options.layers, options.vocabulary, options.rank)
    h = options.hidden
    shape = Shape(h, options.layers, h * 7 // 2, h, h // 4, options.vocabulary, 8192)
    sizes = Bytes(shape, options.rank, targets=None, dtype=2, quantized=True, checkpointing=True, on_gpu=False)
    limits = {limit: measure(roles, sizes, int(limit), options.rows) for limit in options.limits.split(",")}
    errors = [abs(part["ratio"] - 1) for parts in limits.values() for part in parts.values()]
    result = {
        "benchmark": "memory",
        "unit": "MiB allocated beyond weights, adapters and optimiser",
        "largest_error": round(max(errors), 3),
        "limits": limits,
        "shape": shape._asdict(),
        "rows": options.rows,
        **machine(),
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
