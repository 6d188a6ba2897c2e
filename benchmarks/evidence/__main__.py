"""Does the method do what it says? Every claim of docs/evidence.md, run anew: two toy worlds, five seeds each.

Jobs run in as many processes as there are cores, a thread each. What is done is kept in --jobs, so that the same
command goes on after a stop. At the end all of it is in benchmarks/results/evidence.json, and docs/evidence.md with its
plots is made from that. About an hour on two cores.

    python benchmarks/evidence [--jobs FOLDER] [--seeds 0,1,2,3,4] [--worlds toy,harder] [--page-only]
"""

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))  # also where lite_c2f is not installed
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "evidence.json"


class Job(NamedTuple):
    """Something to run, by its names."""

    world: str
    seed: int
    name: str

    def folder(self, jobs: Path) -> Path:
        return jobs / f"{self.world}-{self.seed}" / self.name


def phases(worlds: list[str], seeds: list[int]) -> Iterator[list[Job]]:
    """Jobs that may run side by side; a phase needs what the one before made. The longest come first."""
    from arms import ARMS, INSTRUCT

    places = [(world, seed) for world in reversed(worlds) for seed in seeds]
    yield [Job(*place, "reward") for place in places]
    yield [Job(*place, name) for place in places for name in (INSTRUCT, *ARMS)]
    yield [Job(*place, "merges") for place in places]


def work(job: Job, jobs: Path) -> dict:
    """Run one job in this process and keep what it found."""
    warnings.filterwarnings("ignore")
    import logging
    import shutil

    import torch
    from transformers.utils import logging as of_transformers

    torch.set_num_threads(1)
    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    logging.disable(logging.WARNING)
    from arms import run_arm, train_reward_model
    from merges import run_merges

    folder, rewards = job.folder(jobs), Job(job.world, job.seed, "reward").folder(jobs)
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was stopped
    began = time.perf_counter()
    if job.name == "reward":
        found = train_reward_model(job.world, job.seed, folder)
    elif job.name == "merges":
        coarse = Job(job.world, job.seed, "logistic").folder(jobs)
        found = run_merges(job.world, job.seed, coarse, rewards, folder)
    else:
        found = run_arm(job.world, job.seed, job.name, folder, rewards)
    result = {**job._asdict(), **found, "job_seconds": round(time.perf_counter() - began, 1)}
    file = folder.with_suffix(".json")
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".partial")
    unfinished.write_text(json.dumps(result))
    unfinished.replace(file)
    return result


def run_all(jobs: Path, worlds: list[str], seeds: list[int], processes: int) -> list[dict]:
    """All jobs that are not done yet, phase by phase; returns every result, in a fixed order."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    everything = list(phases(worlds, seeds))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with (
        Progress(*columns, TimeRemainingColumn()) as bar,
        ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool,
    ):
        task = bar.add_task("evidence", total=sum(map(len, everything)))
        for phase in everything:
            waiting = [job for job in phase if not job.folder(jobs).with_suffix(".json").is_file()]
            bar.advance(task, len(phase) - len(waiting))
            for done in as_completed([pool.submit(work, job, jobs) for job in waiting]):
                result = done.result()
                bar.console.print(f"{result['world']} {result['seed']} {result['name']}: {result['job_seconds']} s")
                bar.advance(task)
    ordered = sorted(job for phase in everything for job in phase)
    return [json.loads(job.folder(jobs).with_suffix(".json").read_text()) for job in ordered]


def train_models(worlds: list[str]) -> None:
    """The worlds' models, before several processes would each train them."""
    from worlds import models_of

    for world in worlds:
        models_of(world)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=Path, default=ROOT / "runs" / "evidence")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--worlds", default="toy,harder")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--page-only", action="store_true", help="make docs/evidence.md from the committed results")
    given = parser.parse_args()
    if not given.page_only:
        seeds, worlds = [int(seed) for seed in given.seeds.split(",")], given.worlds.split(",")
        began = time.perf_counter()
        train_models(worlds)
        os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")  # of the processes to come
        results = run_all(given.jobs, worlds, seeds, given.processes)
        write_results(results, time.perf_counter() - began)
    from page import make_page

    make_page(json.loads(RESULTS.read_text()), ROOT / "docs")
    print(f"wrote {RESULTS.relative_to(ROOT)} and docs/evidence.md")


def write_results(results: list[dict], seconds: float) -> None:
    """benchmarks/results/evidence.json: a line a job, so that changes can be read."""
    import platform
    from importlib.metadata import version

    head = {
        "benchmark": "evidence",
        "command": "python benchmarks/evidence",
        "unit": "rewards in spreads of the reward model; tokens; seconds of one process",
        "seconds": round(seconds),
        "machine": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "trl")},
    }
    lines = ",\n".join(json.dumps(result) for result in results)
    RESULTS.write_text(json.dumps(head, indent=2).removesuffix("\n}") + f',\n  "jobs": [\n{lines}\n]\n}}\n')


if __name__ == "__main__":
    main()
