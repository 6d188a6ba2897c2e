"""Sweep of ratios without merging: the unmerged adapter is scaled at run time; only the chosen ratio is merged."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import xxhash

from lite_c2f.actors.answers import paired_difference, standard_error, summarize
from lite_c2f.actors.models import InstructModel, Ratio, RewardModel, load_coarse
from lite_c2f.config.settings import Config, resolved
from lite_c2f.data.records import Prompt
from lite_c2f.reward.files import reward_identity
from lite_c2f.runs.corpus import Corpus, ratio_prompts
from lite_c2f.runs.fingerprints import fingerprints
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.runs.published import coarse_adapter
from lite_c2f.runtime.batch_size import BatchSize
from lite_c2f.sampling import Sampling
from lite_c2f.storage.files import hash_of
from lite_c2f.storage.results import ResultCache

RULE = (
    "of the ratios whose share of ended responses is at least min_eos, the smallest whose mean reward is behind the "
    "highest by at most one standard error of the paired difference (all ratios answer the same prompts); where none "
    "ends that often, the one that ends most often"
)


class RatioTrial(NamedTuple):
    """The result of one setting of ratios."""

    figures: dict[str, float]  # reward, reward_se, tokens, repeated_4gram, eos, kl, and the toy world's own
    rewards: list[float]  # one per prompt, in the prompts' order


class Choice(NamedTuple):
    """The chosen ratio, and the reward deficit of each ratio."""

    ratio: float
    eligible: bool  # whether any ratio's share of ended responses is at least min_eos
    deficits: dict[float, tuple[float, float]]  # ratio -> (mean of best - this in reward, its standard error)


class RatioTrials:
    """Trials of ratios: the instruct model with the unmerged residue, the reward model, and held-out prompts.

    The prompts are not those of the final comparison if enough are held out. journal: a file of finished trials, with
    which an interrupted process resumes; the caller removes it.
    """

    def __init__(
        self,
        config: Config,
        models: ModelPair,
        corpus: Corpus,
        run: Path,
        journal: Path | None = None,
        reward_model: RewardModel | None = None,
    ) -> None:
        settings = config.fine
        self._reward_model = reward_model or load_coarse(config, models, run)[1]
        self._cache = ResultCache(journal, _inputs(config, models, run)) if journal else None
        self.instruct = InstructModel(config, models.instruct, coarse_adapter(run, config.coarse.use))
        self.prompts = ratio_prompts(corpus, config)
        self._sampling = Sampling(settings.max_tokens, config.evaluation.temperature, seed=config.run.seed + 1)
        self._batch = BatchSize("evaluation.batch", resolved(config.evaluation.batch))
        self._lengths: list[int] | None = None  # of the previous trial: the longest answers start first

    def measure(self, ratio: Ratio, prompts: Sequence[Prompt] | None = None) -> RatioTrial:
        """Answer the prompts with the residue at a ratio, and score the answers.

        kl: mean KL(instruct with the residue || instruct) in nats per token along the answers. A trial in the
        journal is not repeated.
        """
        chosen = self.prompts if prompts is None else prompts
        turns = [prompt.turns for prompt in chosen]
        key = repr((sorted(ratio.items()) if isinstance(ratio, Mapping) else float(ratio), turns))
        name = xxhash.xxh3_128(key.encode()).hexdigest()
        if self._cache is not None and (cached := self._cache.get(name)) is not None:
            self._lengths = cached["lengths"]
            return RatioTrial(cached["figures"], cached["rewards"])
        expected = self._lengths if self._lengths and len(self._lengths) == len(chosen) else None
        with self.instruct.ratio(ratio):
            answers = self.instruct.answer(turns, self._sampling, self._batch, expected)
        self._lengths = [answer.tokens for answer in answers]
        rewards = self._reward_model(turns, answers, chosen)
        figures = summarize(chosen, answers, rewards)
        figures["reward_se"] = round(standard_error(rewards), 4)
        figures["kl"] = round(self.instruct.kl(turns, answers, ratio, self._batch), 4) if ratio else 0.0
        if self._cache is not None:
            self._cache.put(name, {"figures": figures, "rewards": rewards, "lengths": self._lengths})
        return RatioTrial(figures, rewards)


def sweep(
    trials: RatioTrials,
    ratios: Sequence[float],
    min_eos: float,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Try ratios of the residue on held-out prompts and choose one; returns rule, figures and choice.

    {"rule", "min_eos", "reached": whether any ratio reaches min_eos, "chosen", "tried": a row per ratio, with "behind",
    how much lower its mean reward is than the best ratio's, and the standard error of that, "behind_se"}.
    Ratio 0, the instruct model, is measured too but never chosen.
    """
    measured = {}
    for ratio in (all_ratios := sorted({0.0, *ratios})):
        measured[ratio] = trials.measure(ratio)
        if progress:
            progress(len(measured), len(all_ratios), {"ratio": ratio, **measured[ratio].figures})
    choice = choose(measured, min_eos)
    tried = []
    for ratio, trial in measured.items():
        deficit, error = choice.deficits[ratio]
        tried.append({"ratio": ratio, **trial.figures, "behind": round(deficit, 4), "behind_se": round(error, 4)})
    return {"rule": RULE, "min_eos": min_eos, "reached": choice.eligible, "chosen": choice.ratio, "tried": tried}


def _inputs(config: Config, models: ModelPair, run: Path) -> dict[str, Any]:
    """Settings and files that a trial's result depends on, besides its ratio and prompts."""
    adapters = {"coarse": hash_of(coarse_adapter(run, config.coarse.use) / "adapter_model.safetensors")}
    adapters |= reward_identity(config, run)
    sampling = [config.fine.max_tokens, config.evaluation.temperature, config.evaluation.batch]
    return {**config.identity(("model", "data")), **adapters, **fingerprints(config, models), "sampling": sampling}


def choose(results: Mapping[float, RatioTrial], min_eos: float) -> Choice:
    """The ratio by RULE. results: by ratio, all on the same prompts; ratio 0 is compared but never chosen.

    A larger ratio changes more of the instruct model, and is chosen only if it is measurably better: by more than the
    standard error of the paired difference, sd(best_i - this_i) / sqrt(n) over prompts i, which does not contain the
    variance between prompts. best: the ratio with the highest mean reward of those that end often enough; if none
    does, the chosen one.

    >>> results = {r: RatioTrial({"eos": e}, [r, r + 1]) for r, e in ((0.5, 1.0), (1.0, 0.2))}
    >>> choose(results, 0.95).ratio
    0.5
    """
    candidates = sorted(ratio for ratio in results if ratio > 0)
    means = {ratio: fmean(results[ratio].rewards) for ratio in candidates}
    ended = {ratio: results[ratio].figures["eos"] for ratio in candidates}
    eligible = [ratio for ratio in candidates if ended[ratio] >= min_eos]
    if eligible:
        best = max(eligible, key=lambda ratio: means[ratio])
    else:
        best = max(candidates, key=lambda ratio: (ended[ratio], means[ratio], -ratio))
    deficits = {ratio: paired_difference(results[best].rewards, trial.rewards) for ratio, trial in results.items()}
    close = [ratio for ratio in eligible if deficits[ratio][0] <= deficits[ratio][1]]
    return Choice(close[0] if close else best, bool(eligible), deficits)
