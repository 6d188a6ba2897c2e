"""One command trains: reward model, Coarse Actor, Fine Actor, comparison. Stages meet on disk."""

import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

import lite_c2f
from lite_c2f.coarse.train import train_coarse
from lite_c2f.config import Config, load_config
from lite_c2f.errors import RunError
from lite_c2f.evaluation.compare import evaluate
from lite_c2f.fine.merge import merge
from lite_c2f.fine.sweep import sweep
from lite_c2f.inputs import Corpus, ModelPair, load_corpus, resolve_models
from lite_c2f.reward.train import train_reward
from lite_c2f.runs import read_json, start_tracker, write_json, write_text

STAGES = ("reward", "coarse", "fine")
FINISHED = {"reward": "reward/metrics.json", "coarse": "coarse/metrics.json", "fine": "fine/model/config.json"}
READS = {  # sections of the configuration a stage's result depends on, beside those of the stages before it
    "reward": ("model", "data", "lora", "reward"),
    "coarse": ("coarse",),
    "fine": ("fine",),
}


class View(Protocol):
    """What follows a run, such as the terminal. Every method may do nothing."""

    def stage(self, name: str, total: int, unit: str) -> None: ...
    def step(self, done: int, values: dict[str, float]) -> None: ...
    def tick(self, tokens: int) -> None: ...
    def note(self, text: str) -> None: ...


class Silent:
    """A view that shows nothing."""

    def stage(self, name: str, total: int, unit: str) -> None:
        pass

    def step(self, done: int, values: dict[str, float]) -> None:
        pass

    def tick(self, tokens: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def train(
    config: Config | str | Path,
    run: str | Path | None = None,
    stages: Sequence[str] = STAGES,
    *,
    resume: bool = False,
    view: View | None = None,
) -> dict[str, Any]:
    """Run the stages that are not published yet, compare the actors, and return RUN/summary.json.

    config: a Config or a YAML file; run: the run directory, `config.run.dir` by default. With only some `stages` the
    comparison is left out unless all are published, and the summary holds what there is. Raises RunError when the
    directory belongs to another configuration, or when `resume` finds nothing to resume.

    >>> summary = train("configs/toy.yaml")
    >>> summary["actors"]["fine"]["accuracy"]
    """
    config = load_config(config) if isinstance(config, str | Path) else config
    run, view = Path(run or config.run.dir), view or Silent()
    if resume and not (run / "config.yaml").is_file():
        raise RunError.because(f"nothing to resume in '{run}'", "a run directory", "leave out --resume to start one")
    check_stages(run, stages)
    claim(run, config)
    done: set[str] = {stage for stage in STAGES if is_published(run, stage)}
    began = time.perf_counter()
    view.stage("models", 0, "steps")
    toy_steps = _ToySteps(view)
    models = resolve_models(config, toy_steps)
    corpus = load_corpus(config)
    tell_data(view, corpus)
    seconds = {"models": time.perf_counter() - began} if toy_steps.trained else {}
    save_manifest(run, config, models, seconds)
    tracker = start_tracker(config, run)
    for stage in STAGES:
        if stage not in stages:
            continue
        if stage in done:
            view.note(f"{stage}: already published, skipped")
            continue
        began = time.perf_counter()
        run_stage(stage, config, models, corpus, run, view, tracker)
        save_manifest(run, config, models, {stage: time.perf_counter() - began})
    if all(is_published(run, stage) for stage in STAGES):
        compare(config, models, corpus, run, view)
    if tracker is not None:
        tracker.finish()
    return write_summary(run)


def compare(config: Config, models: ModelPair, corpus: Corpus, run: Path, view: View) -> None:
    """The comparison of the four actors, into RUN/evaluation."""
    began = time.perf_counter()
    view.stage("comparison", 4, "actors")
    actors = evaluate(config, models, corpus, run, progress=_Counter(view))
    write_json(run / "evaluation" / "actors.json", actors)
    save_manifest(run, config, models, {"evaluation": time.perf_counter() - began})


def reevaluate(run: Path, overrides: Sequence[str] = (), view: View | None = None) -> dict[str, Any]:
    """Compare the actors of a finished run again, with other settings of `evaluation`; returns the new summary."""
    config, models = open_run(run)
    config = load_config(config.model_dump(), overrides)
    claim(run, config)
    compare(config, models, load_corpus(config), run, view or Silent())
    return write_summary(run)


def run_stage(
    stage: str, config: Config, models: ModelPair, corpus: Corpus, run: Path, view: View, tracker: Any = None
) -> None:
    """Train and publish one stage."""
    if stage == "reward":
        view.stage("reward model", 0, "steps")
        metrics = train_reward(config, models, corpus, run, _stepper(view, "reward model"), tracker)
        tell_truncation(view, metrics["pairs"])
        view.note(f"reward model: {metrics['accuracy']:.3f} of held-out pairs ranked right")
    elif stage == "coarse":
        view.stage("coarse actor", config.coarse.updates, "updates")
        metrics = train_coarse(
            config, models, corpus, run, lambda step, _, line: view.step(step, line), view.tick, tracker
        )
        view.note(
            f"coarse actor: reward {metrics['reward_first']:+.2f} to {metrics['reward_last']:+.2f}, "
            f"limit {metrics['limit_first']} to {metrics['limit_last']}"
        )
    else:
        make_fine(config, models, corpus, run, view)


def make_fine(
    config: Config,
    models: ModelPair,
    corpus: Corpus,
    run: Path,
    view: View,
) -> None:
    """Choose a ratio (unless it is given) and merge the residue into the instruct model."""
    ratio = config.fine.ratio
    if ratio == "auto":
        view.stage("ratios", len({0.0, *config.fine.ratios}), "ratios")
        found = sweep(config, models, corpus, run, progress=lambda step, _, row: view.step(step, row))
        ratio = found["chosen"]
        view.note(f"ratios tried: {len(found['tried'])}; chosen {ratio}")
    view.stage("merge", 100, "%")
    merge(
        run / "coarse" / "adapter",
        models.base,
        models.instruct,
        run / "fine" / "model",
        ratio=float(ratio),
        dtype=None if config.fine.dtype == "auto" else config.fine.dtype,
        report=run / "fine" / "merge.json",
        progress=lambda done, total: view.step(100 * done // max(total, 1), {}),
    )


def is_published(run: Path, stage: str) -> bool:
    """Has this stage left its result?"""
    return (run / FINISHED[stage]).is_file()


def check_stages(run: Path, stages: Sequence[str]) -> None:
    """Refuse unknown stages, and a stage whose forerunner is neither published nor asked for."""
    for index, stage in enumerate(STAGES):
        missing = [before for before in STAGES[:index] if not is_published(run, before) and before not in stages]
        if stage in stages and missing and not is_published(run, stage):
            raise RunError.because(
                f"stage {stage}: '{run}' has no {missing[0]} stage",
                "the stages before it",
                f"--stage {missing[0]} first",
            )


def claim(run: Path, config: Config) -> None:
    """Make the run directory, or check that what was published there came from this configuration."""
    saved = run / "config.yaml"
    if run.exists() and not run.is_dir():
        raise RunError.because(f"run.dir '{run}' is a file", "a folder", "choose another run.dir")
    if not saved.is_file() and run.is_dir() and any(run.iterdir()):
        raise RunError.because(f"'{run}' is not empty and no run", "a new or empty folder", "choose another run.dir")
    if saved.is_file():
        before = load_config(saved).model_dump()
        after = config.model_dump()
        sections: list[str] = []
        for stage in STAGES:
            sections += READS[stage]
            if is_published(run, stage):
                refuse_difference(run, stage, {s: before[s] for s in sections}, {s: after[s] for s in sections})
        if any(is_published(run, stage) for stage in STAGES) and before["run"]["seed"] != after["run"]["seed"]:
            refuse_difference(
                run, "reward", {"run": before["run"]}, {"run": after["run"] | {"dir": before["run"]["dir"]}}
            )
    try:
        write_text(saved, config.to_yaml())
    except OSError as error:
        raise RunError.because(f"run.dir '{run}': {error.strerror}", "a writable folder", "choose another") from None


def refuse_difference(run: Path, stage: str, before: Any, after: Any, key: str = "") -> None:
    """Raise RunError naming the first key in which two configurations differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in after:
            refuse_difference(run, stage, before.get(name), after[name], f"{key}.{name}".lstrip("."))
    elif before != after:
        raise RunError.because(
            f"'{run}' has a {stage} stage made with {key}={before!r}, now {after!r}",
            "the same value",
            f"use another --run-dir, or remove {run}/{stage}",
        )


def save_manifest(run: Path, config: Config, models: ModelPair, seconds: dict[str, float]) -> None:
    """Write RUN/run.json: versions, machine, models, seconds a stage took."""
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
        "seed": config.run.seed,
        "seconds": known["seconds"] | {stage: round(value, 2) for stage, value in seconds.items()},
    }
    write_json(file, manifest)


def write_summary(run: Path) -> dict[str, Any]:
    """Gather RUN/summary.json from what the stages published; parts that are missing are left out."""
    summary: dict[str, Any] = {"schema": 1, "seconds": read_json(run / "run.json")["seconds"]}
    if is_published(run, "reward"):
        summary["reward_model"] = {"accuracy": read_json(run / "reward" / "metrics.json")["accuracy"]}
    if is_published(run, "coarse"):
        saved = read_json(run / "coarse" / "metrics.json")
        summary["coarse"] = {name: saved[name] for name in ("limit_first", "limit_last", "reward_first", "reward_last")}
    if is_published(run, "fine"):
        summary["fine"] = {"ratio": read_json(run / "fine" / "merge.json")["ratio"]}
    if (run / "evaluation" / "actors.json").is_file():
        summary["actors"] = read_json(run / "evaluation" / "actors.json")
    write_json(run / "summary.json", summary)
    return summary


def open_run(run: str | Path) -> tuple[Config, ModelPair]:
    """Configuration and models of a run with a Coarse and a Fine Actor. Raises RunError when it has none."""
    run = Path(run)
    if not (run / "run.json").is_file():
        raise RunError.because(f"'{run}' is no run directory", "one made by lite-c2f", "make one with `lite-c2f demo`")
    for stage in ("coarse", "fine"):
        if not is_published(run, stage):
            raise RunError.because(f"'{run}' has no {stage} stage", "a finished run", "finish it with lite-c2f train")
    models = ModelPair(**read_json(run / "run.json")["models"])
    for name, folder in models._asdict().items():
        if not Path(folder).is_dir():
            raise RunError.because(f"{name} model of '{run}' is gone: '{folder}'", "its folder", "train again")
    return load_config(run / "config.yaml"), models


def tell_data(view: View, corpus: Corpus) -> None:
    """Say what there is to learn from, and which rows could not be used."""
    view.note(
        f"data: {len(corpus.train_pairs)} pairs, {len(corpus.train_prompts)} prompts; held out "
        f"{len(corpus.held_out_pairs)} and {len(corpus.held_out_prompts)}"
    )
    if corpus.skipped:
        view.note("rows skipped: " + ", ".join(f"{count} {reason}" for reason, count in corpus.skipped.items()))


def tell_truncation(view: View, report: dict[str, int]) -> None:
    """Say what was cut to fit data.max_prompt_tokens and data.max_answer_tokens."""
    if report["prompts_truncated"] or report["answers_cut"]:
        view.note(
            f"of {report['pairs']} pairs: {report['prompts_truncated']} prompts too long "
            f"({report['turns_dropped']} oldest turns dropped), {report['answers_cut']} answers cut"
        )


class _ToySteps:
    """Shows the toy models' training, and remembers that there was some."""

    def __init__(self, view: View) -> None:
        self.view, self.what, self.trained = view, "", False

    def __call__(self, what: str, step: int, steps: int, loss: float) -> None:
        self.trained = True
        if what != self.what:
            self.view.stage(what, steps, "steps")
            self.what = what
        self.view.step(step, {"loss": loss})


class _Counter:
    def __init__(self, view: View) -> None:
        self.view, self.done = view, 0

    def __call__(self, actor: str) -> None:
        self.view.step(self.done, {})
        self.done += 1


def _stepper(view: View, name: str) -> Callable[[int, int, dict[str, float]], None]:
    """The number of steps is known at the first one only."""
    started: list[bool] = []

    def step(done: int, total: int, values: dict[str, float]) -> None:
        if not started:
            view.stage(name, total, "steps")
            started.append(True)
        view.step(done, values)

    return step
