"""Evidence: every claim of docs/evidence.md, measured anew: two toy worlds with five seeds each, or SmolLM2 with three.

Jobs run in as many processes as there are cores, a thread each. Finished jobs are in --jobs, so that the same
command continues after a stop. At the end all of it is in benchmarks/results/evidence.json (evidence_smollm2.json),
from which docs/evidence.md and its plots are made. On two cores an hour or a little more for the toy worlds, and four
hours for SmolLM2.

    python benchmarks/evidence [--jobs FOLDER] [--seeds 0,1,2,3,4] [--worlds toy,harder] [--page-only]
    python benchmarks/evidence --model smollm2 [--jobs FOLDER] [--seeds 0,1,2] [--arms logistic,dpo] [--page-only]
"""

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # also where lite_c2f is not installed
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "evidence.json"
REAL = RESULTS.with_name("evidence_smollm2.json")
QUANTIZED = RESULTS.with_name("evidence_smollm2_nf4.json")  # the same with NF4 weights, measured once


def run_all(everything: list[list[Any]], jobs: Path, processes: int) -> list[dict]:
    """All jobs that are not done yet, phase by phase; returns every result, in a fixed order."""
    from jobs import work
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with (
        Progress(*columns, TimeRemainingColumn()) as bar,
        ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool,
    ):
        task = bar.add_task("evidence", total=sum(map(len, everything)))
        for phase in everything:
            waiting = [job for job in phase if not job.result(jobs).is_file()]
            bar.advance(task, len(phase) - len(waiting))
            for done in as_completed([pool.submit(work, job, jobs) for job in waiting]):
                result = done.result()
                bar.console.print(f"{result['world']} {result['seed']} {result['name']}: {result['job_seconds']} s")
                bar.advance(task)
    ordered = sorted(job for phase in everything for job in phase)
    return [json.loads(job.result(jobs).read_text()) for job in ordered]


def train_models(worlds: list[str]) -> None:
    """The worlds' models, before several processes would each train them."""
    from worlds import models_of

    for world in worlds:
        models_of(world)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("toy", "smollm2"), default="toy")
    parser.add_argument("--jobs", type=Path, help="folder of finished jobs (default: runs/evidence, or -smollm2)")
    parser.add_argument("--seeds", help="default: 0,1,2,3,4, or 0,1,2 of smollm2")
    parser.add_argument("--worlds", default="toy,harder")
    parser.add_argument("--arms", help="of smollm2 (default: all)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--page-only", action="store_true", help="make docs/evidence.md from the committed results")
    options = parser.parse_args()
    if not options.page_only:
        measure(options)
    from page import make_page

    make_page(*(json.loads(file.read_text()) for file in (RESULTS, REAL, QUANTIZED)), ROOT / "docs")
    print("wrote docs/evidence.md")


def measure(options: argparse.Namespace) -> None:
    """Run the jobs that are not done and write the results of all."""
    real = options.model == "smollm2"
    seeds = [int(seed) for seed in (options.seeds or ("0,1,2" if real else "0,1,2,3,4")).split(",")]
    jobs = options.jobs or ROOT / "runs" / ("evidence-smollm2" if real else "evidence")
    if real:
        from smollm import ARMS, phases

        everything = list(phases(seeds, options.arms.split(",") if options.arms else list(ARMS)))
    else:
        from jobs import phases as toy_phases

        worlds = options.worlds.split(",")
        train_models(worlds)
        everything = list(toy_phases(worlds, seeds))
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")  # of the processes to come
    write_results(run_all(everything, jobs, options.processes), REAL if real else RESULTS)


def write_results(results: list[dict], file: Path) -> None:
    """Write a file of results with one line per job, so that changes can be read."""
    import platform
    from importlib.metadata import version

    head = {
        "benchmark": "evidence",
        "command": "python benchmarks/evidence" + (" --model smollm2" if file == REAL else ""),
        "unit": "rewards in standard deviations of the reward model; tokens; seconds of one process, a thread each",
        "seconds": round(sum(result["job_seconds"] for result in results)),
        "machine": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "trl")},
    }
    lines = ",\n".join(json.dumps(result) for result in results)
    file.write_text(json.dumps(head, indent=2).removesuffix("\n}") + f',\n  "jobs": [\n{lines}\n]\n}}\n')


if __name__ == "__main__":
    main()
