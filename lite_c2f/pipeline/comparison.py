"""Comparison of a run's actors, at its end and on request; and the sweep of ratios on request."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lite_c2f.backbone.machine import plan_here
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Config
from lite_c2f.evaluation.actor_hashes import actor_hashes
from lite_c2f.evaluation.compare import compare_actors
from lite_c2f.fine.stage import try_ratios
from lite_c2f.memory import resolve
from lite_c2f.runs.corpus import Corpus, load_corpus
from lite_c2f.runs.manifest import check_actor_settings, check_run, open_run, save_manifest, write_summary
from lite_c2f.runs.messages import StageProgress, report_split
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.runs.models import check_context
from lite_c2f.runs.published import is_finished
from lite_c2f.runtime import disk_errors
from lite_c2f.runtime.progress import ProgressSink, SilentSink
from lite_c2f.runtime.record import recording
from lite_c2f.storage.files import read_json, write_json
from lite_c2f.storage.lock import locked


def compare(
    config: Config, models: ModelPair, corpus: Corpus, run: Path, sink: ProgressSink, requested: Config
) -> None:
    """Compare the four actors and write RUN/evaluation. requested: the settings with unresolved `auto` batches."""
    began = time.perf_counter()
    sink.on_stage("comparison", 4, "actors")
    actors = compare_actors(config, models, corpus, run, progress=StageProgress(sink))
    write_json(run / "evaluation" / "actors.json", actors)
    write_json(run / "evaluation" / "settings.json", comparison_settings(requested, run))
    save_manifest(run, config, models, {"evaluation": 0.0})
    save_manifest(run, config, models, {"evaluation": time.perf_counter() - began})


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two `comparison_settings`, in words: settings, actors, reward models, files of functions."""
    was, made_of = before.get("made_of", {}), now["made_of"]
    names = ["evaluation"] if before["settings"] != now["settings"] else []
    for name in made_of:
        if name == "sources":
            was_sources = was.get(name, {})
            names += [f"file of reward {one}" for one, found in made_of[name].items() if found != was_sources.get(one)]
        elif made_of[name] != was.get(name):
            names.append({"reward": "reward model", "mix": "scale of rewards"}.get(name, f"{name} actor"))
    return ", ".join(names) or "set of rewards"


def sweep(
    run: str | Path, ratios: Sequence[float] | None = None, *, sink: ProgressSink | None = None, group_budget: int = 0
) -> dict[str, Any]:
    """Score ratios of a finished run's residue without merging; returns what it writes to RUN/fine/sweep.json.

    RUN/fine/ratios.json, from which the published ratio was chosen, stays as it is. The curve is in RUN/fine/sweep.svg.
    group_budget: trials of a search for ratios by group of layers afterwards, in RUN/fine/groups.json; if they beat
    the single ratio, RUN/fine/layer-ratios.yaml is written for `merge`.

    >>> sweep("runs/toy", [0.5, 1.0])["chosen"]
    """
    run, sink = Path(run), sink or SilentSink()
    config, models = open_run(run)
    tried = list(ratios or config.fine.ratios)
    corpus = load_corpus(config)
    config = resolve(config, plan_here(config, models.base))
    with disk_errors.as_user_errors(run), locked(run), recording(run, sink, is_finished) as sink:
        report_split(sink, run)
        return try_ratios(config, models, corpus, run, tried, group_budget, sink)


def evaluate(run: str | Path, overrides: Sequence[str] = (), *, sink: ProgressSink | None = None) -> dict[str, Any]:
    """Compare the actors of a finished run again, with other settings of `evaluation`; returns the new summary.

    >>> evaluate("runs/toy", ["evaluation.prompts=500"])["actors"]["fine"]["reward"]
    """
    run = Path(run)
    recorded, models = open_run(run)
    config = load_config(recorded.model_dump(), overrides)
    check_run(run, config)
    check_actor_settings(config, recorded)
    check_context(config, models)
    corpus = load_corpus(config)
    plan = plan_here(config, models.base)
    with disk_errors.as_user_errors(run), locked(run), recording(run, sink or SilentSink(), is_finished) as sink:
        report_split(sink, run)
        compare(resolve(config, plan), models, corpus, run, sink, requested=config)
        if config.evaluation.prompts > len(corpus.held_out_prompts):
            sink.on_message(
                f"evaluation.prompts={config.evaluation.prompts}: {len(corpus.held_out_prompts)} prompts are held out, "
                "all of them were used, those the ratio was chosen on among them"
            )
        elif (shared := config.evaluation.prompts + config.fine.prompts - len(corpus.held_out_prompts)) > 0:
            shared = min(shared, config.evaluation.prompts)
            sink.on_message(f"{shared} of these prompts are among those that ratios are tried on")
        return write_summary(run)


def comparison_settings(config: Config, run: Path) -> dict[str, Any]:
    """The settings of a comparison, and the hashes of what it compares."""
    return {"settings": config.evaluation.model_dump(mode="json"), "made_of": actor_hashes(config, run)}


def last_comparison_settings(run: Path) -> dict[str, Any] | None:
    """`comparison_settings` of the last comparison; None if there is none."""
    file = run / "evaluation" / "settings.json"
    return read_json(file) if file.is_file() and (run / "evaluation" / "actors.json").is_file() else None
