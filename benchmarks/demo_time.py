"""Demo benchmark: seconds of `lite-c2f demo` with the toy models in the cache, and until its first steps.

Reported are the wall time of the whole command, its CPU time, and the wall time until the first line of metrics of each
stage. `--against` is another checkout, such as an earlier version, which takes turns with this one; `ratio` is this
one's CPU time over the other's, which other jobs on the machine change least with one thread. Prints one JSON line
last.

Bytecode of imports is kept, as it is where nobody has forbidden it.

    python benchmarks/demo_time.py [--first] [--against FOLDER] [--repeats 3] [--threads 1] [--out FILE]
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

sys.path[:0] = [str(Path(__file__).parents[1])]

from models import machine, report  # noqa: E402


def measure(checkout: Path, first: bool) -> dict[str, float]:
    """Seconds until each stage's first line of metrics, and until the end, by name; `first`: of the first alone."""
    with tempfile.TemporaryDirectory() as folder:
        run, found = Path(folder) / "run", dict[str, float]()
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        began = time.perf_counter()
        command = [sys.executable, "-m", "lite_c2f", "demo", "--out", str(run)]
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
            ended = 0
            while not ended:
                time.sleep(0.05)
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
                metrics = run / "metrics.jsonl"
                lines = metrics.read_text().split("\n")[:-1] if metrics.is_file() else []
                for stage in {json.loads(line)["stage"] for line in lines}:
                    found.setdefault(f"first_{stage}", time.perf_counter() - began)
                if found and first:
                    process.kill()
                    _, _, usage = os.wait4(process.pid, 0)
                    return found | {"cpu": usage.ru_utime + usage.ru_stime}
            if status:
                log.seek(0)
                raise SystemExit(log.read()[-2000:])
        return found | {"whole": time.perf_counter() - began, "cpu": usage.ru_utime + usage.ru_stime}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--first", action="store_true", help="end with the first step of the reward model")
    parser.add_argument("--against", type=Path, help="another checkout of lite_c2f")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="(default: as PyTorch chooses)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    here = Path(__file__).parents[1]
    checkouts = {"here": here} | ({"against": options.against.resolve()} if options.against else {})
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for repeat in range(options.repeats):
        for name in sorted(checkouts, reverse=bool(repeat % 2)):
            runs[name].append({key: round(value, 2) for key, value in measure(checkouts[name], options.first).items()})
            print(name, runs[name][-1], file=sys.stderr, flush=True)
    result = {
        "benchmark": "demo_time",
        "command": "python benchmarks/demo_time.py " + " ".join(sys.argv[1:]),
        "unit": "seconds",
        **{
            name: {key: round(statistics.median(run[key] for run in of), 2) for key in of[0]}
            for name, of in runs.items()
        },
        "runs": runs,
        **machine(),
    }
    if options.against:
        ratios = [own["cpu"] / other["cpu"] for own, other in zip(runs["here"], runs["against"], strict=True)]
        result["ratio"] = round(statistics.median(ratios), 3)
        result["against_commit"] = subprocess.run(
            ["git", "-C", str(options.against), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip()
    report(result, options.out)


if __name__ == "__main__":
    main()
