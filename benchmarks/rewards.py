"""Reward benchmark: what a second reward adapter, and a function, add to the time of a PPO update (toy world).

Runs with one source of reward and with two train the same updates in turn, each in a process of its own and from the
same reward model, `--repeats` times. The second source has a weight of a millionth, so that responses stay as long.
Prints one JSON line last.

    python benchmarks/rewards.py [--config configs/toy.yaml] [--updates 4] [--repeats 3] [--out FILE]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
ROOT = Path(__file__).parents[1]
TINY = "1.0e-6"
FUNCTION = "lite_c2f.reward.functions:repetition"


def train(config: str, overrides: list[str], run: Path) -> None:
    """One stage in a process of its own."""
    command = [sys.executable, "-m", "lite_c2f", "train", config, "--run-dir", str(run), *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])


def seconds_of(run: Path) -> list[tuple[float, float]]:
    """(seconds, mean tokens) of each update after the first, which warms up."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["seconds"], line["tokens"]) for line in lines if line["stage"] == "coarse"][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/toy.yaml")
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-pairs", type=int, default=128, help="of the two reward models (default: 128)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT)]
    from models import machine, report

    with tempfile.TemporaryDirectory() as scratch:
        first, second = Path(scratch) / "first", Path(scratch) / "second"
        for seed, run in enumerate((first, second)):
            train(
                options.config, ["--stage", "reward", f"run.seed={seed}", f"reward.max_pairs={options.max_pairs}"], run
            )
        adapter = f"{{adapter: {second / 'reward' / 'adapter'}, name: second, weight: {TINY}}}"
        function = f"{{function: '{FUNCTION}', weight: {TINY}}}"
        sides = {
            "one adapter": [],
            "two adapters": [f"coarse.rewards=[{{model: trained}}, {adapter}]"],
            "one adapter and a function": [f"coarse.rewards=[{{model: trained}}, {function}]"],
        }
        taken: dict[str, list[float]] = {side: [] for side in sides}
        tokens: dict[str, list[float]] = {side: [] for side in sides}
        for repeat in range(options.repeats):
            for side, overrides in sides.items():
                run = Path(scratch) / "run"
                shutil.rmtree(run, ignore_errors=True)
                shutil.copytree(first, run)
                settings = [
                    "coarse.critic_warmup=1",
                    f"coarse.updates={options.updates + 1}",
                    f"reward.max_pairs={options.max_pairs}",
                ]
                train(options.config, ["--stage", "coarse", *settings, *overrides], run)
                for seconds, mean in seconds_of(run):
                    taken[side].append(seconds)
                    tokens[side].append(mean)
                print(f"{repeat} {side}: {[round(one, 2) for one, _ in seconds_of(run)]}", flush=True)
    medians = {side: statistics.median(values) for side, values in taken.items()}
    result = {
        "benchmark": "rewards",
        "unit": "median seconds per PPO update, ratios to one adapter",
        "ratios": {side: round(value / medians["one adapter"], 3) for side, value in medians.items()},
        "seconds": {side: round(value, 2) for side, value in medians.items()},
        "mean_tokens": {side: round(statistics.fmean(values), 1) for side, values in tokens.items()},
        "config": Path(options.config).name,
        "updates": options.updates,
        "repeats": options.repeats,
        **machine(),
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
