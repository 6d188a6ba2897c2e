"""Ratios tried without merging: the unmerged adapter is scaled at run time, only the winner is merged."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from lite_c2f.actors import Instruct, Judge, load_coarse
from lite_c2f.answers import summarize
from lite_c2f.config import Config
from lite_c2f.errors import ConfigError
from lite_c2f.inputs import Corpus, ModelPair
from lite_c2f.sampling import Sampling

RULE = "of the ratios whose share of ended responses is at least min_eos, the highest mean reward; the smaller on a tie"


def sweep(
    config: Config,
    models: ModelPair,
    corpus: Corpus,
    run: Path,
    ratios: Sequence[float] | None = None,
    judge: Judge | None = None,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> dict:
    """Try ratios of the residue on held-out prompts and choose one; returns rule, figures and choice.

    The prompts are not those of the final comparison, as long as enough are held out. Ratio 0, the instruct model, is
    measured too but never chosen.
    """
    settings = config.fine
    judge = judge or load_coarse(config, models, run)[1]
    first = min(config.evaluation.prompts, max(len(corpus.held_out_prompts) - settings.prompts, 0))
    prompts = corpus.held_out_prompts[first : first + settings.prompts]
    turns = [prompt.turns for prompt in prompts]
    instruct = Instruct(config, models.instruct, run / "coarse" / "adapter")
    sampling = Sampling(settings.max_tokens, config.evaluation.temperature, seed=config.run.seed + 1)
    tried = []
    wanted = sorted({0.0, *(ratios or settings.ratios)})
    for index, ratio in enumerate(wanted, 1):
        with instruct.ratio(ratio):
            answers = instruct.answer(turns, sampling, config.evaluation.batch)
        row = {"ratio": ratio, **summarize(prompts, answers, judge(turns, answers))}
        tried.append(row)
        if progress:
            progress(index, len(wanted), row)
    return {"rule": RULE, "min_eos": settings.min_eos, "chosen": choose(tried, settings.min_eos), "tried": tried}


def choose(tried: Sequence[dict[str, float]], min_eos: float) -> float:
    """The ratio by RULE; where none is eligible, the one whose responses end most often.

    >>> choose([{"ratio": 0.5, "reward": 1.0, "eos": 1.0}, {"ratio": 1.0, "reward": 2.0, "eos": 0.2}], 0.95)
    0.5
    """
    candidates = [row for row in tried if row["ratio"] > 0]
    eligible = [row for row in candidates if row["eos"] >= min_eos]
    if eligible:
        return max(eligible, key=lambda row: (row["reward"], -row["ratio"]))["ratio"]
    return max(candidates, key=lambda row: (row["eos"], row["reward"], -row["ratio"]))["ratio"]


def parse_ratios(text: str) -> list[float]:
    """Ratios from text with commas between. Raises ConfigError for anything but finite numbers above 0.

    >>> parse_ratios("0.5,1")
    [0.5, 1.0]
    """
    try:
        ratios = [float(part) for part in text.split(",")]
    except ValueError:
        ratios = []
    if not ratios or not all(math.isfinite(ratio) and ratio > 0 for ratio in ratios):
        raise ConfigError.because(f"--ratios '{text}'", "numbers above 0 with commas between", "write e.g. 0.5,0.75,1")
    return ratios
