"""What Continuous Maximization is for: the same toy run with a growing limit and with the first limit kept.

Trains the reward model once a seed, then the coarse stage in each mode. Prints one JSON line last.

    python benchmarks/length_modes.py [--seeds 0,1,2] [--modes logistic,linear,fixed] [--out FILE]
"""

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

warnings.filterwarnings("ignore")


def run_mode(folder: Path, mode: str, seed: int, reward: Path | None) -> dict:
    """One run up to the coarse stage; the reward model of an earlier one with the same seed is taken over."""
    from lite_c2f.config import load_config
    from lite_c2f.pipeline import train
    from lite_c2f.views import Silent

    config = load_config("configs/toy.yaml", [f"coarse.length.mode={mode}", f"run.seed={seed}"])
    run = folder / f"{mode}-{seed}"
    if reward is not None:
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(config.to_yaml())
        shutil.copytree(reward / "reward", run / "reward")
    train(config, run, ("reward", "coarse"), view=Silent())
    saved = json.loads((run / "coarse" / "metrics.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rewards = [row["reward"] for row in rows if row["stage"] == "coarse"]
    return {
        "mode": mode,
        "seed": seed,
        "reward_first": round(saved["reward_first"], 3),
        "reward_last": round(saved["reward_last"], 3),
        "reward_last_5": round(statistics.fmean(rewards[-5:]), 3),
        "limit_first": saved["limit_first"],
        "limit_last": saved["limit_last"],
        "tokens_sampled": saved["tokens_sampled"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--modes", default="logistic,linear,fixed")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    modes = given.modes.split(",")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in map(int, given.seeds.split(",")):
            for mode in modes:
                reward = None if mode == modes[0] else Path(scratch) / f"{modes[0]}-{seed}"
                rows.append(run_mode(Path(scratch), mode, seed, reward))
                print(json.dumps(rows[-1]), flush=True)
    means = {mode: statistics.fmean(row["reward_last_5"] for row in rows if row["mode"] == mode) for mode in modes}
    result = {
        "benchmark": "length_modes",
        "unit": "mean normalised reward of the last five updates",
        "reward_last_5": {mode: round(value, 3) for mode, value in means.items()},
        "runs": rows,
        "machine": f"{platform.machine()} CPU",
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "trl")},
    }
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
