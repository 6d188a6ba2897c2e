"""What somebody needs to know to help: versions, GPU, whether 4-bit works, disk, tokenizers; and how a run is doing."""

import os
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from lite_c2f.errors import C2FError, RunError

STATES = {
    "running": "running",
    "stopping": "running; it was asked to stop, and finishes its step",
    "finished": "finished: everything is published",
    "failed": "failed",
    "killed": "stopped without a message: killed, or the machine went down",
    "interrupted": "stopped by a signal; what was done is saved",
    "unfinished": "stopped; the stages that were asked for are done",
    "unknown": "stopped; how is not written down",
}
NEEDED_GIB = 5.0  # for adapters, checkpoints and libraries' caches; models need what `plan` says


WIDTHS = (64, 576, 4096)  # input features that 4-bit layers are tried with: the toy pair's, SmolLM2's, a 7B model's


def examine(models: Sequence[Path] = ()) -> dict[str, Any]:
    """A flat block of facts, and under `problems` what has to be mended and how; nothing in it is secret.

    models: folders whose tokenizers are tried too.
    """
    import psutil
    import torch

    from lite_c2f import __version__
    from lite_c2f.toy.build import cache_root

    report: dict[str, Any] = {
        "lite_c2f": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    for requirement in required():
        try:
            report[requirement.name] = version(requirement.name)
        except PackageNotFoundError:
            report[requirement.name] = "missing"
    report["cpu threads"] = torch.get_num_threads()
    memory = psutil.virtual_memory()
    report["memory"] = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    report["torch built for"] = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        report["gpu"] = torch.cuda.get_device_name()
        report["gpus"] = torch.cuda.device_count()
        report["gpu memory"] = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        report["bfloat16"] = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        report["gpu"] = "none"
    report["4-bit"] = four_bit()
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    report["disk free"] = f"{free_gib:.1f} GiB"
    report["toy models"] = str(cache_root())
    report["hub token"] = "set" if os.environ.get("HF_TOKEN") else "not in HF_TOKEN"
    report["problems"] = problems(report, free_gib)
    for model in models:
        problem = tokenizer_problem(model)
        report[f"tokenizer of {model}"] = "gives texts back unchanged" if problem is None else "see problems"
        report["problems"] += [] if problem is None else [problem]
    return report


def required() -> list[Any]:
    """What lite_c2f itself requires, without its extras: `packaging` requirements."""
    from packaging.requirements import Requirement

    return [wanted for wanted in map(Requirement, requires("lite_c2f") or ()) if wanted.marker is None]


def tokenizer_problem(model: Path) -> str | None:
    """What is wrong with the tokenizer in a model folder, and what to do; None where it gives texts back unchanged."""
    from lite_c2f.backbone.load import load_tokenizer
    from lite_c2f.backbone.round_trip import check_round_trip

    try:
        check_round_trip(load_tokenizer(str(model)), str(model))
    except C2FError as error:
        return str(error)
    return None


def problems(report: dict[str, Any], free_gib: float) -> list[str]:
    """What keeps a run from working here, each with what to do."""
    sentences = []
    for requirement in required():
        if (problem := unmet(str(requirement))) is not None:
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


def unmet(requirement: str) -> str | None:
    """What is wrong with an installed package, None where it is as required."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        installed = version(wanted.name)
    except PackageNotFoundError:
        return f"{wanted.name} is missing; pip install '{wanted}'"
    if not wanted.specifier.contains(installed, prereleases=True):
        return f"{wanted.name} is {installed}; pip install '{wanted}'"
    return None


def examine_run(run: Path) -> dict[str, Any]:
    """How far a run is, which checkpoints are whole, who works in it, how its log ends, and what to do next.

    Raises RunError where there is none.
    """
    from lite_c2f.config.loading import load_config
    from lite_c2f.runs.manifest import check_run, read_manifest
    from lite_c2f.runs.places import refuse_gone
    from lite_c2f.runs.published import STAGES, is_published
    from lite_c2f.runs.state import progress_of
    from lite_c2f.runtime.log import last_line

    if not (run / "run.json").is_file():
        got = f"'{run}' is no run directory and no model folder"
        raise RunError.because(got, "one with run.json or config.json in it", "make a run with `lite-c2f demo`")
    manifest = read_manifest(run)
    report: dict[str, Any] = {"run": str(run), "made with": manifest.get("lite_c2f", "?")}
    problems: list[str] = []
    for stage in STAGES:
        report[stage], damaged = stage_of(run, stage, is_published(run, stage))
        problems += damaged
    report["comparison"] = "made" if (run / "evaluation" / "actors.json").is_file() else "not made"
    try:
        config = load_config(run / "config.yaml")
        check_run(run, config)
        refuse_gone(run, config, manifest["models"])
    except C2FError as error:
        problems.append(str(error))
    progress, line = progress_of(run), last_line(run)
    worker = progress.worker
    report["in use"] = str(worker or "no")
    report["state"] = STATES[progress.state] + (f": {progress.message}" if progress.message else "")
    if progress.current is not None and progress.current.part is not None:
        report["state"] += f", {doing(progress.current)}"
    report["log ends"] = line or "no log"
    unfinished = report["comparison"] == "not made"
    if worker is None and unfinished and not problems:
        report["continue with"] = f"lite-c2f train {run / 'config.yaml'}"
    report["problems"] = problems
    return report


def doing(progress: Any) -> str:
    """What a process is at, in words: the part, its step, and the time left where that is known."""
    steps = "" if progress.step is None else f" {progress.step} of {progress.of or '?'} {progress.unit}"
    left = "" if progress.seconds_left is None else f", about {progress.seconds_left / 60:.0f} minutes left in it"
    return f"{progress.part}{steps}{left}"


def stage_of(run: Path, stage: str, published: bool) -> tuple[str, list[str]]:
    """A stage in a line, and a sentence for each checkpoint that is damaged."""
    from lite_c2f.storage.checkpoints import CheckpointStore
    from lite_c2f.storage.files import read_lines

    store = CheckpointStore(run / stage / "checkpoints")
    whole, damaged = store.newest_folder()
    if published:
        return "published", damaged
    lines = [line for line in read_lines(run / "metrics.jsonl") if line.get("stage") == stage]
    parts = [f"{lines[-1]['step']} steps done" if lines else "not begun"]
    if lines and "reward" in lines[-1]:
        parts.append(f"reward {lines[-1]['reward']:+.2f}, limit {lines[-1]['limit']:.0f}")
    if whole is not None:
        best = store.best_folder(scores_of(run, lines)) if stage == "coarse" else None
        parts.append(f"goes on from {whole.name}" + (f", best {best.name}" if best not in (None, whole) else ""))
    return "; ".join(parts), damaged


def scores_of(run: Path, lines: list[dict[str, Any]]) -> dict[int, float]:
    """What the policies of a coarse stage's checkpoints earned; nothing where the settings cannot be read."""
    from lite_c2f.coarse.checkpoints import policy_rewards
    from lite_c2f.config.loading import load_config

    try:
        return policy_rewards([line["reward"] for line in lines], load_config(run / "config.yaml"))
    except (C2FError, KeyError):
        return {}


def four_bit() -> str:
    """Whether 4-bit layers compute on this device what their unpacked weights compute, in each type they may use."""
    import torch

    from lite_c2f.backbone.four_bit import describe, trials

    try:
        on_gpu = torch.cuda.is_available()
        device = torch.device("cuda" if on_gpu else "cpu")
        dtypes = [torch.float32] + [torch.float16] * on_gpu
        dtypes += [torch.bfloat16] * (not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False))
        tried = trials(device, dtypes, WIDTHS)
    except Exception as error:
        return f"fails: {' '.join(str(error).split())[:120]}"
    bad = [trial for trial in tried if not trial.passed]
    if bad:
        return f"wrong: {describe(max(bad, key=lambda trial: trial.error / trial.tolerance), device)}"
    largest = (max(trial.error for trial in tried if trial.dtype == dtype and trial.product) for dtype in dtypes)
    errors = (f"{str(dtype).removeprefix('torch.')} {error:.1g}" for dtype, error in zip(dtypes, largest, strict=True))
    return f"works (relative errors: {', '.join(errors)}; packing {tried[0].error:.3f})"
