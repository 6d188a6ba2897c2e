"""Stages of a run, and the files whose existence means that a stage is published. Imports no torch."""

from pathlib import Path

from lite_c2f.errors import RunError
from lite_c2f.storage.files import read_json

STAGES = ("reward", "coarse", "fine")
COMPARISON = "comparison"  # follows the stages
FINISHED = {
    "reward": "reward/metrics.json",
    "coarse": "coarse/metrics.json",
    "fine": "fine/model/config.json",
    COMPARISON: "evaluation/actors.json",
}


def is_published(run: Path, stage: str) -> bool:
    """Whether this stage, or the comparison, has its result."""
    return (run / FINISHED[stage]).is_file()


def is_finished(run: Path) -> bool:
    """Whether all stages of a run and the comparison are published."""
    return all(is_published(run, stage) for stage in FINISHED)


def coarse_adapter(run: Path, use: str) -> Path:
    """The adapter of the Coarse Actor: the last policy's, or the best one's with `coarse.use=best` where it is kept."""
    best = run / "coarse" / "best" / "adapter"
    return best if use == "best" and best.is_dir() else run / "coarse" / "adapter"


def check_run_folder(run: Path) -> None:
    """Raise RunError unless this is a run directory."""
    if not (run / "run.json").is_file():
        raise RunError.because(f"'{run}' is no run directory", "one made by lite-c2f", "make one with `lite-c2f demo`")


def check_actors_published(run: Path) -> None:
    """Raise RunError unless this is a run with a Coarse and a Fine Actor."""
    check_run_folder(run)
    for stage in ("coarse", "fine"):
        if not is_published(run, stage):
            raise RunError.because(
                f"'{run}' has no {stage} stage", "a finished run", f"finish it: lite-c2f train {run}"
            )


def merged_ratio(file: Path) -> tuple[float, bool]:
    """The ratio in a merge's report, and whether all weights have it. Raises RunError for a file without a ratio."""
    try:
        report = read_json(file)
        return float(report["ratio"]), not report.get("layer_ratios")
    except (AttributeError, KeyError, TypeError, ValueError):
        raise RunError.because(
            f"'{file}' has no ratio", "the report of a merge", "train the fine stage again"
        ) from None
