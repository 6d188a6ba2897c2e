"""Jobs of the evidence: their order, and one of them in a process of its own."""

import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Job(NamedTuple):
    """One thing to run."""

    world: str
    seed: int
    name: str

    def folder(self, jobs: Path) -> Path:
        return jobs / f"{self.world}-{self.seed}" / self.name

    def result(self, jobs: Path) -> Path:
        return self.folder(jobs).with_name(f"{self.name}.json")  # with_suffix would cut "at 0.75"


def phases(worlds: list[str], seeds: list[int]) -> Iterator[list[Job]]:
    """Jobs that may run side by side; a phase needs what the one before made. The longest come first."""
    from arms import ARMS, CHECKED, INSTRUCT

    places = [(world, seed) for world in reversed(worlds) for seed in seeds]
    yield [Job(*place, "reward") for place in places]
    yield [Job(*place, name) for place in places for name in (INSTRUCT, *ARMS)]
    yield [Job("harder", seed, name) for seed in seeds[:3] for name in CHECKED if "harder" in worlds]
    yield [Job(*place, "merges") for place in places]


def work(job: Job, jobs: Path) -> dict:
    """Run one job in this process and save its result."""
    warnings.filterwarnings("ignore")
    import torch
    from transformers.utils import logging as of_transformers

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    logging.disable(logging.WARNING)
    from arms import INSTRUCT, run_arm, train_reward_model
    from merges import run_merges
    from smollm import SMOLLM, run_smollm

    folder, rewards = job.folder(jobs), Job(job.world, job.seed, "reward").folder(jobs)
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was stopped
    began = time.perf_counter()
    if job.world == SMOLLM:
        figures = run_smollm(job, folder, jobs)
    elif job.name == "reward":
        figures = train_reward_model(job.world, job.seed, folder)
    elif job.name == "merges":
        coarse, direct = (Job(job.world, job.seed, name).folder(jobs) for name in ("logistic", INSTRUCT))
        figures = run_merges(job.world, job.seed, coarse, direct, rewards, folder)
    else:
        figures = run_arm(job.world, job.seed, job.name, folder, rewards)
    result = {**job._asdict(), **figures, "job_seconds": round(time.perf_counter() - began, 1)}
    file = job.result(jobs)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".partial")
    unfinished.write_text(json.dumps(result))
    unfinished.replace(file)
    return result
