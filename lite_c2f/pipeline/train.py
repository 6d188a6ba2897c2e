"""Training of a run: reward model, Coarse Actor, Fine Actor, comparison. Stages exchange results through files."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lite_c2f.coarse.dpo import train_dpo
from lite_c2f.coarse.train import train_coarse as coarse_stage
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Config
from lite_c2f.data.order import short_names
from lite_c2f.errors import MemoryFullError, RunError
from lite_c2f.fine.stage import make_fine
from lite_c2f.pipeline.comparison import compare, comparison_settings, differences, last_comparison_settings
from lite_c2f.pipeline.prepare import PreparedRun, prepare
from lite_c2f.reward.files import publish_skipped
from lite_c2f.reward.train import train_reward as reward_stage
from lite_c2f.runs.corpus import Corpus
from lite_c2f.runs.manifest import save_manifest, save_settings, write_summary
from lite_c2f.runs.messages import report_data, report_plan, report_split, report_truncation, step_callback
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.runs.models import absolute
from lite_c2f.runs.published import STAGES, is_finished, is_published
from lite_c2f.runtime import disk_errors, distributed
from lite_c2f.runtime.accelerators import reset_peaks
from lite_c2f.runtime.batch_size import free, is_out_of_memory
from lite_c2f.runtime.progress import ProgressSink, SilentSink
from lite_c2f.runtime.record import recording
from lite_c2f.storage.files import read_json
from lite_c2f.storage.lock import locked
from lite_c2f.storage.metrics import start_tracker


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
    comparison is made only if all are published, and the summary holds what there is. An interrupted stage continues
    from its newest checkpoint. force: accept data, models and settings that differ from those the run began with.
    Under `accelerate launch`, the processes share the first two stages; then the first one continues alone, and the
    others return {}. Raises RunError when the directory belongs to another configuration, is in use, or when
    `resume` finds nothing to resume.

    >>> summary = train("configs/toy.yaml")
    >>> summary["actors"]["fine"]["accuracy"]
    """
    config = absolute(load_config(config) if isinstance(config, str | Path) else config)
    if "coarse" in stages and not config.coarse.needs_reward_model:
        stages = [stage for stage in STAGES if stage in ("reward", *stages)]  # it takes no time
    distributed.join()
    first = distributed.is_first()
    run, sink = Path(run or config.run.dir), sink if sink is not None and first else SilentSink()
    if resume and not (run / "config.yaml").is_file():
        raise RunError.because(f"nothing to resume in '{run}'", "a run directory", "leave out --resume to start one")
    with disk_errors.as_user_errors(run), locked(run) if first else contextlib.nullcontext():
        with distributed.first_process_first():
            work = prepare(config, run, stages, sink, force=force)
        # Agreed on before the first process publishes anything: the others may look later than it.
        work = work._replace(done=distributed.gather(work.done)[0])
        with (
            recording(run, sink, is_finished) if first else contextlib.nullcontext(sink) as sink,
            disk_errors.as_user_errors(run),
        ):
            return run_stages(work, run, stages, sink, force=force)


def run_stages(
    work: PreparedRun, run: Path, stages: Sequence[str], sink: ProgressSink, *, force: bool
) -> dict[str, Any]:
    """Train and publish the stages that are not published yet, then compare the actors."""
    config, models, corpus = work.config, work.models, work.corpus
    tracker = start_tracker(config, run) if distributed.is_first() else None
    for note in work.notes:
        sink.on_message(note)
    report_data(sink, corpus, config)
    if "reward" in work.done:
        report_split(sink, run)
    report_plan(sink, work.plan)
    for stage in STAGES:
        if stage == "fine":  # from here on one process is enough
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
                f"out of memory in the {stage} stage, whose batch sizes are not reduced automatically",
                "the planned memory",
                "lower hardware.vram_gib to plan with less, or close other programs that use the memory",
            ) from error
        finally:  # also for an interrupted stage
            if distributed.is_first():
                with contextlib.suppress(OSError):
                    save_manifest(run, config, models, {stage: time.perf_counter() - began})
        free_memory()
    if all(is_published(run, stage) for stage in STAGES):
        before, now = last_comparison_settings(run), comparison_settings(work.requested, run)
        if work.done == set(STAGES) and before == now:
            sink.on_message("comparison: already made, skipped")
        else:
            if work.done == set(STAGES) and before is not None:
                sink.on_message(f"comparison: made again, with another {differences(before, now)}")
            compare(config, models, corpus, run, sink, work.requested)
    if tracker is not None:
        tracker.finish()
    return write_summary(run)


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
    if stage == "reward" and not config.coarse.needs_reward_model:
        if distributed.is_first():
            publish_skipped(run)
        distributed.wait()  # the others read it
        sink.on_message("reward: skipped, no source of reward is a reward model to be trained")
    elif stage == "reward":
        sink.on_stage("reward model", 0, "steps")
        step = step_callback(sink, "reward model")
        metrics = reward_stage(config, models, corpus, run, step, tracker, sink.on_message, force=force)
        report_truncation(sink, metrics["pairs"])
        for note in accuracy_messages(metrics):
            sink.on_message(note)
        if len(by_source := metrics["accuracy_by_source"]) > 1:
            names = short_names(by_source)
            sink.on_message("  " + ", ".join(f"{name} {by_source[source]:.3f}" for source, name in names.items()))
    elif stage == "coarse" and config.coarse.algorithm == "dpo":
        sink.on_stage("coarse actor", 0, "steps")
        step = step_callback(sink, "coarse actor")
        metrics = train_dpo(config, models, corpus, run, step, tracker, sink.on_message, force=force)
        sink.on_message(
            f"coarse actor: DPO, {metrics['steps']} steps, margin {metrics['margin_last']:+.2f}, "
            f"{metrics['accuracy_last']:.2f} of the last batch's pairs ranked right"
        )
    elif stage == "coarse":
        total = config.coarse.updates
        sink.on_stage("coarse actor", total, "updates")

        def step(done: int, expected: int, values: dict[str, float]) -> None:
            nonlocal total
            if expected != total:  # a token budget ends it sooner
                total = expected
                sink.on_stage("coarse actor", total, "updates")
            sink.on_step(done, values)

        metrics = coarse_stage(config, models, corpus, run, step, sink.on_tokens, tracker, sink.on_message, force=force)
        if not metrics:  # empty in other processes than the first
            return
        if metrics.get("ended_early"):
            held_out = metrics["held_out"]
            sink.on_message(
                f"coarse actor: ended after {metrics['updates']} of {config.coarse.updates} updates: for "
                f"coarse.patience={config.coarse.patience} evaluations no policy was better by {config.coarse.best_by} "
                f"than that after update {held_out['best_step']}"
            )
        elif metrics["updates"] < config.coarse.updates:
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


def accuracy_messages(metrics: dict[str, Any]) -> list[str]:
    """Messages on a reward model's held-out accuracy, with a warning if it is no better than chance.

    >>> accuracy_notes({"accuracy": 0.75, "held_out_pairs": {"pairs": 8}})
    ['reward model: 0.750 of 8 held-out pairs ranked right']
    """
    pairs = metrics["held_out_pairs"]["pairs"]
    notes = [f"reward model: {metrics['accuracy']:.3f} of {pairs} held-out pairs ranked right"]
    if metrics["accuracy"] <= 0.5:
        notes.append("warning: the reward model ranks no better than chance: rewards, and wins by them, mean nothing")
    return notes


def free_memory() -> None:
    """Free the memory of the last stage, whose trainer is held by reference cycles, and reset the peak."""
    free()
    reset_peaks()
