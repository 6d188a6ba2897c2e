"""Held-out judgement while training: the same prompts answered every so many updates, the best policy, early stop.

Figures are means over the prompts: of every source, before it is scaled; `reward`, the weighted sum of those trained
on, standardised by the means and deviations of the first evaluation, so that evaluations can be compared (that of PPO
moves with its running statistics); `mean_tokens`; and `share_ended`, of responses that ended by themselves. Sources
with a bound do not enter `reward`: a policy that keeps all bounds is better than one that does not.

An evaluation belongs to the policy after its update; the first is of the untrained policy, at step 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from torch import Tensor

from lite_c2f.actors.answers import paired_difference
from lite_c2f.config.settings import Coarse
from lite_c2f.reward.calls import Scores
from lite_c2f.reward.mix import MIN_STD, RewardMix, ScoreStats, known

WINDOW = 3  # evaluations before the last, with which it is compared
SURE = 2.0  # standard errors of a paired difference


@dataclass
class HeldOutState:
    """Evaluations so far, and the best policy; part of a checkpoint."""

    evaluations: list[dict[str, Any]] = field(default_factory=list)  # {"step", "figures", "scores": per prompt, "kept"}
    best_step: int | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)  # the policy's adapter, in main memory
    key: str = ""  # hash of prompts, sampling and rewards: only evaluations of one key can be compared

    @property
    def last_step(self) -> int | None:
        """The step of the last evaluation."""
        return self.evaluations[-1]["step"] if self.evaluations else None

    def figures(self, step: int) -> dict[str, float]:
        """The figures of the evaluation at a step."""
        return next(line["figures"] for line in self.evaluations if line["step"] == step)

    def exhausted(self, patience: int | None) -> bool:
        """Whether so many evaluations in a row were not better than the best."""
        if patience is None or self.best_step is None:
            return False
        return sum(line["step"] > self.best_step for line in self.evaluations) >= patience

    def state(self) -> dict[str, Any]:
        """All but the weights, in JSON's types."""
        return {"key": self.key, "evaluations": self.evaluations, "best_step": self.best_step}

    def restore(self, state: Mapping[str, Any], weights: dict[str, Tensor]) -> bool:
        """Restore what `state` gave, with the best policy's weights; begin anew, and return False, for another key."""
        evaluations = state.get("evaluations", [])
        comparable = not evaluations or state.get("key") == self.key
        self.evaluations = [dict(line) for line in evaluations] if comparable else []
        self.best_step = state.get("best_step") if comparable else None
        self.best_weights = weights if comparable else {}
        return comparable

    def lines(self) -> list[dict[str, Any]]:
        """A line for each evaluation, as metrics.jsonl has it."""
        return [{"step": line["step"], **line["figures"]} for line in self.evaluations]


def is_due(state: HeldOutState, settings: Coarse, step: int, *, last: bool) -> bool:
    """Whether the policy after `step` updates is to be evaluated now: not during the critic's warm-up, but before it.

    last: no update follows, so that the last policy is always measured.
    """
    if settings.evaluate_every is None or state.last_step == step:
        return False
    trained = step > settings.critic_warmup
    return step == 0 or (trained and (last or step % settings.evaluate_every == 0))


def record(state: HeldOutState, mix: RewardMix, settings: Coarse, step: int, scores: dict[str, Scores]) -> bool:
    """Add an evaluation to the state; returns whether its policy is the best so far.

    A source that gives no score for any prompt has no figure: a bound on it is not kept, and an evaluation without
    the figure of `best_by` is never the best.
    """
    first = state.evaluations[0]["scores"] if state.evaluations else scores
    scales = {name: ScoreStats().add(known(first[name])) for name in mix.running}
    maximised = RewardMix([source for source in mix.sources if source.at_least is None])
    maximised.running = tuple(name for name in mix.running if scales[name].std > MIN_STD)  # else in their own units
    scores = {"reward": list(maximised.rewards(scores, scales)), **scores}
    figures = {name: round(fmean(values), 6) + 0.0 for name, of in scores.items() if (values := known(of))}
    kept = all(
        source.at_least is None or figures.get(source.name, -math.inf) >= source.at_least for source in mix.sources
    )
    state.evaluations.append({"step": step, "figures": figures, "scores": scores, "kept": kept})
    if step == 0 or settings.best_by not in figures:  # 0: the untrained policy, a reference and nothing to merge
        return False
    best = next((line for line in state.evaluations if line["step"] == state.best_step), None)
    if best is None or _order(state.evaluations[-1], settings) > _order(best, settings):
        state.best_step = step
        return True
    return False


def _order(line: Mapping[str, Any], settings: Coarse) -> tuple[bool, float]:
    return bool(line["kept"]), line["figures"].get(settings.best_by, -math.inf)


def overoptimised(evaluations: Sequence[Mapping[str, Any]], watched: Sequence[str]) -> str | None:
    """A message where the reward rose while a watched figure fell, since one of the last WINDOW evaluations before.

    Both by more than SURE standard errors of the paired difference over the prompts. Thresholds are our own; the effect
    is that of Gao, Schulman and Hilton (arXiv 2210.10760).
    """
    if len(evaluations) < 2:
        return None
    now = evaluations[-1]
    for before in evaluations[-1 - WINDOW : -1]:
        if not _moved(before, now, "reward") > SURE:
            continue
        for name in watched:
            if _moved(before, now, name) < -SURE:
                was, is_now = before["figures"], now["figures"]
                return (
                    f"over-optimisation: from update {before['step']} to {now['step']} the reward rose from "
                    f"{was['reward']:+.3g} to {is_now['reward']:+.3g} on held-out prompts, while {name}, which is not "
                    f"trained on, fell from {was[name]:.3g} to {is_now[name]:.3g}: the policy learns what the reward "
                    "pays for and not what it stands for; read coarse/samples.jsonl, raise coarse.kl_coef, add to "
                    f"coarse.rewards what is missing, or take an earlier policy with coarse.best_by={name} and "
                    "coarse.use=best"
                )
    return None


def _moved(before: Mapping[str, Any], now: Mapping[str, Any], name: str) -> float:
    """The change of a figure in standard errors, over the prompts that have it in both; 0 where it is unchanged."""
    if name not in before["scores"] or name not in now["scores"]:
        return 0.0
    both = [
        (after, earlier)
        for after, earlier in zip(now["scores"][name], before["scores"][name], strict=True)
        if after is not None and earlier is not None
    ]
    if len(both) < 2:
        return 0.0
    change, error = paired_difference([after for after, _ in both], [earlier for _, earlier in both])
    return change / error if error > 0 else math.copysign(math.inf, change) if change else 0.0
