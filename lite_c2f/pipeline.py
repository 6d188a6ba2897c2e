"""One command trains: reward model, Coarse Actor, Fine Actor, comparison. Stages meet on disk."""

import contextlib
import gc
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lite_c2f.backbone.four_bit import check_four_bit
from lite_c2f.backbone.load import pick_device, plan_here, plan_named
from lite_c2f.coarse.checkpoints import check_before as check_coarse
from lite_c2f.coarse.train import train_coarse as coarse_stage
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Config
from lite_c2f.data.order import short_names
from lite_c2f.errors import MemoryFullError, RunError
from lite_c2f.evaluation.compare import compare_actors, made_of
from lite_c2f.fine.checks import check_disk
from lite_c2f.fine.stage import make_fine, try_ratios
from lite_c2f.memory import Plan, check, resolve
from lite_c2f.memory import as_json as plan_as_json
from lite_c2f.memory.plan import SAME_MODEL, same_model
from lite_c2f.reward.checkpoints import RewardState as RewardStanding
from lite_c2f.reward.train import train_reward as reward_stage
from lite_c2f.runs.corpus import Corpus, check_sources, load_corpus
from lite_c2f.runs.fingerprints import fingerprints, refuse_changes, weights_of
from lite_c2f.runs.manifest import (
    check_own,
    check_processes,
    check_run,
    check_stages,
    open_run,
    read_manifest,
    recorded,
    save_config,
    save_manifest,
    save_settings,
    write_summary,
)
from lite_c2f.runs.messages import (
    StageProgress,
    ToyProgress,
    report_data,
    report_plan,
    report_split,
    report_truncation,
    stepper,
)
from lite_c2f.runs.models import (
    TOY,
    ModelPair,
    absolute,
    check_context,
    check_kinds,
    check_models,
    check_stops,
    resolve_models,
    turn_end_note,
)
from lite_c2f.runs.places import check_places, record_base, unmoved
from lite_c2f.runs.published import STAGES, is_finished, is_published
from lite_c2f.runtime import disk_errors, distributed
from lite_c2f.runtime.batch_size import is_out_of_memory
from lite_c2f.runtime.progress import ProgressSink, SilentSink
from lite_c2f.runtime.record import recording
from lite_c2f.storage.files import read_json, write_json
from lite_c2f.storage.lock import locked
from lite_c2f.storage.metrics import check_tracker, start_tracker


def train(
    config: Config | str | Path,
    run: str | Path | None = None,
    stages: Sequence[str] = STAGES,
    *,
    resume: bool = False,
    force: bool = False,
    sink: ProgressSink | None = None,
) -> dict[str, Any]:
    """Run the stages that are not published yet, compare the actors, and return RUN/summary.json.

    config: a Config or a YAML file; run: the run directory, `config.run.dir` by default. With only some `stages` the
    comparison is left out unless all are published, and the summary holds what there is. A stage that was stopped goes
    on from its newest checkpoint. force: accept data, models and settings that are not those the run began with.
    Started by `accelerate launch`, the first two stages share the work; the other processes then return {}, and the
    first goes on alone. Raises RunError when the directory belongs to another configuration, is in use, or when
    `resume` finds nothing to resume.

    >>> summary = train("configs/toy.yaml")
    >>> summary["actors"]["fine"]["accuracy"]
    """
    config = absolute(load_config(config) if isinstance(config, str | Path) else config)
    distributed.join()
    first = distributed.is_first()
    run, sink = Path(run or config.run.dir), sink if sink is not None and first else SilentSink()
    if resume and not (run / "config.yaml").is_file():
        raise RunError.because(f"nothing to resume in '{run}'", "a run directory", "leave out --resume to start one")
    with disk_errors.as_user_errors(run), locked(run) if first else contextlib.nullcontext():
        with distributed.first_goes_first():
            work = prepare(config, run, stages, sink, force=force)
        with (
            recording(run, sink, is_finished) if first else contextlib.nullcontext(sink) as sink,
            disk_errors.as_user_errors(run),
        ):
            return work_off(work, run, stages, sink, force=force)


class PreparedRun(NamedTuple):
    """What a run is about to do, and what with."""

    config: Config  # batch sizes settled
    asked: Config  # as it was given
    models: ModelPair
    corpus: Corpus
    plan: Plan
    done: set[str]  # published stages
    seconds: dict[str, float]
    notes: list[str]


def prepare(config: Config, run: Path, stages: Sequence[str], sink: ProgressSink, *, force: bool) -> PreparedRun:
    """Check everything that can be checked before training, read the data, and write down what the run is."""
    check_stages(run, stages)
    check_sources(config)
    accepted = check_run(run, config, force=force)
    check_processes(config)
    check_tracker(config)
    made, before = recorded(run)
    check_places(run, config, made, before)  # folders; what a hub name stands for is known later
    done: set[str] = {stage for stage in STAGES if is_published(run, stage)}
    todo = [stage for stage in stages if stage not in done]
    check_kinds(config)
    check(plan_named(config), todo)  # from what is known of the name: before anything is read or downloaded
    check_checkpoints(config, run, done, todo, force=force)
    check_models(config)
    corpus = load_corpus(config)
    began = time.perf_counter()
    sink.on_stage("models", 0, "steps")
    toy_steps = ToyProgress(sink)
    models = resolve_models(config, toy_steps)
    if config.model.base == TOY:  # made only now
        check_context(config, models)
        check_stops(config, models)
    inputs = fingerprints(config, models)
    moved = check_places(run, config, made, before, models)
    if before:
        accepted += refuse_changes(run, unmoved(before, moved), unmoved(inputs, moved), force=force)
    plan = plan_here(config, models.base)
    check(plan, todo)
    check_room(run, plan, done)
    four_bit_note = None
    if todo and config.model.quantization != "none":
        four_bit_note = check_four_bit(pick_device(config), getattr(torch, plan.compute.dtype), plan.shape.inputs)
    seconds = {"models": time.perf_counter() - began} if toy_steps.trained else {}
    notes = [*moved.values(), *(f"accepted: {text}" for text in accepted)]
    notes += filter(None, [turn_end_note(config, models), four_bit_note])
    if weights_of(inputs, "base") == weights_of(inputs, "instruct") and not same_model(config):  # else the plan says it
        notes.append(SAME_MODEL)
    work = PreparedRun(resolve(config, plan), config, models, corpus, plan, done, seconds, notes)
    if distributed.is_first():
        sweep_leftovers(run)
        if before:
            record_base(run, read_manifest(run)["models"]["base"], config, models)
        save_config(run, config)
        write_json(run / "plan.json", plan_as_json(plan))
        save_manifest(run, work.config, models, seconds, inputs)
    return work


def check_checkpoints(config: Config, run: Path, done: set[str], todo: Sequence[str], *, force: bool) -> None:
    """Raise RunError, while nothing is written yet, when a stage's checkpoints are of another run."""
    if "reward" in todo:
        RewardStanding(config, run, force=force)
    if "coarse" in todo and "reward" in done:
        check_coarse(config, run, force=force)


def sweep_leftovers(run: Path) -> None:
    """Remove what killed processes left in a run; it is locked, so that no living one is at it."""
    for path in run.rglob(".*.partial-*"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    for stage in ("reward", "coarse"):
        if is_published(run, stage):
            shutil.rmtree(run / stage / "checkpoints", ignore_errors=True)
    if is_published(run, "fine"):
        shutil.rmtree(run / "fine" / ".model.merging", ignore_errors=True)
        (run / "fine" / "trials.jsonl").unlink(missing_ok=True)


def work_off(work: PreparedRun, run: Path, stages: Sequence[str], sink: ProgressSink, *, force: bool) -> dict[str, Any]:
    """Train and publish what is not published yet, then compare the actors."""
    config, models, corpus = work.config, work.models, work.corpus
    tracker = start_tracker(config, run) if distributed.is_first() else None
    for note in work.notes:
        sink.on_message(note)
    report_data(sink, corpus, config)
    if "reward" in work.done:
        report_split(sink, run)
    report_plan(sink, work.plan)
    for stage in STAGES:
        if stage == "fine":  # one process is enough from here on
            others = not distributed.is_first()
            distributed.leave()
            if others:
                return {}
        if stage not in stages:
            continue
        if stage in work.done:
            sink.on_message(f"{stage}: already published, skipped")
            continue
        began = time.perf_counter()
        if distributed.is_first() and not any(run.glob(f"{stage}/checkpoints/step-*")):
            save_manifest(run, config, models, {stage: 0.0})
        try:
            run_stage(stage, config, models, corpus, run, sink, tracker, force=force)
            if distributed.is_first():
                save_settings(run, stage, config)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryFullError.because(
                f"out of memory in the {stage} stage, where nothing can be made smaller by itself",
                "room as planned",
                "lower hardware.vram_gib so that less is planned, or close what else uses the memory",
            ) from error
        finally:  # also of a stage that is stopped
            if distributed.is_first():
                with contextlib.suppress(OSError):
                    save_manifest(run, config, models, {stage: time.perf_counter() - began})
        free_memory()
    if all(is_published(run, stage) for stage in STAGES):
        if work.done == set(STAGES) and compared_with(run) == comparison_of(work.asked, run):
            sink.on_message("comparison: already made, skipped")
        else:
            compare(config, models, corpus, run, sink, work.asked)
    if tracker is not None:
        tracker.finish()
    return write_summary(run)


def compare(config: Config, models: ModelPair, corpus: Corpus, run: Path, sink: ProgressSink, asked: Config) -> None:
    """The comparison of the four actors, into RUN/evaluation. asked: the settings before `auto` was settled."""
    began = time.perf_counter()
    sink.on_stage("comparison", 4, "actors")
    actors = compare_actors(config, models, corpus, run, progress=StageProgress(sink))
    write_json(run / "evaluation" / "actors.json", actors)
    write_json(run / "evaluation" / "settings.json", comparison_of(asked, run))
    save_manifest(run, config, models, {"evaluation": 0.0})
    save_manifest(run, config, models, {"evaluation": time.perf_counter() - began})


def train_reward(
    config: Config | str | Path, run: str | Path | None = None, *, sink: ProgressSink | None = None
) -> dict[str, Any]:
    """Stage 1 alone; returns RUN/reward/metrics.json (`accuracy`, `mean`, `std`, what was skipped and cut)."""
    return _one_stage("reward", config, run, sink)


def train_coarse(
    config: Config | str | Path, run: str | Path | None = None, *, sink: ProgressSink | None = None
) -> dict[str, Any]:
    """Stage 2 alone; needs stage 1 in the same run. Returns RUN/coarse/metrics.json (rewards, limits, tokens)."""
    return _one_stage("coarse", config, run, sink)


def _one_stage(
    stage: str, config: Config | str | Path, run: str | Path | None, sink: ProgressSink | None
) -> dict[str, Any]:
    config = load_config(config) if isinstance(config, str | Path) else config
    folder = Path(run or config.run.dir)
    train(config, folder, (stage,), sink=sink)
    return read_json(folder / stage / "metrics.json")


def sweep(
    run: str | Path,
    ratios: Sequence[float] | None = None,
    *,
    sink: ProgressSink | None = None,
    group_budget: int = 0,
) -> dict[str, Any]:
    """Score ratios of a finished run's residue without merging; returns what it writes to RUN/fine/sweep.json.

    RUN/fine/ratios.json, from which the published ratio was chosen, stays as it is. The curve is in RUN/fine/sweep.svg.
    group_budget: trials of a search for ratios by group of layers afterwards, in RUN/fine/groups.json; where they beat
    the single ratio, RUN/fine/layer-ratios.yaml is made for `merge`.

    >>> sweep("runs/toy", [0.5, 1.0])["chosen"]
    """
    run, sink = Path(run), sink or SilentSink()
    config, models = open_run(run)
    wanted = list(ratios or config.fine.ratios)
    corpus = load_corpus(config)
    config = resolve(config, plan_here(config, models.base))
    with disk_errors.as_user_errors(run), locked(run), recording(run, sink, is_finished) as sink:
        report_split(sink, run)
        return try_ratios(config, models, corpus, run, wanted, group_budget, sink)


def evaluate(run: str | Path, overrides: Sequence[str] = (), *, sink: ProgressSink | None = None) -> dict[str, Any]:
    """Compare the actors of a finished run again, with other settings of `evaluation`; returns the new summary.

    >>> evaluate("runs/toy", ["evaluation.prompts=500"])["actors"]["fine"]["reward"]
    """
    run = Path(run)
    made, models = open_run(run)
    config = load_config(made.model_dump(), overrides)
    check_run(run, config)
    check_own(config, made)
    check_context(config, models)
    corpus = load_corpus(config)
    plan = plan_here(config, models.base)
    with disk_errors.as_user_errors(run), locked(run), recording(run, sink or SilentSink(), is_finished) as sink:
        report_split(sink, run)
        compare(resolve(config, plan), models, corpus, run, sink, asked=config)
        if config.evaluation.prompts > len(corpus.held_out_prompts):
            sink.on_message(
                f"evaluation.prompts={config.evaluation.prompts}: {len(corpus.held_out_prompts)} prompts are held out, "
                "all of them were used, those the ratio was chosen on among them"
            )
        elif (shared := config.evaluation.prompts + config.fine.prompts - len(corpus.held_out_prompts)) > 0:
            shared = min(shared, config.evaluation.prompts)
            sink.on_message(f"{shared} of these prompts are among those that ratios are tried on")
        return write_summary(run)


def run_stage(
    stage: str,
    config: Config,
    models: ModelPair,
    corpus: Corpus,
    run: Path,
    sink: ProgressSink,
    tracker: Any = None,
    *,
    force: bool = False,
) -> None:
    """Train and publish one stage."""
    if stage == "reward":
        sink.on_stage("reward model", 0, "steps")
        step = stepper(sink, "reward model")
        metrics = reward_stage(config, models, corpus, run, step, tracker, sink.on_message, force=force)
        report_truncation(sink, metrics["pairs"])
        for note in accuracy_notes(metrics):
            sink.on_message(note)
        if len(of_each := metrics["accuracy_by_source"]) > 1:
            names = short_names(of_each)
            sink.on_message("  " + ", ".join(f"{name} {of_each[source]:.3f}" for source, name in names.items()))
    elif stage == "coarse":
        total = config.coarse.updates
        sink.on_stage("coarse actor", total, "updates")

        def step(done: int, expected: int, line: dict[str, float]) -> None:
            nonlocal total
            if expected != total:  # a token budget will end it sooner
                total = expected
                sink.on_stage("coarse actor", total, "updates")
            sink.on_step(done, line)

        metrics = coarse_stage(config, models, corpus, run, step, sink.on_tokens, tracker, sink.on_message, force=force)
        if not metrics:  # only the first process has them
            return
        if metrics["updates"] < config.coarse.updates:
            sink.on_message(
                f"coarse actor: ended after {metrics['updates']} of {config.coarse.updates} updates, with "
                f"{metrics['tokens_sampled']} tokens of coarse.token_budget={config.coarse.token_budget}"
            )
        if metrics["skipped"]:
            sink.on_message(
                f"coarse actor: {metrics['skipped']} updates skipped for numbers that are not finite, "
                f"{metrics['rollbacks']} rollbacks"
            )
        sink.on_message(
            f"coarse actor: reward {metrics['reward_first']:+.2f} to {metrics['reward_last']:+.2f}, "
            f"limit {metrics['limit_first']} to {metrics['limit_last']}"
        )
    else:
        make_fine(config, models, corpus, run, sink)


def accuracy_notes(metrics: dict[str, Any]) -> list[str]:
    """How well a reward model ranks held-out pairs, with a warning where that is no better than chance.

    >>> accuracy_notes({"accuracy": 0.75, "held_out_pairs": {"pairs": 8}})
    ['reward model: 0.750 of 8 held-out pairs ranked right']
    """
    pairs = metrics["held_out_pairs"]["pairs"]
    notes = [f"reward model: {metrics['accuracy']:.3f} of {pairs} held-out pairs ranked right"]
    if metrics["accuracy"] <= 0.5:
        notes.append("warning: the reward model ranks no better than chance: rewards, and wins by them, mean nothing")
    return notes


def comparison_of(asked: Config, run: Path) -> dict[str, Any]:
    """The settings of a comparison, and the hashes of what it compares."""
    return {"settings": asked.evaluation.model_dump(mode="json"), "made_of": made_of(run)}


def compared_with(run: Path) -> dict[str, Any] | None:
    """What the comparison that was made last is of, None where there is none."""
    file = run / "evaluation" / "settings.json"
    return read_json(file) if file.is_file() and (run / "evaluation" / "actors.json").is_file() else None


def check_room(run: Path, plan: Plan, done: set[str]) -> None:
    """Raise RunError when the disk under a run has no room for what is still to be written."""
    checkpoints = 0 if {"reward", "coarse"} <= done else plan.disk["checkpoints"]
    check_disk(run, round(plan.disk["adapters"] + checkpoints + (0 if "fine" in done else plan.disk["merged model"])))


def free_memory() -> None:
    """Give back what the last stage held: a trainer keeps cycles that would stay on the card."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
