"""Checkpoint benchmark: what one of the PPO loop costs at the shape of Mistral-7B, against an update.

Saved and restored are the real ones: policy and critic of rank 16 on all linear layers of 32 layers of width 4096, the
critic's head, and both AdamW states, through `TrainState` and `CheckpointStore` (hashed, flushed to the disk, renamed).
The frozen base plays no part in a checkpoint: its layers share one layer's weights here, so that it fits anywhere.

An update at this shape needs a GPU. Without one it is bounded from below: its floating-point operations over the peak
of an RTX 4090 (165 TFLOP/s, bfloat16), sampling counted as one forward pass: real updates take several times as long.

    python benchmarks/checkpoint.py --out benchmarks/results/checkpoint.json
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from models import machine, report
from transformers import MistralConfig, MistralForCausalLM

from lite_c2f.backbone.heads import ScalarHead
from lite_c2f.backbone.roles import Roles
from lite_c2f.coarse.state import TrainState
from lite_c2f.coarse.train import initial_state
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Config
from lite_c2f.data.records import Prompt, Turn
from lite_c2f.runs.corpus import Corpus
from lite_c2f.storage.checkpoints import CheckpointStore
from lite_c2f.storage.files import sync

CONFIG = Path(__file__).parents[1] / "configs" / "mistral-7b-24gb.yaml"
PARAMETERS = 7.24e9
PEAK = 165e12  # floating-point operations per second
PROMPT = 128  # tokens, on average


def shared_mistral(layers: int, hidden: int) -> MistralForCausalLM:
    """A causal language model whose layers share the weights of the first."""
    settings = MistralConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=1024,
    )
    with torch.device("meta"):
        model = MistralForCausalLM(settings)
    first = model.model.layers[0].to_empty(device="cpu").bfloat16()
    shared = dict(first.named_parameters())
    for layer in model.model.layers:
        for name, module in layer.named_modules():
            for key in [key for key, weight in module._parameters.items() if weight is not None]:
                module._parameters[key] = shared[f"{name}.{key}".lstrip(".")]
    for part in (model.model.embed_tokens, model.model.norm, model.lm_head):
        part.to_empty(device="cpu").bfloat16()
    model.model.rotary_emb = type(model.model.rotary_emb)(settings)
    return model


def train_state(config: Config, layers: int, hidden: int) -> TrainState:
    """The loop after an update: adapters that have moved, optimisers with both moments."""
    roles = Roles(shared_mistral(layers, hidden), config.lora, ("policy", "critic", "reward"))
    roles.add_head("critic", ScalarHead.of(torch.zeros(1, hidden)))
    prompts = [Prompt((Turn("human", "why"),), {})]
    state = initial_state(config, Corpus([], [], prompts, prompts, {}), roles, None, None)
    for name, optimizer in state.optimizers.items():
        for weight in roles.trainable(name):
            weight.requires_grad_(True).grad = torch.full_like(weight, 1e-3)
        optimizer.step()
        optimizer.zero_grad()
        for weight in roles.trainable(name):
            weight.requires_grad_(False)
    state.step = 1
    return state


def operations(config: Config, limit: int) -> float:
    """Floating-point operations of an update whose responses have half the limit, on average.

    2 per parameter and token for a forward pass: sampling, reward, reference, critic and policy; 6 for forward and
    backward without the base's weight gradients and with recomputing.
    """
    coarse = config.coarse
    tokens = coarse.rollouts * (PROMPT + limit / 2)
    passes = 2 * 5 + 6 * coarse.epochs * 2
    return passes * PARAMETERS * tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config = load_config(CONFIG, ["coarse.sampling_batch=8", "coarse.micro_batch=1"])
    now = train_state(config, options.layers, options.hidden)
    saving, restoring, copying = [], [], []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        store = CheckpointStore(Path(folder) / "checkpoints", config.run.keep_checkpoints)
        size = 0
        for _ in range(options.repeats):
            now.step += 1
            began = time.perf_counter()
            checkpoint = now.checkpoint()
            store.save(checkpoint)
            saving.append(time.perf_counter() - began)
            size = sum(file.stat().st_size for file in store.folders()[-1].iterdir())
            began = time.perf_counter()
            newest, _ = store.newest()
            assert newest is not None
            now.restore(newest)
            restoring.append(time.perf_counter() - began)
            began = time.perf_counter()
            (Path(folder) / "plain").write_bytes(bytes(size))
            sync(Path(folder) / "plain")
            copying.append(time.perf_counter() - began)
    seconds = statistics.median(saving)
    limits = {name: getattr(config.coarse.length, name) for name in ("start", "max")}
    least = {name: operations(config, limit) / PEAK for name, limit in limits.items()}
    result = {
        "benchmark": "checkpoint",
        "mib": round(size / 2**20, 1),
        "seconds_to_save": round(seconds, 2),
        "seconds_to_restore": round(statistics.median(restoring), 2),
        "plain_write_and_flush_seconds": round(statistics.median(copying), 2),
        "all_saves": [round(value, 2) for value in saving],
        "least_seconds_of_an_update": {name: round(value, 1) for name, value in least.items()},
        "share_of_such_an_update": {name: round(seconds / value, 4) for name, value in least.items()},
        "share_when_saved_every": {
            str(config.run.checkpoint_every): {
                name: round(seconds / value / config.run.checkpoint_every, 4) for name, value in least.items()
            }
        },
        "machine": machine(),
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
