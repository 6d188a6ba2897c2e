"""Thread benchmark: the OpenMP wait settings of a CPU run, alone and beside one and two other busy processes.

Each setting runs in a process of its own, from Python (`import lite_c2f`): the sampler on a SmolLM2-shaped model (24
prompts, 12 slots, 48 tokens, random weights, float32), and forward and backward passes of the same with LoRA over NF4.
Prints one JSON line last: tokens per second and seconds per step by setting and number of busy processes.

    python benchmarks/threads.py [--threads 2] [--repeats 3] [--out FILE]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS: dict[str, dict[str, str]] = {
    "libgomp's own": {"GOMP_SPINCOUNT": ""},  # which is no number: its default
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=100": {"GOMP_SPINCOUNT": "100"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BUSY = (0, 1, 2)
VOCABULARY, PROMPT, SLOTS, ROWS, CAP = 49152, 48, 12, 24, 48


def measure(folder: Path) -> dict[str, float]:
    """Tokens per second of one rollout, and seconds of one forward and backward pass, in this process."""
    import torch

    from lite_c2f.backbone.load import load_model
    from lite_c2f.backbone.roles import Roles
    from lite_c2f.config.loading import load_config
    from lite_c2f.config.settings import Lora
    from lite_c2f.sampling import Sampling, sample

    roles = Roles(load_model(str(folder), load_config({})), Lora(r=16, alpha=32), ("policy",))
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, VOCABULARY, (ROWS, PROMPT), generator=draw).tolist()
    rows = torch.randint(3, VOCABULARY, (8, PROMPT + 44), generator=draw)

    def rollout(cap: int) -> float:
        began = time.perf_counter()
        with roles.sampling("policy"):
            responses = sample(roles.model, prompts, Sampling(cap), eos_ids=[], pad_id=0, batch=SLOTS)
        return sum(map(len, responses.tokens)) / (time.perf_counter() - began)

    def step() -> float:
        began = time.perf_counter()
        with roles.use("policy", train=True):
            roles.model(input_ids=rows, logits_to_keep=1).logits.float().sum().backward()
        return time.perf_counter() - began

    rollout(4), step()
    return {"tokens_per_s": rollout(CAP), "step_seconds": step()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--settings", help="some of them, by place: 0,1")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child)))
        return
    from models import machine, report, small_mistral

    chosen = list(SETTINGS)
    if options.settings:
        chosen = [chosen[int(place)] for place in options.settings.split(",")]
    measured: dict[str, dict[str, dict[str, list[float]]]] = {name: {} for name in chosen}
    with tempfile.TemporaryDirectory() as scratch:
        small_mistral(Path(scratch), VOCABULARY, shape="smollm2")
        for _ in range(options.repeats):
            for busy in BUSY:
                others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
                try:
                    for name in chosen:
                        figures = run_child(Path(scratch), SETTINGS[name], options.threads)
                        print(name, busy, {key: round(value, 2) for key, value in figures.items()}, flush=True)
                        for key, value in figures.items():
                            measured[name].setdefault(str(busy), {}).setdefault(key, []).append(value)
                finally:
                    for other in others:
                        other.kill()
    result = {
        "benchmark": "threads",
        "unit": "tokens per second of a rollout; seconds of a forward and backward pass; medians, by busy processes",
        "settings": {
            name: {
                busy: {key: round(statistics.median(values), 2) for key, values in figures.items()}
                for busy, figures in by_busy.items()
            }
            for name, by_busy in measured.items()
        },
        "repeats": options.repeats,
        "threads": options.threads,
        **machine(),
    }
    report(result, options.out)


def run_child(folder: Path, setting: dict[str, str], threads: int) -> dict[str, float]:
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, **setting}
    root = Path(__file__).parents[1]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", __file__, "--child", str(folder)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
