"""Manifest of a run directory: which stages are published, with which settings, versions and times."""

import contextlib
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lite_c2f
from lite_c2f.config.loading import load_config, with_defaults
from lite_c2f.config.settings import Config
from lite_c2f.config.settings_diff import LOCATION_KEYS, differences, without_locations
from lite_c2f.errors import ConfigError, EmptyConfigError, RunError
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.runs.places import check_model_folders
from lite_c2f.runs.published import FINISHED, STAGES, check_actors_published, is_published
from lite_c2f.runtime import distributed
from lite_c2f.storage import lock
from lite_c2f.storage.files import read_json, write_json, write_text

ACCEPTED = "accepted.json"  # in a stage's folder: other settings that --force accepted for it as it is
LOADING_KEYS = {"quantization", "compute_dtype"}  # settings of `model` about how it is loaded, not which model it is
STAGE_SECTIONS = {  # sections of the configuration that a stage's result depends on, besides those of earlier stages
    "reward": ("model", "data", "lora", "reward"),
    "coarse": ("coarse",),
    "fine": ("fine",),
}

SETTINGS_FILES = {stage: f"{stage}/settings.json" for stage in STAGES}
REQUIRED_METRICS = {  # keys of a stage's metrics.json that later stages and the summary read
    "reward": ("accuracy", "mean", "std"),
    "coarse": ("limit_first", "limit_last", "reward_first", "reward_last"),
}
DPO_METRICS = ("algorithm", "steps", "loss_last", "accuracy_last", "margin_last")  # of a coarse stage made by DPO


def check_stages(run: Path, stages: Sequence[str]) -> None:
    """Raise RunError for unknown stages, and for a stage whose predecessor is neither published nor requested."""
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
    """Raise RunError when the folder is not a run, or has stages made with other settings.

    force: accept changed data and stage settings, and return them; another model or adapter shape is never accepted.
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
    for stage, names in REQUIRED_METRICS.items():
        if is_published(run, stage):
            saved_metrics = _read_with_keys(run / FINISHED[stage], ())
            if stage == "reward" and "skipped" in saved_metrics:  # trained nothing
                continue
            _read_with_keys(run / FINISHED[stage], DPO_METRICS if saved_metrics.get("algorithm") == "dpo" else names)
    if saved.is_file():
        with contextlib.suppress(EmptyConfigError):  # it is rewritten; stages have settings files of their own
            load_config(saved)
    return [note for stage in STAGES if is_published(run, stage) for note in check_settings(run, stage, config, force)]


def is_leftover(path: Path) -> bool:
    """Whether the file may be left by a process that was killed before it saved the configuration."""
    return path.name == lock.NAME or (path.name.startswith(".") and ".partial-" in path.name)


def check_settings(run: Path, stage: str, config: Config, force: bool) -> list[str]:
    """Raise RunError unless a published stage was made with these settings.

    force: return the differences instead; so do settings that were accepted before, by `save_accepted`.
    """
    current = stage_settings(stage, config)
    changed = differences(with_defaults(without_locations(saved_settings(run, stage)), current), current)
    if not changed:
        return []
    accepted = run / stage / ACCEPTED
    force = force or (accepted.is_file() and not differences(with_defaults(read_json(accepted), current), current))
    listed = "; ".join(f"{key}={before!r}, now {after!r}" for key, before, after in changed[:4])
    can_force = all(key.split(".")[0] in (*STAGES, "data") for key, _, _ in changed)
    later_folders = " and ".join(str(run / name) for name in STAGES[STAGES.index(stage) :] if (run / name).exists())
    if not (force and can_force):
        remedy = ", accept it with --force" if can_force and not force else ""
        raise RunError.because(
            f"'{run}' has a {stage} stage made with {listed}",
            "the same value",
            f"use another --run-dir{remedy}, or remove {later_folders} to train that again",
        )
    return [f"the {stage} stage stays as it was made, with {listed}; remove {later_folders} to train it again"]


def stage_settings(stage: str, config: Config) -> dict[str, Any]:
    """The settings on which a stage's result depends, besides those of earlier stages."""
    return config.identity(STAGE_SECTIONS[stage])


def saved_settings(run: Path, stage: str) -> dict[str, Any]:
    """The settings a published stage was made with."""
    file = run / SETTINGS_FILES[stage]
    return read_json(file) if file.is_file() else stage_settings(stage, load_config(run / "config.yaml"))


def save_settings(run: Path, stage: str, config: Config) -> None:
    """Write the settings of a stage that was just published."""
    write_json(run / SETTINGS_FILES[stage], stage_settings(stage, config))


def save_accepted(run: Path, config: Config) -> None:
    """Note the settings that were accepted for published stages, so that the same ones need no `force` again."""
    for stage in STAGES:
        if is_published(run, stage) and check_settings(run, stage, config, force=True):
            write_json(run / stage / ACCEPTED, stage_settings(stage, config))


def check_processes(config: Config) -> None:
    """Raise ConfigError when a batch cannot be divided evenly among the processes."""
    count, coarse = distributed.world(), config.coarse
    ppo = ("coarse.rollouts / coarse.minibatches", coarse.rollouts // coarse.minibatches)
    for key, rows in (
        ("reward.batch", config.reward.batch),
        ("coarse.dpo.batch", coarse.dpo.batch) if coarse.algorithm == "dpo" else ppo,
    ):
        if rows % count:
            nearest = max(1, round(rows / count)) * count
            got = f"{key} is {rows} with {count} processes"
            raise ConfigError.because(got, f"a multiple of {count}", f"e.g. {nearest}")


def has_begun(run: Path) -> bool:
    """Whether the run has a published stage or a checkpoint."""
    return any(is_published(run, stage) for stage in STAGES) or any(run.glob("*/checkpoints/step-*"))


def recorded_inputs(run: Path) -> tuple[Config | None, dict[str, str]]:
    """(configuration, fingerprints of the inputs) that a run began with; (None, {}) if it has not begun.

    The configuration is None if the run's file is empty.
    """
    if not has_begun(run):
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
    """The content of RUN/run.json. Raises RunError when it is missing, damaged or of another program."""
    manifest = _read_with_keys(run / "run.json", ("models", "seconds"))
    models, seconds = manifest["models"], manifest["seconds"]
    valid_models = isinstance(models, dict) and models.keys() == {*ModelPair._fields}
    if not (valid_models and all(isinstance(name, str) for name in models.values()) and isinstance(seconds, dict)):
        raise _damaged_file(run / "run.json", "models (base and instruct) and seconds")
    return manifest


def _read_with_keys(file: Path, names: Sequence[str]) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict) or any(name not in content for name in names):
        raise _damaged_file(file, ", ".join(names))
    return content


def _damaged_file(file: Path, expected: str) -> RunError:
    return RunError.because(f"'{file}' is not as lite-c2f wrote it", expected, "restore it, or train in another run")


def save_config(run: Path, config: Config) -> None:
    """Make the run directory and write RUN/config.yaml. Raises RunError when that fails."""
    try:
        write_text(run / "config.yaml", config.to_yaml())
    except OSError as error:
        raise RunError.because(f"run.dir '{run}': {error.strerror}", "a writable folder", "choose another") from None


def save_manifest(
    run: Path, config: Config, models: ModelPair, seconds: dict[str, float], inputs: dict[str, str] | None = None
) -> None:
    """Write RUN/run.json: versions, machine, models, inputs, and seconds per stage so far.

    seconds: added to the stage's recorded seconds; 0 resets them. inputs: None keeps the recorded ones.
    """
    import torch  # here, as a page reads manifests before it loads any model

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
    """Write and return RUN/summary.json from the results of the stages, without the parts that are missing."""
    summary: dict[str, Any] = {"schema": 1, "seconds": read_json(run / "run.json")["seconds"]}
    if is_published(run, "reward"):
        saved = read_json(run / "reward" / "metrics.json")
        if "skipped" not in saved:
            summary["reward_model"] = {"accuracy": saved["accuracy"]}
        if len(by_source := saved.get("accuracy_by_source", {})) > 1:
            summary["reward_model"]["accuracy_by_source"] = by_source
    if is_published(run, "coarse"):
        saved = read_json(run / "coarse" / "metrics.json")
        names = DPO_METRICS if saved.get("algorithm") == "dpo" else REQUIRED_METRICS["coarse"]
        summary["coarse"] = {name: saved[name] for name in names}
        summary["coarse"] |= {name: saved[name] for name in ("rewards", "held_out") if name in saved}
    if is_published(run, "fine"):
        summary["fine"] = {"ratio": _read_with_keys(run / "fine" / "merge.json", ["ratio"])["ratio"]}
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
    check_model_folders(run, config, models._asdict())
    return config, models


def check_actor_settings(config: Config, recorded: Config) -> None:
    """Raise ConfigError if settings that define the actors differ from the run's. recorded: the run's configuration.

    Otherwise another alpha would silently scale the Coarse Actor's adapter, another prompt template would not be the
    one it was trained with, and another base would be ignored. How models are loaded (LOADING_KEYS) may differ.
    """
    for section in ("model", "lora"):
        recorded_section, section_now = getattr(recorded, section), getattr(config, section)
        for name in sorted(type(recorded_section).model_fields.keys() - LOADING_KEYS):
            before, after = getattr(recorded_section, name), getattr(section_now, name)
            if before != after:
                remedy = "leave it out"
                if name in LOCATION_KEYS:
                    remedy += f", or record where the same files are now: `lite-c2f train RUN {section}.{name}=NEW`"
                raise ConfigError.because(f"{section}.{name}={after!r}", f"the run's {before!r}", remedy)
