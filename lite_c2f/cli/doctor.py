"""Doctor: versions, GPU, 4-bit check, disk and tokenizers for a problem report; and the state of a run."""

import os
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from lite_c2f.cli.program import program
from lite_c2f.errors import C2FError, RunError

STATE_TEXTS = {
    "running": "running",
    "stopping": "running; stops after this step",
    "finished": "finished: everything is published",
    "failed": "failed",
    "killed": "stopped without a message: killed, or the machine went down",
    "interrupted": "stopped by a signal; its work is saved",
    "unfinished": "stopped; the requested stages are done",
    "unknown": "stopped; there is no record of how",
}
NEEDED_GIB = 5.0  # for adapters, checkpoints and libraries' caches; for models see `plan`


WIDTHS = (64, 576, 4096)  # input features that 4-bit layers are tried with: the toy pair's, SmolLM2's, a 7B model's


def system_report(models: Sequence[Path] = ()) -> dict[str, Any]:
    """{name: value} of the system, and a list of `problems` with remedies; it contains no secrets.

    models: folders whose tokenizers are checked too, and whether llama.cpp's converter can read them.
    """
    import psutil
    import torch

    from lite_c2f import __version__
    from lite_c2f.cli.model_check import conversion_report
    from lite_c2f.runtime.accelerators import accelerators
    from lite_c2f.toy.build import cache_root

    report: dict[str, Any] = {
        "lite_c2f": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    for requirement in requirements():
        try:
            report[requirement.name] = version(requirement.name)
        except PackageNotFoundError:
            report[requirement.name] = "missing"
    report["cpu threads"] = torch.get_num_threads()
    memory = psutil.virtual_memory()
    report["memory"] = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    report["torch built for"] = _torch_build(torch.version.cuda, torch.version.hip)
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        report["gpu"] = torch.cuda.get_device_name()
        report["gpus"] = torch.cuda.device_count()
        report["gpu memory"] = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        report["bfloat16"] = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        report["gpu"] = ", ".join(f"none of CUDA; {kind} (untried)" for kind in accelerators()) or "none"
    report["4-bit"] = check_four_bit()
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    report["disk free"] = f"{free_gib:.1f} GiB"
    report["toy models"] = str(cache_root())
    report["hub token"] = "set" if os.environ.get("HF_TOKEN") else "not in HF_TOKEN"
    report["problems"] = problems(report, free_gib)
    for model in models:
        problem = tokenizer_problem(model)
        report[f"tokenizer of {model}"] = "gives texts back unchanged" if problem is None else "see problems"
        report[f"to GGUF {model}"], found = conversion_report(model)
        report["problems"] += ([] if problem is None else [problem]) + found
    return report


def requirements() -> list[Any]:
    """Requirements of lite_c2f (`packaging` objects), without those of its extras."""
    from packaging.requirements import Requirement

    return [requirement for requirement in map(Requirement, requires("lite_c2f") or ()) if requirement.marker is None]


def tokenizer_problem(model: Path) -> str | None:
    """Problem and remedy of the tokenizer in a model folder; None if it decodes texts unchanged."""
    from lite_c2f.backbone.load import load_tokenizer
    from lite_c2f.backbone.round_trip import check_round_trip

    try:
        check_round_trip(load_tokenizer(str(model)), str(model))
    except C2FError as error:
        return str(error)
    return None


def problems(report: dict[str, Any], free_gib: float) -> list[str]:
    """Problems that keep a run from working here, each with its remedy."""
    sentences = []
    for requirement in requirements():
        if (problem := requirement_problem(str(requirement))) is not None:
            sentences.append(problem)
    if not str(report["4-bit"]).startswith("works"):
        sentences.append(f"4-bit weights: {report['4-bit']}; reinstall bitsandbytes for this system")
    if report["gpu"] == "none" and (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()):
        sentences.append(
            f"there is an NVIDIA driver, but torch {report['torch']} (for {report['torch built for']}) sees no GPU; "
            "install torch for your CUDA version, and check CUDA_VISIBLE_DEVICES"
        )
    if free_gib < NEEDED_GIB:
        sentences.append(f"only {free_gib:.1f} GiB free on this disk; make room: a run keeps adapters and checkpoints")
    return sentences


def requirement_problem(requirement: str) -> str | None:
    """Problem and remedy of a required package; None if it is installed as required."""
    from packaging.requirements import Requirement

    required = Requirement(requirement)
    try:
        installed = version(required.name)
    except PackageNotFoundError:
        return f"{required.name} is missing; pip install '{required}'"
    if not required.specifier.contains(installed, prereleases=True):
        return f"{required.name} is {installed}; pip install '{required}'"
    return None


def run_report(run: Path) -> dict[str, Any]:
    """Progress of a run, its checkpoints, the process that works in it, the last log line, and the next command.

    Raises RunError if there is no run.
    """
    from lite_c2f.config.loading import load_config
    from lite_c2f.runs.manifest import check_run, read_manifest
    from lite_c2f.runs.places import check_model_folders
    from lite_c2f.runs.published import STAGES, is_published
    from lite_c2f.runs.state import read_run_progress
    from lite_c2f.runtime.log import last_line

    if not (run / "run.json").is_file():
        got = f"'{run}' is no run directory and no model folder"
        raise RunError.because(got, "one with run.json or config.json in it", "make a run with `lite-c2f demo`")
    manifest = read_manifest(run)
    report: dict[str, Any] = {"run": str(run), "made with": manifest.get("lite_c2f", "?")}
    problems: list[str] = []
    for stage in STAGES:
        report[stage], damaged = stage_report(run, stage, is_published(run, stage))
        problems += damaged
    report["comparison"] = "made" if (run / "evaluation" / "actors.json").is_file() else "not made"
    try:
        config = load_config(run / "config.yaml")
        check_run(run, config)
        check_model_folders(run, config, manifest["models"])
    except C2FError as error:
        problems.append(str(error))
    progress, last_log_line = read_run_progress(run), last_line(run)
    worker = progress.worker
    report["in use"] = str(worker or "no")
    report["state"] = STATE_TEXTS[progress.state] + (f": {progress.message}" if progress.message else "")
    if progress.current is not None and progress.current.part is not None:
        report["state"] += f", {progress_text(progress.current)}"
    report["log ends"] = last_log_line or "no log"
    unfinished = report["comparison"] == "not made"
    if worker is None and unfinished and not problems:
        report["continue with"] = f"{program()} train {run / 'config.yaml'}"
    report["problems"] = problems
    return report


def progress_text(progress: Any) -> str:
    """Progress of a process as text: the part, its step, and the time left if known."""
    steps = "" if progress.step is None else f" {progress.step} of {progress.total_steps or '?'} {progress.unit}"
    left = "" if progress.seconds_left is None else f", about {progress.seconds_left / 60:.0f} minutes left in it"
    return f"{progress.part}{steps}{left}"


def stage_report(run: Path, stage: str, published: bool) -> tuple[str, list[str]]:
    """(one line about a stage, a sentence for each damaged checkpoint)."""
    from lite_c2f.storage.checkpoints import CheckpointStore
    from lite_c2f.storage.files import read_lines

    store = CheckpointStore(run / stage / "checkpoints")
    intact, damaged = store.newest_folder()
    if published:
        return "published", damaged
    rows = [row for row in read_lines(run / "metrics.jsonl") if row.get("stage") == stage]
    parts = [f"{rows[-1]['step']} steps done" if rows else "not begun"]
    if rows and "reward" in rows[-1]:
        parts.append(f"reward {rows[-1]['reward']:+.2f}, limit {rows[-1]['limit']:.0f}")
    if intact is not None:
        best = store.best_folder(checkpoint_scores(run, rows)) if stage == "coarse" else None
        parts.append(f"goes on from {intact.name}" + (f", best {best.name}" if best not in (None, intact) else ""))
    return "; ".join(parts), damaged


def checkpoint_scores(run: Path, rows: list[dict[str, Any]]) -> dict[int, float]:
    """Rewards of the policies in a coarse stage's checkpoints; empty if the settings cannot be read."""
    from lite_c2f.coarse.checkpoints import policy_rewards
    from lite_c2f.config.loading import load_config

    try:
        return policy_rewards([row["reward"] for row in rows], load_config(run / "config.yaml"))
    except (C2FError, KeyError):
        return {}


def _torch_build(cuda: str | None, hip: str | None) -> str:
    return f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU"


def check_four_bit() -> str:
    """Result of comparing 4-bit layers with their unpacked weights on this device, for each dtype in use."""
    import torch

    from lite_c2f.backbone.four_bit import describe, trials

    try:
        on_gpu = torch.cuda.is_available()
        device = torch.device("cuda" if on_gpu else "cpu")
        dtypes = [torch.float32] + [torch.float16] * on_gpu
        dtypes += [torch.bfloat16] * (not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False))
        results = trials(device, dtypes, WIDTHS)
    except Exception as error:
        return f"fails: {' '.join(str(error).split())[:120]}"
    bad = [trial for trial in results if not trial.passed]
    if bad:
        return f"wrong: {describe(max(bad, key=lambda trial: trial.error / trial.tolerance), device)}"
    largest = (max(trial.error for trial in results if trial.dtype == dtype and trial.product) for dtype in dtypes)
    errors = (f"{str(dtype).removeprefix('torch.')} {error:.1g}" for dtype, error in zip(dtypes, largest, strict=True))
    return f"works (relative errors: {', '.join(errors)}; packing {results[0].error:.3f})"
