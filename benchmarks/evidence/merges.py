"""Merges of the evidence: the merger, and other ways to bring a Coarse Actor's residue into an instruct model.

The merger alone, and with the residue thinned out by DARE and TIES (`lite_c2f.Treatment`); averaging and SLERP of the
Coarse Actor and the instruct model, a few lines each; TIES and DARE as model mergers use them, by PEFT's functions on
the task vectors of both models against their base. Every one has a grid of seven shares.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from arms import directly, final_sampling, judge_of
from peft import PeftModel
from peft.utils.merge_utils import dare_linear, ties
from torch import Tensor
from transformers import AutoModelForCausalLM
from worlds import COMPARED, TRIED, config_of, corpus_of, models_of

from lite_c2f.actors.answers import standard_error, summarize
from lite_c2f.actors.models import InstructModel, answer_base, load_coarse
from lite_c2f.config.settings import Config
from lite_c2f.data.records import Prompt
from lite_c2f.fine.merge import merge
from lite_c2f.fine.sparsify import Treatment
from lite_c2f.fine.sweep import RatioTrial, choose

Weights = dict[str, Tensor]
DENSITY = 0.5
RATIOS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
SHARES = (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9)  # of the Coarse Actor, the rest is the instruct model's
TREATED = {  # by lite_c2f's merger
    "krm": Treatment(),
    "krm-dare": Treatment(sparsify="dare", density=DENSITY),
    "krm-ties": Treatment(sparsify="ties", density=DENSITY),
}


class Models(NamedTuple):
    """All three in float32, by the weight's name."""

    base: Weights
    instruct: Weights
    coarse: Weights


def average(base: Tensor, instruct: Tensor, coarse: Tensor, share: float) -> Tensor:
    return (1 - share) * instruct + share * coarse


def slerp(base: Tensor, instruct: Tensor, coarse: Tensor, share: float) -> Tensor:
    """On the arc between both weights, each taken as one vector; where they are parallel, on the line."""
    left, right = instruct.flatten(), coarse.flatten()
    cosine = torch.dot(left, right) / (left.norm() * right.norm())
    angle = torch.arccos(cosine.clamp(-1, 1))
    if angle < 1e-4:
        return average(base, instruct, coarse, share)
    parts = (torch.sin((1 - share) * angle) * instruct + torch.sin(share * angle) * coarse) / torch.sin(angle)
    return parts


def by_ties(base: Tensor, instruct: Tensor, coarse: Tensor, share: float) -> Tensor:
    return base + ties([coarse - base, instruct - base], torch.tensor([share, 1.0]), DENSITY)


def by_dare(base: Tensor, instruct: Tensor, coarse: Tensor, share: float) -> Tensor:
    return base + dare_linear([coarse - base, instruct - base], torch.tensor([share, 1.0]), DENSITY)


METHODS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor, float], Tensor], tuple[float, ...]]] = {
    "average": (average, SHARES),
    "slerp": (slerp, SHARES),
    "ties": (by_ties, RATIOS),
    "dare": (by_dare, RATIOS),
}


def run_merges(world: str, seed: int, coarse: Path, direct: Path, rewards: Path, scratch: Path) -> dict[str, Any]:
    """Every method at several shares on one set of prompts, and at the share chosen by them on another.

    coarse: the run whose Coarse Actor is merged; direct: the run that trained the instruct model itself, whose own
    reward model judges both as well. Returns {"instruct": figures, METHOD: {"tried", "chosen", "final"},
    "second_judge": {"fine": reward, "direct": reward}}.
    """
    config, models, corpus = config_of(world, seed), models_of(world), corpus_of(world, seed)
    judge = judge_of(config, models, rewards)
    held_out = corpus.held_out_prompts
    final, trial = held_out[:COMPARED], held_out[COMPARED : COMPARED + TRIED]
    instruct = Path(models.instruct)
    result: dict[str, Any] = {"instruct": score_folder(config, judge, instruct, final).figures}
    loaded = load_all(models.base, models.instruct, coarse / "coarse" / "adapter")
    for method in (*TREATED, *METHODS):
        trials = {}
        for share in METHODS[method][1] if method in METHODS else RATIOS:
            folder = scratch / f"{method}-{share}"
            if method in TREATED:
                treatment = TREATED[method]._replace(seed=seed)
                adapter = coarse / "coarse" / "adapter"
                merge(adapter, models.base, models.instruct, folder, ratio=share, treatment=treatment)
            else:
                write(instruct, folder, combined(loaded, METHODS[method][0], share, seed))
            trials[share] = score_folder(config, judge, folder, trial)
        chosen = choose(trials, config.fine.min_eos).ratio
        tried = [{"ratio": share, **trial_result.figures} for share, trial_result in trials.items()]
        best = score_folder(config, judge, scratch / f"{method}-{chosen}", final).figures
        result[method] = {"tried": tried, "chosen": chosen, "final": best}
        if method == "krm":
            result["second_judge"] = second_judge(world, seed, scratch / f"krm-{chosen}", direct, final)
        shutil.rmtree(scratch, ignore_errors=True)
    return result


def second_judge(world: str, seed: int, fine: Path, direct: Path, prompts: list[Prompt]) -> dict[str, float]:
    """Mean rewards by the reward model that trained the instruct model directly, of that one and of the Fine Actor."""
    config, on = directly(world, seed)
    roles, judge = load_coarse(config, on, direct)
    turns = [prompt.turns for prompt in prompts]
    responses = {
        "fine": InstructModel(config_of(world, seed), str(fine)).answer(turns, final_sampling(config), len(turns)),
        "direct": answer_base(roles, "policy", judge.tokenizer, config, turns, final_sampling(config), len(turns)),
    }
    return {name: round(fmean(judge(turns, answers)), 4) for name, answers in responses.items()}


def load_all(base: str, instruct: str, adapter: Path) -> Models:
    """Base and instruct as they are; coarse: base + residue, merged by PEFT."""

    def weights(model: Any) -> Weights:
        return {name: value.detach().clone() for name, value in model.state_dict().items()}

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = AutoModelForCausalLM.from_pretrained(instruct, dtype=torch.float32)
    of_base = weights(plain)
    return Models(of_base, weights(tuned), weights(PeftModel.from_pretrained(plain, adapter).merge_and_unload()))


def combined(models: Models, method: Callable[..., Tensor], share: float, seed: int) -> Weights:
    """A model made of all three, weight by weight."""
    torch.manual_seed(seed)  # DARE drops at random
    return {
        name: method(models.base[name], value, models.coarse[name], share) for name, value in models.instruct.items()
    }


def write(instruct: Path, folder: Path, weights: Weights) -> None:
    """A model folder like the instruct model's, with these weights."""
    model = AutoModelForCausalLM.from_pretrained(instruct, dtype=torch.float32)
    model.load_state_dict(weights)
    shutil.copytree(instruct, folder)
    model.save_pretrained(folder)


def score_folder(config: Config, judge: Any, folder: Path, prompts: list[Prompt]) -> RatioTrial:
    """Figures of a model's responses through its chat template, in 4 bits as the comparison loads it."""
    turns = [prompt.turns for prompt in prompts]
    answers = InstructModel(config, str(folder)).answer(turns, final_sampling(config), len(turns))
    rewards = judge(turns, answers)
    figures = summarize(prompts, answers, rewards)
    figures["reward_se"] = round(standard_error(rewards), 4)
    figures["characters"] = round(fmean(len(answer.text) for answer in answers), 1)
    return RatioTrial(figures, rewards)
