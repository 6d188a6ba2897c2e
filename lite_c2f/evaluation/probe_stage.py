"""Probe of a finished run: unwanted words by layer and in answers."""

from pathlib import Path
from typing import Any

from lite_c2f.actors.models import InstructModel, Ratio
from lite_c2f.actors.names import FINE, INSTRUCT
from lite_c2f.backbone.machine import plan_here
from lite_c2f.config.data import Source
from lite_c2f.config.settings import resolved
from lite_c2f.data.order import shuffled
from lite_c2f.data.records import load_prompts
from lite_c2f.evaluation.compare import merged_ratios
from lite_c2f.evaluation.probe import probabilities_by_layer, probe_chart, read_words, word_rates
from lite_c2f.memory import resolve
from lite_c2f.runs.corpus import load_corpus
from lite_c2f.runs.manifest import open_run
from lite_c2f.runs.published import coarse_adapter, is_finished
from lite_c2f.runtime import disk_errors
from lite_c2f.runtime.batch_size import BatchSize
from lite_c2f.runtime.progress import ProgressSink, SilentSink
from lite_c2f.runtime.record import recording
from lite_c2f.runtime.svg import document
from lite_c2f.sampling import Sampling
from lite_c2f.storage.files import read_json, write_json, write_text
from lite_c2f.storage.lock import locked


def probe(
    run: str | Path,
    words: str | Path,
    prompts: str | Path | None = None,
    limit: int = 64,
    *,
    sink: ProgressSink | None = None,
) -> dict[str, Any]:
    """Probability of unwanted words by layer, with and without the residue, and how often they occur in answers.

    words: a file with one word per line; prompts: a data file (default: the run's held-out prompts); limit: how many of
    them. The Fine Actor is the instruct model with the residue, unmerged, at the ratio of each weight in
    RUN/fine/merge.json. Returns what it writes to RUN/evaluation/probe.json ("layer_ratios": whether weights had
    ratios of their own; "ratio" is that of the others); the curve is in RUN/evaluation/probe.svg.
    """
    run, sink = Path(run), sink or SilentSink()
    unwanted = read_words(Path(words))
    config, models = open_run(run)
    config = resolve(config, plan_here(config, models.base))
    if prompts is None:
        chosen = load_corpus(config).held_out_prompts[:limit]
    else:  # shuffled, because files are often sorted
        chosen = shuffled(load_prompts([Source(path=str(prompts))]).items, config.run.seed)[:limit]
    turns = [prompt.turns for prompt in chosen]
    report = read_json(run / "fine" / "merge.json")
    settings = config.evaluation
    sampling = Sampling(settings.max_tokens, settings.temperature, seed=config.run.seed)
    batch = BatchSize("evaluation.batch", resolved(settings.batch), sink.on_message)
    with disk_errors.as_user_errors(run), locked(run), recording(run, sink, is_finished) as sink:
        sink.on_stage("probe", 2, "actors")
        actor = InstructModel(config, models.instruct, coarse_adapter(run, config.coarse.use))
        result: dict[str, Any] = {
            "words": len(unwanted),
            "prompts": len(turns),
            "ratio": float(report["ratio"]),
            "layer_ratios": bool(report.get("layer_ratios")),
            "layers": {},
            "said": {},
        }
        ratios: dict[str, Ratio] = {INSTRUCT: 0.0, FINE: merged_ratios(run, actor.weights)}
        for done, (name, ratio) in enumerate(ratios.items(), 1):
            result["layers"][name] = probabilities_by_layer(actor, turns, unwanted, ratio, batch)
            with actor.ratio(ratio):
                result["said"][name] = word_rates(actor.answer(turns, sampling, batch), unwanted)
            sink.on_step(done, {})
        write_json(run / "evaluation" / "probe.json", result)
        write_text(run / "evaluation" / "probe.svg", document(probe_chart(result["layers"])))
    return result
