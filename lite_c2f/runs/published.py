"""Stages of a run, and the files that say a stage is published. Imports no torch."""

from pathlib import Path

STAGES = ("reward", "coarse", "fine")
COMPARISON = "comparison"  # after them, of all actors
FINISHED = {
    "reward": "reward/metrics.json",
    "coarse": "coarse/metrics.json",
    "fine": "fine/model/config.json",
    COMPARISON: "evaluation/actors.json",
}


def is_published(run: Path, stage: str) -> bool:
    """Has this stage, or the comparison, left its result?"""
    return (run / FINISHED[stage]).is_file()


def is_finished(run: Path) -> bool:
    """Are all stages of a run published, and its actors compared?"""
    return all(is_published(run, stage) for stage in FINISHED)
