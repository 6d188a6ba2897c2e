"""Manifest of a run directory: which stages are published, with which settings, versions and times."""

import contextlib
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import lite_c2f
from lite_c2f.config.loading import completed, load_config
from lite_c2f.config.settings import Config
from lite_c2f.config.settings_diff import PLACES, differences, without_places
from lite_c2f.errors import ConfigError, EmptyConfigError, RunError
from lite_c2f.runs.models import ModelPair
from lite_c2f.runs.places import refuse_gone
from lite_c2f.runs.published import FINISHED, STAGES, check_actors_published, is_published
from lite_c2f.runtime import distributed
from lite_c2f.storage import lock
from lite_c2f.storage.files import read_json, write_json, write_text

LOADED = {"quantization", "compute_dtype"}  # settings of `model` that say how it is loaded, not which it is
READS = {  # sections of the configuration a stage's result depends on, beside those of the stages before it
    "reward": ("model", "data", "lora", "reward"),
    "coarse": ("coarse",),
    "fine": ("fine",),
}

SETTINGS = {stage: f"{stage}/settings.json" for stage in STAGES}
NUMBERS = {  # that later stages and the summary read
    "reward": ("accuracy", "mean", "std"),
    "coarse": ("limit_first", "limit_last", "reward_first", "reward_last"),
}


def check_stages(run: Path, stages: Sequence[str]) -> None:
    """Refuse unknown stages, and a stage whose forerunner is neither published nor asked for."""
    for stage in stages:
        if stage not in STAGES:
            raise RunError.because(f"stage '{stage}'", "one of " + ", ".join(STAGES), "correct it")
    if not stages:
        raise RunError.because("no stage", "at least one of " + ", ".join(STAGES), "name one")
    for index, stage in enumerate(STAGES):
        missing = [before for before in STAGES[:index] if not is_published(run, before) and before not in stages]
        if stage in stages and missing and not is_published(run, stage):
            raise RunError.because(
                f"stage {stage}: '{run}' has no {missing[0]} stage",
                "the stages before it",
                f"--stage {missing[0]} first",
            )


def check_run(run: Path, config: Config, *, force: bool = False) -> list[str]:
    """Raise RunError when the folder is something else, or has stages made with other settings.

    force: accept other data and settings of the stages, and return them; not another model or shape of the adapters.
    """
    saved = run / "config.yaml"
    if not saved.is_file() and run.is_dir() and not all(is_leftover(path) for path in run.iterdir()):
        raise RunError.because(f"'{run}' is not empty and no run", "a new or empty folder", "choose another run.dir")
    for index, stage in enumerate(STAGES):
        later = [name for name in STAGES[index + 1 :] if is_published(run, name)]
        if later and not is_published(run, stage):
            raise RunError.because(
                f"'{run}' has a {later[0]} stage but not the {stage} stage it was made from",
                "stages that belong together",
                f"remove {run / later[0]}, or bring {run / stage} back",
            )
    if (run / "run.json").is_file():
        read_manifest(run)
    for stage, names in NUMBERS.items():
        if is_published(run, stage):
            _require(run / FINISHED[stage], names)
    if saved.is_file():
        with contextlib.suppress(EmptyConfigError):  # it is written anew; stages have settings of their own
            load_config(saved)
    return [note for stage in STAGES if is_published(run, stage) for note in check_settings(run, stage, config, force)]


def is_leftover(path: Path) -> bool:
    """Is it only what a process that was killed at the very beginning left?"""
    return path.name == lock.NAME or (path.name.startswith(".") and ".partial-" in path.name)


def check_settings(run: Path, stage: str, config: Config, force: bool) -> list[str]:
    """Raise RunError unless a published stage was made with these settings; with `force` return what differs."""
    now = settings_now(stage, config)
    changed = differences(completed(without_places(settings_of(run, stage)), now), now)
    if not changed:
        return []
    listed = "; ".join(f"{key}={then!r}, now {now!r}" for key, then, now in changed[:4])
    forcible = all(key.split(".")[0] in (*STAGES, "data") for key, _, _ in changed)
    following = " and ".join(str(run / name) for name in STAGES[STAGES.index(stage) :] if (run / name).exists())
    if not (force and forcible):
        remedy = ", accept it with --force" if forcible and not force else ""
        raise RunError.because(
            f"'{run}' has a {stage} stage made with {listed}",
            "the same value",
            f"use another --run-dir{remedy}, or remove {following} to train that again",
        )
    return [f"the {stage} stage stays as it was made, with {listed}; remove {following} to train it again"]


def settings_now(stage: str, config: Config) -> dict[str, Any]:
    """The settings on which a stage's result depends, beside those of the stages before it."""
    return config.identity(READS[stage])


def settings_of(run: Path, stage: str) -> dict[str, Any]:
    """The settings a published stage was made with."""
    file = run / SETTINGS[stage]
    return read_json(file) if file.is_file() else settings_now(stage, load_config(run / "config.yaml"))


def save_settings(run: Path, stage: str, config: Config) -> None:
    """Write down what a stage that was just published was made with."""
    write_json(run / SETTINGS[stage], settings_now(stage, config))


def check_processes(config: Config) -> None:
    """Raise ConfigError when a batch cannot be shared out among the processes."""
    count = distributed.world()
    for key, rows in (
        ("reward.batch", config.reward.batch),
        ("coarse.rollouts / coarse.minibatches", config.coarse.rollouts // config.coarse.minibatches),
    ):
        if rows % count:
            near = max(1, round(rows / count)) * count
            got = f"{key} is {rows} with {count} processes"
            raise ConfigError.because(got, f"a multiple of {count}", f"make it {near}, say")


def begun(run: Path) -> bool:
    """Is there anything in this run that was made from its inputs?"""
    return any(is_published(run, stage) for stage in STAGES) or any(run.glob("*/checkpoints/step-*"))


def recorded(run: Path) -> tuple[Config | None, dict[str, str]]:
    """Configuration and fingerprints of the inputs that a run began with; (None, {}) where it has not begun.

    Without a configuration where the run's file is empty.
    """
    if not begun(run):
        return None, {}
    try:
        return load_config(run / "config.yaml"), inputs_of(run)
    except EmptyConfigError:
        return None, inputs_of(run)


def inputs_of(run: Path) -> dict[str, str]:
    """Fingerprints of the inputs that a run began with."""
    inputs = read_manifest(run).get("inputs", {}) if (run / "run.json").is_file() else {}
    return inputs if isinstance(inputs, dict) else {}


def read_manifest(run: Path) -> dict[str, Any]:
    """RUN/run.json. Raises RunError naming it when it is missing, damaged or another program's."""
    manifest = _require(run / "run.json", ("models", "seconds"))
    models, seconds = manifest["models"], manifest["seconds"]
    named = isinstance(models, dict) and models.keys() == {*ModelPair._fields}
    if not (named and all(isinstance(name, str) for name in models.values()) and isinstance(seconds, dict)):
        raise _unlike(run / "run.json", "models (base and instruct) and seconds")
    return manifest


def _require(file: Path, names: Sequence[str]) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict) or any(name not in content for name in names):
        raise _unlike(file, ", ".join(names))
    return content


def _unlike(file: Path, expected: str) -> RunError:
    return RunError.because(f"'{file}' is not as lite-c2f wrote it", expected, "restore it, or train in another run")


def save_config(run: Path, config: Config) -> None:
    """Make the run directory and write RUN/config.yaml. Raises RunError when that cannot be."""
    try:
        write_text(run / "config.yaml", config.to_yaml())
    except OSError as error:
        raise RunError.because(f"run.dir '{run}': {error.strerror}", "a writable folder", "choose another") from None


def save_manifest(
    run: Path, config: Config, models: ModelPair, seconds: dict[str, float], inputs: dict[str, str] | None = None
) -> None:
    """Write RUN/run.json: versions, machine, models, inputs, seconds a stage took so far.

    seconds: added to those of the stage that are known; 0 forgets them. inputs: None keeps what is there.
    """
    file = run / "run.json"
    known = read_json(file) if file.is_file() else {"seconds": {}}
    packages = ("torch", "transformers", "peft", "bitsandbytes", "trl", "accelerate", "datasets")
    manifest = {
        "schema": 1,
        "lite_c2f": lite_c2f.__version__,
        "versions": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "models": models._asdict(),
        "inputs": known.get("inputs", {}) if inputs is None else inputs,
        "processes": distributed.world() if inputs is not None else known.get("processes", 1),
        "seed": config.run.seed,
        "seconds": known["seconds"]
        | {
            stage: round(value + (known["seconds"].get(stage, 0.0) if value else 0.0), 2)
            for stage, value in seconds.items()
        },
    }
    write_json(file, manifest)


def write_summary(run: Path) -> dict[str, Any]:
    """Gather RUN/summary.json from what the stages published; parts that are missing are left out."""
    summary: dict[str, Any] = {"schema": 1, "seconds": read_json(run / "run.json")["seconds"]}
    if is_published(run, "reward"):
        saved = read_json(run / "reward" / "metrics.json")
        summary["reward_model"] = {"accuracy": saved["accuracy"]}
        if len(of_each := saved.get("accuracy_by_source", {})) > 1:
            summary["reward_model"]["accuracy_by_source"] = of_each
    if is_published(run, "coarse"):
        saved = read_json(run / "coarse" / "metrics.json")
        summary["coarse"] = {name: saved[name] for name in ("limit_first", "limit_last", "reward_first", "reward_last")}
    if is_published(run, "fine"):
        summary["fine"] = {"ratio": _require(run / "fine" / "merge.json", ["ratio"])["ratio"]}
    if (run / "evaluation" / "actors.json").is_file():
        summary["actors"] = read_json(run / "evaluation" / "actors.json")
        if (run / "evaluation" / "metrics.json").is_file():
            figures = read_json(run / "evaluation" / "metrics.json")
            summary["wins"] = figures["wins"]
            if "by_source" in figures:
                summary["by_source"] = figures["by_source"]
    write_json(run / "summary.json", summary)
    return summary


def open_run(run: str | Path) -> tuple[Config, ModelPair]:
    """Configuration and models of a run with a Coarse and a Fine Actor. Raises RunError when it has none."""
    run = Path(run)
    check_actors_published(run)
    models = ModelPair(**read_manifest(run)["models"])
    config = load_config(run / "config.yaml")
    refuse_gone(run, config, models._asdict())
    return config, models


def check_own(config: Config, made: Config) -> None:
    """Raise ConfigError where settings of the actors themselves are not the run's; made: the run's configuration.

    Another alpha would scale the Coarse Actor's adapter, another prompt would ask it in a form that it does not know,
    another base would not be loaded, and nothing would show it. How the models are loaded (LOADED) may differ.
    """
    for section in ("model", "lora"):
        before, now = getattr(made, section), getattr(config, section)
        for name in sorted(type(before).model_fields.keys() - LOADED):
            then, today = getattr(before, name), getattr(now, name)
            if then != today:
                remedy = "leave it out"
                if name in PLACES:
                    remedy += f", or record where the same files are now: `lite-c2f train RUN {section}.{name}=NEW`"
                raise ConfigError.because(f"{section}.{name}={today!r}", f"the run's {then!r}", remedy)
