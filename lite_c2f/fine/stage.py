"""Fine stage of a run: choose a ratio, or one for each group of layers, and merge."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lite_c2f.actors.answers import min_eos_message
from lite_c2f.config.settings import Config
from lite_c2f.fine import groups
from lite_c2f.fine.chart import ratio_chart
from lite_c2f.fine.merge import merge, to_sink
from lite_c2f.fine.sweep import RatioTrials, sweep
from lite_c2f.runs.corpus import Corpus
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.runs.models import unlisted_end
from lite_c2f.runs.published import coarse_adapter
from lite_c2f.runtime.batch_size import free
from lite_c2f.runtime.progress import ProgressSink
from lite_c2f.runtime.svg import document
from lite_c2f.storage.files import write_json, write_text


def make_fine(config: Config, models: ModelPair, corpus: Corpus, run: Path, sink: ProgressSink) -> None:
    """Choose a ratio (unless it is configured) and merge the residue into the instruct model."""
    settings, layer_ratios = config.fine, None
    ratio = settings.ratio
    journal = run / "fine" / "trials.jsonl"
    trials = RatioTrials(config, models, corpus, run, journal) if ratio == "auto" or settings.group_budget else None
    if ratio == "auto" and trials is not None:
        sink.on_stage("ratios", len({0.0, *settings.ratios}), "ratios")
        result = sweep(trials, settings.ratios, settings.min_eos, lambda step, _, row: sink.on_step(step, row))
        write_json(run / "fine" / "ratios.json", result)
        write_text(run / "fine" / "ratios.svg", document(ratio_chart(result)))
        ratio = result["chosen"]
        sink.on_message(f"ratios tried: {len(result['tried'])}; chosen {ratio}")
        if shortfall := min_eos_message(result):
            sink.on_message(f"warning: {shortfall}")
    if settings.group_budget and trials is not None:
        grouped = search_groups(trials, float(ratio), settings.group_budget, config, run, sink)
        layer_ratios = grouped["layer_ratios"] if grouped["better"] else None
        sink.on_message(grouped["verdict"])
    del trials
    free()
    sink.on_stage("merge", 0, "MiB")
    merge(
        coarse_adapter(run, config.coarse.use),
        models.base,
        models.instruct,
        run / "fine" / "model",
        ratio=float(ratio),
        layer_ratios=layer_ratios,
        dtype=None if config.fine.dtype == "auto" else config.fine.dtype,
        report=run / "fine" / "merge.json",
        progress=to_sink(sink),
        resume=True,
        end_token=unlisted_end(config, models),
        notice=lambda text: sink.on_message(text) if text.startswith(("resumed", "warning")) else None,
    )
    journal.unlink(missing_ok=True)


def try_ratios(
    config: Config,
    models: ModelPair,
    corpus: Corpus,
    run: Path,
    ratios: Sequence[float],
    group_budget: int,
    sink: ProgressSink,
) -> dict[str, Any]:
    """Score ratios without merging, and by group with a budget; writes RUN/fine/sweep.json, .svg and groups.json."""
    sink.on_stage("ratios", len({0.0, *ratios}), "ratios")
    journal = run / "fine" / "sweep-trials.jsonl"
    trials = RatioTrials(config, models, corpus, run, journal)
    for name in ("groups.json", "layer-ratios.yaml"):  # of an earlier sweep
        (run / "fine" / name).unlink(missing_ok=True)
    result = sweep(trials, ratios, config.fine.min_eos, lambda step, _, row: sink.on_step(step, row))
    write_json(run / "fine" / "sweep.json", result)
    write_text(run / "fine" / "sweep.svg", document(ratio_chart(result)))
    if group_budget:
        result = result | {"groups": search_groups(trials, result["chosen"], group_budget, config, run, sink)}
    journal.unlink(missing_ok=True)
    return result


def search_groups(
    trials: RatioTrials, single: float, budget: int, config: Config, run: Path, sink: ProgressSink
) -> dict[str, Any]:
    """Search ratios by group of layers; writes RUN/fine/groups.json, and layer-ratios.yaml if they are better."""
    sink.on_stage("groups", budget, "trials")
    result = groups.search_group_ratios(
        trials, single, budget, config.fine.min_eos, lambda step, _, row: sink.on_step(step, row)
    )
    write_json(run / "fine" / "groups.json", result)
    file = run / "fine" / "layer-ratios.yaml"
    file.unlink(missing_ok=True)
    if result["better"]:
        write_text(file, yaml.safe_dump(result["layer_ratios"], default_flow_style=None, width=200))
    return result
