"""Messages of a run to its progress sink: the plan, the data, and adapters for functions with a step callback."""

from collections.abc import Callable
from pathlib import Path

from lite_c2f.config.settings import Config
from lite_c2f.data.order import count_by_source, short_names
from lite_c2f.memory import Plan
from lite_c2f.memory.sizes import GIBIBYTE
from lite_c2f.runs.corpus import Corpus, skipped_rows, training_pairs
from lite_c2f.runtime.progress import ProgressSink
from lite_c2f.storage.files import read_json


def report_plan(sink: ProgressSink, plan: Plan) -> None:
    """Report the batch sizes that were chosen, the peak memory, and the plan's warnings."""
    for warning in plan.warnings:
        sink.on_message(f"note: {warning}")
    if plan.vram_gib is None:
        return
    peak = max(plan.needs, key=lambda need: need.total)
    batches, stage = plan.batches, peak.stage.replace("_", " ")
    coarse = f"coarse.sampling_batch {batches.sampling_batch}, coarse.micro_batch {batches.micro_batch}"
    if batches.dpo_micro_batch is not None:
        coarse = f"coarse.dpo.micro_batch {batches.dpo_micro_batch}"
    sink.on_message(
        f"planned for {plan.vram_gib:.1f} GiB: at most {peak.total / GIBIBYTE:.1f} GiB ({stage}); "
        f"reward.micro_batch {batches.reward_micro_batch}, {coarse}, evaluation.batch {batches.evaluation_batch}"
    )


def report_data(sink: ProgressSink, corpus: Corpus, config: Config) -> None:
    """Report the numbers of pairs and prompts, and the rows that could not be used."""
    pairs = training_pairs(corpus, config)
    sink.on_message(
        f"data: {len(pairs)} pairs and {len(corpus.train_prompts)} prompts to train on, "
        f"{len(corpus.held_out_pairs)} pairs and {len(corpus.held_out_prompts)} prompts held out"
    )
    parts = pairs, corpus.train_prompts, corpus.held_out_pairs, corpus.held_out_prompts
    counts = [count_by_source(part) for part in parts]
    names = short_names({source for count in counts for source in count})
    if len(names) > 1:
        for source, name in names.items():
            trained, prompts, held_pairs, held_prompts = (count.get(source, 0) for count in counts)
            sink.on_message(
                f"  {name}: {trained} pairs and {prompts} prompts, {held_pairs} and {held_prompts} held out"
            )
    there, compared = len(corpus.held_out_prompts), config.evaluation.prompts
    requested = compared + config.fine.prompts
    if config.fine.ratio == "auto" and there < requested:
        sink.on_message(
            f"evaluation.prompts and fine.prompts ask for {requested} held-out prompts: there are {there}, so the "
            "ratio is chosen on some of those it is compared on"
        )
    elif there < compared:
        sink.on_message(f"evaluation.prompts={compared}: {there} prompts are held out, and all are answered")
    if config.coarse.evaluate_every is not None and there < (wanted := config.coarse.evaluate_prompts):
        sink.on_message(f"coarse.evaluate_prompts={wanted}: {there} prompts are held out, and all are answered")
    if corpus.skipped:
        sink.on_message(f"rows skipped: {skipped_rows(corpus)}")
    for note in corpus.notes:
        sink.on_message(note)


def report_split(sink: ProgressSink, run: Path) -> None:
    """Warn of a run begun by a version with another data split: prompts held out now may have been trained on."""
    file = run / "reward" / "metrics.json"
    saved = read_json(file) if file.is_file() else {}
    if "accuracy" in saved and "pairs_by_source" not in saved:
        sink.on_message(
            f"'{run}' was trained by a version that split the data in another way: prompts that are held out now may "
            "be among those it was trained on, so that figures on them are too good; train it again to be sure"
        )


def report_truncation(sink: ProgressSink, report: dict[str, int]) -> None:
    """Report what was cut to fit data.max_prompt_tokens and data.max_answer_tokens."""
    if report["prompts_truncated"] or report["answers_cut"]:
        sink.on_message(
            f"of {report['pairs']} pairs: {report['prompts_truncated']} prompts too long "
            f"({report['turns_dropped']} oldest turns dropped), {report['answers_cut']} answers cut"
        )


class ToyProgress:
    """Progress callback of the toy models' training; `trained` tells whether there was any."""

    def __init__(self, sink: ProgressSink) -> None:
        self.sink, self.name, self.trained = sink, "", False

    def __call__(self, name: str, step: int, steps: int, loss: float) -> None:
        self.trained = True
        if name != self.name:
            self.sink.on_stage(name, steps, "steps")
            self.name = name
        self.sink.on_step(step, {"loss": loss})


class StageProgress:
    """Progress callback of the comparison, one step per actor."""

    def __init__(self, sink: ProgressSink) -> None:
        self.sink, self.done = sink, 0

    def __call__(self, actor: str) -> None:
        self.sink.on_step(self.done, {})
        self.done += 1


def step_callback(sink: ProgressSink, name: str) -> Callable[[int, int, dict[str, float]], None]:
    """A progress callback for a stage whose number of steps is only known at its first step."""
    started: list[bool] = []

    def step(done: int, total: int, values: dict[str, float]) -> None:
        if not started:
            sink.on_stage(name, total, "steps")
            started.append(True)
        sink.on_step(done, values)

    return step
