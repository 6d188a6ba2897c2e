"""The two worlds of the evidence: the toy world as it is, and a harder one."""

from pathlib import Path
from typing import NamedTuple

from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Config
from lite_c2f.runs.corpus import TOY_PAIRS, TOY_PROMPTS, Corpus
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.toy import world
from lite_c2f.toy.build import Recipe, toy_pair

SHORT = 16  # the first limit, in tokens
COMPARED, TRIED = 200, 128  # held-out prompts: of every final figure, and others to choose ratios on


class Setting(NamedTuple):
    """One world, with how long is trained in it."""

    recipe: Recipe
    longest: int  # the largest limit, in tokens
    budget: int  # generated tokens of each PPO run
    about: str


WORLDS = {
    "toy": Setting(
        Recipe(),
        96,
        30_000,
        "2 to 4 operations per problem; half of what the base has read is analysis, and it ends its answers by itself",
    ),
    "harder": Setting(
        Recipe(
            base_steps=1200,
            base_batch=32,
            base_tokens=160,
            toy=world.World(
                operations=(3, 5),
                base_analytic=0.3,
                base_direct=0.35,
                base_rambling=0.3,
                idle=(10, 20),
                flipped=0.1,
            ),
        ),
        128,
        60_000,
        "3 to 5 operations; under a third of what the base has read is analysis, as much rambles on (50 to 120 tokens) "
        "without an answer; a tenth of the preference pairs are turned round",
    ),
}


def config_of(name: str, seed: int, overrides: tuple[str, ...] = ()) -> Config:
    """configs/toy.yaml in this world, without checkpoints that nobody would resume."""
    longest, budget = WORLDS[name].longest, WORLDS[name].budget
    return load_config(
        Path(__file__).parents[2] / "configs" / "toy.yaml",
        [
            f"run.seed={seed}",
            f"data.max_answer_tokens={longest + 32}",
            "coarse.updates=1000",
            f"coarse.token_budget={budget}",
            f"coarse.length.start={SHORT}",
            f"coarse.length.max={longest}",
            "coarse.sample_every=3",
            "coarse.sample_prompts=64",
            f"coarse.sample_tokens={longest}",
            f"fine.max_tokens={longest}",
            f"evaluation.max_tokens={longest}",
            f"evaluation.prompts={COMPARED}",
            "run.checkpoint_every=1000",
            *overrides,
        ],
    )


def models_of(name: str) -> ModelPair:
    """The world's base and instruct model; trained once into the cache."""
    pair = toy_pair(WORLDS[name].recipe)
    return ModelPair(str(pair.base), str(pair.instruct))


def corpus_of(name: str, seed: int) -> Corpus:
    """The world's pairs and prompts, as `toy` has them."""
    toy = WORLDS[name].recipe.toy
    return Corpus(
        world.pairs(TOY_PAIRS, seed, world=toy),
        world.pairs(256, seed, held_out=True, world=toy),
        world.prompts(TOY_PROMPTS, seed, held_out=False, world=toy),
        world.prompts(512, seed, held_out=True, world=toy),
        {},
    )
