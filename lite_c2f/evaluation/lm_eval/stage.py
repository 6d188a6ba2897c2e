"""Benchmarks of a finished run: every actor on every task, and the differences to the baseline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lite_c2f.actors.names import BASE, COARSE, FINE, INSTRUCT
from lite_c2f.backbone.context import context_length
from lite_c2f.backbone.machine import plan_here
from lite_c2f.backbone.pair import read_config
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Config, resolved
from lite_c2f.errors import ConfigError
from lite_c2f.evaluation.actor_hashes import actor_hashes
from lite_c2f.evaluation.actor_names import check_actors, check_baseline, source_of
from lite_c2f.evaluation.lm_eval.scores import Measured, group_table, task_table
from lite_c2f.evaluation.lm_eval.tasks import (
    SEED,
    TaskOptions,
    TaskRequest,
    check_answers_fit,
    harness_version,
    load_tasks,
    task_hash,
)
from lite_c2f.memory import resolve
from lite_c2f.runs.fingerprints import fingerprints_of_models
from lite_c2f.runs.manifest import LOADING_KEYS, check_actor_settings, open_run
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.runs.published import is_finished
from lite_c2f.runtime import disk_errors
from lite_c2f.runtime.batch_size import BatchSize, free
from lite_c2f.runtime.progress import ProgressSink, SilentSink
from lite_c2f.runtime.record import recording
from lite_c2f.storage.files import write_json
from lite_c2f.storage.lock import locked
from lite_c2f.storage.results import ResultCache

FILE = "general.json"
AUTO_BATCH = 8  # batch for `auto`: prompts with several examples are long, and logits large
ERRORS = (
    "differences that are `paired` have the standard error of the mean of differences document by document; the others "
    "that of independent samples; `clear` ones are above two standard errors, from 30 documents on, not corrected for "
    "how many are compared"
)


def benchmark(
    run: str | Path,
    tasks: Sequence[str],
    *,
    actors: Sequence[str] = (FINE, INSTRUCT, COARSE, BASE),
    baseline: str = INSTRUCT,
    limit: int | None = None,
    fewshot: int | None = None,
    chat_template: bool = False,
    overrides: Sequence[str] = (),
    sink: ProgressSink | None = None,
) -> dict[str, Any]:
    """Run tasks of lm-evaluation-harness on the actors of a finished run, loaded in 4 bits.

    tasks: names of tasks, groups or tags, YAML files, or `general-11` (our own choice of usual tasks: the authors' list
    is not public). actors: of `fine` (merged), `instruct`, `coarse`, `base`, and `fine@RATIO` (unmerged). limit:
    documents per task. fewshot: instead of each task's own number. chat_template: prompts are conversations in each
    actor's own template; else plain text, lm-eval's default. Writes RUN/evaluation/general.json and returns
    it. A finished task of an actor is stored in general.jsonl and not repeated. Raises C2FError for unknown tasks
    or actors.

    >>> benchmark("runs/toy", ["gsm8k"], limit=100)["tasks"]["gsm8k"]["metrics"]["exact_match strict-match"]
    """
    run, sink = Path(run), sink or SilentSink()
    version = harness_version()
    names = check_actors(actors, ratios=True)
    check_baseline(baseline, names)
    for name, number, minimum in (("limit", limit, 1), ("fewshot", fewshot, 0)):
        if number is not None and number < minimum:
            raise ConfigError.because(f"--{name} {number}", f"a whole number from {minimum}", "correct it")
    recorded, models = open_run(run)
    config = load_config(recorded.model_dump(), overrides)
    check_actor_settings(config, recorded)
    rows = AUTO_BATCH if config.evaluation.batch == "auto" else resolved(config.evaluation.batch)
    config = resolve(config, plan_here(config, models.base))
    from lite_c2f.evaluation.lm_eval.model import silence_harness

    with disk_errors.as_user_errors(run), locked(run), recording(run, sink, is_finished) as sink, silence_harness():
        sink.on_stage("tasks", 0, "tasks")
        request = load_tasks(tasks, fewshot, lambda done, total: show_loading(sink, done, total))
        check_answers_fit(request.tasks, shared_context(models))
        loading = {name: str(getattr(config.model, name)) for name in sorted(LOADING_KEYS)}
        environment = f"{version} {loading}"
        hashes = {name: task_hash(task, limit, chat_template, environment) for name, task in request.tasks.items()}
        options = TaskOptions(hashes, limit, chat_template, BatchSize("evaluation.batch", rows, sink.on_message))
        cache = ResultCache(run / "evaluation" / "general.jsonl", cache_identity(config, models, run))
        measured = run_tasks(config, models, run, names, request, options, cache, sink)
        result = {
            "schema": 1,
            "lm_eval": version,
            "loaded": loading,
            "actors": names,
            "baseline": baseline,
            "limit": limit,
            "chat_template": chat_template,
            "seed": SEED,
            "note": ERRORS,
            "shown": request.shown,
            "tasks": benchmark_tables(request, measured, baseline),
        }
        write_json(run / "evaluation" / FILE, result)
    return result


def show_loading(sink: ProgressSink, done: int, total: int) -> None:
    """Report the number of loaded task names, whose data may have to be downloaded."""
    if not done:
        sink.on_stage("tasks", total, "tasks")
    sink.on_step(done, {})


def shared_context(models: ModelPair) -> int:
    """The smaller context of both models, in tokens."""
    from lite_c2f.evaluation.lm_eval.model import MAX_CONTEXT

    return min(MAX_CONTEXT, *(context_length(read_config(Path(folder))) or MAX_CONTEXT for folder in models))


def cache_identity(config: Config, models: ModelPair, run: Path) -> dict[str, Any]:
    """Settings and hashes of the actors, which every figure depends on."""
    actors = {"model": config.model.model_dump(mode="json", exclude=LOADING_KEYS), "made_of": actor_hashes(config, run)}
    return actors | fingerprints_of_models(models)


def run_tasks(
    config: Config,
    models: ModelPair,
    run: Path,
    actors: Sequence[str],
    request: TaskRequest,
    options: TaskOptions,
    cache: ResultCache,
    sink: ProgressSink,
) -> dict[str, Measured]:
    """Figures by actor and task, from the cache if it has them. Each model is loaded once."""
    from lite_c2f.evaluation.lm_eval import model as harness

    figures = {
        actor: {task: cached for task in request.tasks if (cached := cache.get(options.label(actor, task))) is not None}
        for actor in actors
    }
    sink.on_stage("benchmarks", len(actors) * len(request.tasks), "tasks")
    sink.on_step(sum(map(len, figures.values())), {})
    for source in dict.fromkeys(map(source_of, actors)):
        members = [actor for actor in actors if source_of(actor) == source and len(figures[actor]) < len(request.tasks)]
        if not members:
            continue
        loaded = harness.load_actor(source, config, models, run, members, options.chat)
        for actor in members:
            for task in [task for task in request.tasks if task not in figures[actor]]:
                figures[actor][task] = harness.run_task(loaded, actor, task, request.tasks[task], options)
                cache.put(options.label(actor, task), figures[actor][task])
                if truncated := figures[actor][task]["truncated"]:
                    sink.on_message(f"{actor}: {truncated} prompts of {task} were too long and lost their beginning")
                sink.on_step(sum(map(len, figures.values())), {})
        del loaded
        free()
    return {actor: {task: figures[actor][task] for task in request.tasks} for actor in actors}


def benchmark_tables(request: TaskRequest, measured: dict[str, Measured], baseline: str) -> dict[str, Any]:
    """Tables of all tasks and of the groups that have a figure of their own, with versions and few-shot examples."""
    higher = {name: task.higher_is_better() for name, task in request.tasks.items()}
    rows = task_table(measured, baseline, higher)
    for name, task in request.tasks.items():
        rows[name] |= {"version": str(task.VERSION), "fewshot": task.get_config("num_fewshot")}
    for name, group in request.groups.items():
        if group.has_aggregation:
            shots = {task.get_config("num_fewshot") for task in group.get_all_tasks()}
            about = {"version": str(group.version), "fewshot": shots.pop() if len(shots) == 1 else None}
            rows[name] = group_table(group, measured, baseline, higher) | about
    return rows
