"""Preparation of a run: all checks before training, loading the data, recording the run."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from lite_c2f.backbone.four_bit import check_four_bit
from lite_c2f.backbone.machine import pick_device, plan_here, plan_named
from lite_c2f.coarse.checkpoints import check_before as check_coarse
from lite_c2f.config.settings import Config
from lite_c2f.errors import RunError
from lite_c2f.fine.checks import check_disk
from lite_c2f.memory import Plan, check, resolve
from lite_c2f.memory import as_json as plan_as_json
from lite_c2f.memory.plan import SAME_MODEL, same_model
from lite_c2f.reward.checkpoints import DPO, REWARD, TrainerStageState
from lite_c2f.reward.checks import check_judges
from lite_c2f.reward.files import is_skipped
from lite_c2f.reward.sources import new_sources
from lite_c2f.runs.corpus import Corpus, check_sources, load_corpus
from lite_c2f.runs.fingerprints import fingerprints, refuse_changes, weights_of
from lite_c2f.runs.manifest import (
    check_processes,
    check_run,
    check_stages,
    read_manifest,
    recorded_inputs,
    save_accepted,
    save_config,
    save_manifest,
)
from lite_c2f.runs.messages import ToyProgress
from lite_c2f.runs.model_pair import TOY, ModelPair
from lite_c2f.runs.models import check_context, check_kinds, check_models, check_stops, resolve_models, turn_end_note
from lite_c2f.runs.places import check_places, record_base, without_moved
from lite_c2f.runs.published import STAGES, is_published
from lite_c2f.runtime import distributed
from lite_c2f.runtime.progress import ProgressSink
from lite_c2f.storage.files import write_json
from lite_c2f.storage.metrics import check_tracker


class PreparedRun(NamedTuple):
    """A checked run that is ready for its stages."""

    config: Config  # with resolved batch sizes
    requested: Config  # as given, with `auto` batch sizes
    models: ModelPair
    corpus: Corpus
    plan: Plan
    done: set[str]  # published stages
    seconds: dict[str, float]
    notes: list[str]


def prepare(config: Config, run: Path, stages: Sequence[str], sink: ProgressSink, *, force: bool) -> PreparedRun:
    """Check everything that can be checked before training, load the data, and record the run on disk."""
    check_stages(run, stages)
    check_sources(config)
    accepted = check_run(run, config, force=force)
    check_processes(config)
    check_tracker(config)
    recorded, before = recorded_inputs(run)
    check_places(run, config, recorded, before)  # folders only; hub names are resolved later
    done: set[str] = {stage for stage in STAGES if is_published(run, stage)}
    todo = [stage for stage in stages if stage not in done]
    check_kinds(config)
    check(plan_named(config), todo)  # from the model's name, before anything is read or downloaded
    check_judges(config)
    check_skipped(config, run)
    check_checkpoints(config, run, done, todo, force=force)
    check_models(config)
    corpus = load_corpus(config)
    began = time.perf_counter()
    sink.on_stage("models", 0, "steps")
    toy_steps = ToyProgress(sink)
    models = resolve_models(config, toy_steps)
    if config.model.base == TOY:  # just made
        check_context(config, models)
        check_stops(config, models)
    if "coarse" in todo:
        check_judges(config, models)
    inputs = fingerprints(config, models)
    moved = check_places(run, config, recorded, before, models)
    if before:
        accepted += refuse_changes(run, without_moved(before, moved), without_moved(inputs, moved), force=force)
    plan = plan_here(config, models.base)
    check(plan, todo)
    check_run_disk(run, plan, done)
    four_bit_note = None
    if todo and config.model.quantization != "none":
        four_bit_note = check_four_bit(pick_device(config), getattr(torch, plan.compute.dtype), plan.shape.inputs)
    seconds = {"models": time.perf_counter() - began} if toy_steps.trained else {}
    notes = [*moved.values(), *(f"accepted: {text}" for text in accepted)]
    notes += filter(None, [turn_end_note(config, models), four_bit_note])
    if "coarse" in done and (note := new_sources(config, run)):
        notes.append(note)
    if weights_of(inputs, "base") == weights_of(inputs, "instruct") and not same_model(
        config
    ):  # else the plan has this warning
        notes.append(SAME_MODEL)
    work = PreparedRun(resolve(config, plan), config, models, corpus, plan, done, seconds, notes)
    if distributed.is_first():
        remove_leftovers(run)
        if before:
            record_base(run, read_manifest(run)["models"]["base"], config, models)
        save_config(run, config)
        save_accepted(run, config)
        write_json(run / "plan.json", plan_as_json(plan))
        save_manifest(run, work.config, models, seconds, inputs)
    return work


def check_skipped(config: Config, run: Path) -> None:
    """Raise RunError for a run whose reward stage was skipped, and whose settings now name its reward model."""
    if config.coarse.needs_reward_model and is_skipped(run):
        raise RunError.because(
            f"'{run}' was begun without a reward model, and a source of coarse.rewards or coarse.watch is now trained",
            "the sources that it was begun with",
            f"set them back, use another --run-dir, or remove '{run / 'reward'}' and what follows it",
        )


def check_checkpoints(config: Config, run: Path, done: set[str], todo: Sequence[str], *, force: bool) -> None:
    """Raise RunError, before anything is written, when a stage's checkpoints are of another run."""
    if "reward" in todo:
        TrainerStageState(REWARD, config, run, force=force)
    if "coarse" in todo and "reward" in done:
        check_algorithm(config, run)
        if config.coarse.algorithm == "dpo":
            TrainerStageState(DPO, config, run, force=force)
        else:
            check_coarse(config, run, force=force)


def check_algorithm(config: Config, run: Path) -> None:
    """Raise RunError when the coarse stage's checkpoints are of the other algorithm."""
    folders = list((run / "coarse" / "checkpoints").glob("step-*"))
    made_with = {"dpo" if (folder / "trainer_state.json").is_file() else "ppo" for folder in folders}
    if other := made_with - {config.coarse.algorithm}:
        raise RunError.because(
            f"'{run / 'coarse' / 'checkpoints'}' holds checkpoints of coarse.algorithm={other.pop()}",
            f"those of {config.coarse.algorithm}",
            "set it back, or remove the folder to begin the coarse stage anew",
        )


def remove_leftovers(run: Path) -> None:
    """Remove what killed processes left in a run, which is locked, so that no other process works in it."""
    for path in run.rglob(".*.partial-*"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    for stage in ("reward", "coarse"):
        if is_published(run, stage):
            shutil.rmtree(run / stage / "checkpoints", ignore_errors=True)
    if is_published(run, "fine"):
        shutil.rmtree(run / "fine" / ".model.merging", ignore_errors=True)
        (run / "fine" / "trials.jsonl").unlink(missing_ok=True)


def check_run_disk(run: Path, plan: Plan, done: set[str]) -> None:
    """Raise RunError when the disk of a run is too small for what is still to be written."""
    checkpoints = 0 if {"reward", "coarse"} <= done else plan.disk["checkpoints"]
    check_disk(run, round(plan.disk["adapters"] + checkpoints + (0 if "fine" in done else plan.disk["merged model"])))
