"""Ratios tried without merging: the unmerged adapter is scaled at run time, only the winner is merged."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from lite_c2f.actors import Instruct, Judge, load_coarse
from lite_c2f.answers import standard_error, summarize
from lite_c2f.batches import BatchSize
from lite_c2f.config import Config, settled
from lite_c2f.errors import ConfigError
from lite_c2f.inputs import Corpus, ModelPair
from lite_c2f.sampling import Sampling

RULE = (
    "of the ratios whose share of ended responses is at least min_eos, the smallest whose mean reward is within one "
    "standard error of the highest"
)


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
    batch = BatchSize("evaluation.batch", settled(config.evaluation.batch))
    lengths: list[int] | None = None  # of the ratio before: the longest answers start first
    wanted = sorted({0.0, *(ratios or settings.ratios)})
    for index, ratio in enumerate(wanted, 1):
        with instruct.ratio(ratio):
            answers = instruct.answer(turns, sampling, batch, lengths)
        lengths = [answer.tokens for answer in answers]
        rewards = judge(turns, answers)
        row = {"ratio": ratio, **summarize(prompts, answers, rewards)}
        row["reward_se"] = round(standard_error(rewards), 4)
        tried.append(row)
        if progress:
            progress(index, len(wanted), row)
    return {"rule": RULE, "min_eos": settings.min_eos, "chosen": choose(tried, settings.min_eos), "tried": tried}


def choose(tried: Sequence[dict[str, float]], min_eos: float) -> float:
    """The ratio by RULE; where none is eligible, the one whose responses end most often.

    A ratio that is not measurably better is not worth changing more of the instruct model.

    >>> rows = [{"ratio": r, "reward": r, "reward_se": 0.1, "eos": e} for r, e in ((0.5, 1.0), (1.0, 0.2))]
    >>> choose(rows, 0.95)
    0.5
    """
    candidates = sorted((row for row in tried if row["ratio"] > 0), key=lambda row: row["ratio"])
    eligible = [row for row in candidates if row["eos"] >= min_eos]
    if not eligible:
        return max(candidates, key=lambda row: (row["eos"], row["reward"], -row["ratio"]))["ratio"]
    best = max(eligible, key=lambda row: row["reward"])
    return next(row["ratio"] for row in eligible if row["reward"] >= best["reward"] - best["reward_se"])


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
