"""Stage-memory benchmark: peak resident memory of each stage of configs/smollm2.yaml, on real weights.

Every stage runs by the command that people type, in a process of its own, with few steps: 64 pairs, two updates whose
limit is the longest from the start, and the comparison as it is. Needs the extra [smollm2]. Prints one JSON line last.

    python benchmarks/stage_memory.py [--set model.quantization=nf4] [--out FILE]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
sys.path[:0] = [str(Path(__file__).parents[1])]

from models import machine, report  # noqa: E402

from lite_c2f.config.loading import load_config  # noqa: E402
from lite_c2f.smollm import CONFIG  # noqa: E402

FEW_STEPS = ("reward.max_pairs=64", "coarse.updates=2", "coarse.length.mode=fixed", "coarse.length.start={longest}")


def measure(arguments: list[str], log: Path) -> dict[str, Any]:
    """Peak resident memory, wall and CPU seconds of a command."""
    began = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, "-m", "lite_c2f", *arguments], stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(log.read_text()[-2000:])
    seconds = {"wall_seconds": time.perf_counter() - began, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    return {"peak_mib": round(usage.ru_maxrss / 1024), **{key: round(value, 1) for key, value in seconds.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings to change")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    longest = load_config(CONFIG).coarse.length.max
    settings = [text.format(longest=longest) for text in FEW_STEPS] + options.set
    stages = {}
    with tempfile.TemporaryDirectory() as folder:
        run, log = Path(folder) / "run", Path(folder) / "log"
        commands = {
            stage: ["train", str(CONFIG), *settings, "--run-dir", str(run), "--stage", stage]
            for stage in ("reward", "coarse", "fine")
        }
        for name, command in {**commands, "comparison": ["eval", str(run)]}.items():
            stages[name] = measure(command, log)
            print(name, stages[name], file=sys.stderr, flush=True)
    result = {
        "benchmark": "stage_memory",
        "command": "python benchmarks/stage_memory.py " + " ".join(sys.argv[1:]),
        "unit": "MiB resident at most, of the process of a stage",
        "settings": settings,
        "stages": stages,
        **machine(),
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
