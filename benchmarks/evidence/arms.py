"""Arms of the evidence: one PPO run each, and the figures of its final policy."""

import json
import shutil
import time
from itertools import accumulate, groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from worlds import COMPARED, WORLDS, config_of, corpus_of, models_of

from lite_c2f.actors.answers import standard_error, summarize
from lite_c2f.actors.models import RewardModel, answer_base, load_coarse
from lite_c2f.backbone.adapters import load_into
from lite_c2f.backbone.load import load_model, load_tokenizer
from lite_c2f.backbone.roles import Roles
from lite_c2f.coarse.train import train_coarse
from lite_c2f.config.settings import Config
from lite_c2f.reward.files import Normalizer
from lite_c2f.reward.train import train_reward
from lite_c2f.runs.corpus import Corpus
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.sampling import Sampling
from lite_c2f.storage.files import read_json
from lite_c2f.toy.world import is_rambling

# Each differs from the first in one thing.
ARMS: dict[str, tuple[str, ...]] = {
    "logistic": (),
    "start-half": ("coarse.length.start={half}",),
    "linear": ("coarse.length.mode=linear",),
    "fixed-short": ("coarse.length.mode=fixed",),
    "fixed-long": ("coarse.length.mode=fixed", "coarse.length.start={longest}"),
    "reward-only": ("coarse.length.w_value=0",),
    "critic-only": ("coarse.length.w_reward=0", "coarse.length.w_value=1"),
    "critic-from-zero": ("coarse.critic=zero",),
    "critic-shared": ("coarse.critic=shared",),
}
# A check of the answer beside the reward model of `logistic`, and in its place. In the harder world, three seeds.
CHECK = "{{function: 'lite_c2f.reward.functions:number_matches', arguments: {{column: toy_answer}}}}"
CHECKED: dict[str, tuple[str, ...]] = {
    "checked": (f"coarse.rewards=[{{{{model: trained}}}}, {CHECK}]",),
    "check-alone": (f"coarse.rewards=[{CHECK}]",),
}
INSTRUCT = "instruct-ppo"  # PPO on the instruct model itself, with a reward model of its own


def train_reward_model(world: str, seed: int, folder: Path) -> dict[str, Any]:
    """The reward model that all runs of a world and a seed share."""
    return train_reward(config_of(world, seed), models_of(world), corpus_of(world, seed), folder)


def run_arm(world: str, seed: int, name: str, folder: Path, rewards: Path) -> dict[str, Any]:
    """Train one arm until its token budget is spent; returns its curve, and the figures of its final policy.

    rewards: the folder of the shared reward model, which judges all final answers.
    """
    config, models, corpus = config_of(world, seed), models_of(world), corpus_of(world, seed)
    if name == INSTRUCT:
        trained, on = directly(world, seed)
        train_reward(trained, on, corpus, folder)
    else:
        overrides = tuple(
            text.format(longest=WORLDS[world].longest, half=WORLDS[world].longest // 2)
            for text in (ARMS | CHECKED)[name]
        )
        trained, on = config_of(world, seed, overrides), models
        shutil.copytree(rewards / "reward", folder / "reward")
    began = time.perf_counter()
    train_coarse(trained, on, corpus, folder)
    seconds = time.perf_counter() - began
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if line["stage"] == "coarse"]
    roles, _ = load_coarse(trained, on, folder)
    judge = judge_of(config, models, rewards)
    return {
        "seconds": round(seconds, 1),
        "tokens": round(sum(line["tokens"] for line in updates) * config.coarse.rollouts),
        "updates": len(updates),
        "limit_last": updates[-1]["limit"],
        "curve": curve(folder, updates, config.coarse.rollouts),
        "rambling": rambling(folder),
        "training": [
            [round(line[key], 4) for key in ("reward", "limit", "hit_limit", "tokens", "kl", "explained_variance")]
            for line in updates
        ],
        "final": final_figures(trained, roles, load_tokenizer(on.base), judge, corpus),
    }


def directly(world: str, seed: int) -> tuple[Config, ModelPair]:
    """Configuration and models that train the instruct model itself, in its own chat format."""
    instruct = models_of(world).instruct
    return config_of(world, seed, ("model.prompt_template=chat", "model.stop=[]")), ModelPair(instruct, instruct)


def final_sampling(config: Config) -> Sampling:
    """How the responses of every final figure are sampled."""
    return Sampling(config.evaluation.max_tokens, config.evaluation.temperature, seed=config.run.seed)


def curve(folder: Path, updates: list[dict], rollouts: int) -> list[list[float]]:
    """[tokens generated so far, mean reward of 64 held-out prompts at the largest limit], as training went on."""
    spent = list(accumulate(line["tokens"] * rollouts for line in updates))
    return [[round(spent[step - 1]), round(fmean(row["reward"] for row in rows), 4)] for step, rows in samples(folder)]


def rambling(folder: Path) -> list[float]:
    """The share of those 64 answers that ramble, at each point of the curve."""
    return [round(fmean(is_rambling(row["response"]) for row in rows), 4) for _, rows in samples(folder)]


def samples(folder: Path) -> list[tuple[int, list[dict[str, Any]]]]:
    """(update, the answers that were stored after it)."""
    rows = [json.loads(line) for line in (folder / "coarse" / "samples.jsonl").read_text().splitlines()]
    return [(step, list(group)) for step, group in groupby(rows, lambda row: row["step"])]


def final_figures(config: Config, roles: Roles, tokenizer: Any, judge: RewardModel, corpus: Corpus) -> dict[str, float]:
    """Figures of the policy's responses to held-out prompts."""
    prompts = corpus.held_out_prompts[:COMPARED]
    turns = [prompt.turns for prompt in prompts]
    answers = answer_base(roles, "policy", tokenizer, config, turns, final_sampling(config), COMPARED)
    rewards = judge(turns, answers)
    return summarize(prompts, answers, rewards) | {"reward_se": round(standard_error(rewards), 4)}


def judge_of(config: Config, models: ModelPair, rewards: Path) -> RewardModel:
    """A world's reward model as judge."""
    saved = read_json(rewards / "reward" / "metrics.json")
    roles = Roles(load_model(models.base, config), config.lora, ("reward",))
    head = load_into(roles, "reward", rewards / "reward" / "adapter")
    assert head is not None
    roles.add_head("reward", head)
    return RewardModel(roles, load_tokenizer(models.base), Normalizer(saved["mean"], saved["std"]), config)
