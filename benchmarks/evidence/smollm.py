"""Evidence on a real model, SmolLM2-135M: the jobs, and how one of them is run (`--model smollm2`).

Every job of a seed has its reward model, data and held-out questions. Answers are sampled as `demo --model smollm2`
compares its actors; the Fine Actor is the instruct model with the unmerged residue at a ratio.
"""

import json
import resource
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from arms import final_sampling, judge_of, samples
from jobs import Job

from lite_c2f.actors.answers import Answer, repeated_ngrams, standard_error, summarize
from lite_c2f.actors.models import InstructModel, answer_base, load_coarse
from lite_c2f.backbone.load import load_tokenizer
from lite_c2f.backbone.machine import plan_here
from lite_c2f.coarse.dpo import train_dpo
from lite_c2f.coarse.train import train_coarse
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Config, resolved
from lite_c2f.data.records import Prompt
from lite_c2f.memory import resolve
from lite_c2f.reward.train import train_reward
from lite_c2f.runs.corpus import Corpus, compared_prompts, load_corpus
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.runs.models import resolve_models
from lite_c2f.smollm import CONFIG, SMOLLM
from lite_c2f.smollm.rules import is_reasoned

LOGISTIC, DPO, EARLIER = "logistic", "dpo", "earlier"
# The configuration shipped first: half as many responses, and GAE's usual lambda. Variations of it were measured before
# the present one.
BEFORE = (
    *("coarse.updates=8", "coarse.rollouts=16", "coarse.sampling_batch=16", "coarse.minibatches=2"),
    *("coarse.epochs=2", "coarse.lr=1.5e-4", "coarse.gae_lambda=0.95"),
)
ARMS: dict[str, tuple[str, ...]] = {
    LOGISTIC: (),
    DPO: ("coarse.algorithm=dpo", "coarse.dpo.lr=5e-4", "coarse.dpo.batch=16", "coarse.dpo.micro_batch=4"),
    "half-lr": ("coarse.lr=1.5e-4",),
    "kl-0.1": ("coarse.kl_coef=0.1",),
    "lambda-0.95": ("coarse.gae_lambda=0.95",),
    "start-64": ("coarse.length.start=64",),
    "step-64": ("coarse.length.step=64",),
    "tau-0.3": ("coarse.length.tau=0.3",),
    "fixed-long": ("coarse.length.mode=fixed", "coarse.length.start={longest}"),
    "reward-only": ("coarse.length.w_value=0",),
    "critic-only": ("coarse.length.w_reward=0", "coarse.length.w_value=1"),
    EARLIER: BEFORE,
    "earlier-fixed-long": (*BEFORE, "coarse.length.mode=fixed", "coarse.length.start={longest}"),
    "earlier-critic-from-zero": (*BEFORE, "coarse.critic=zero"),
    "earlier-lambda-1": (*BEFORE, "coarse.gae_lambda=1"),
}
SAME_TOKENS = {
    "fixed-long": LOGISTIC,
    "earlier-fixed-long": EARLIER,
}  # these generate as many tokens as another did, in however many updates
ACTORS = "actors"  # base and instruct, before any training
RATIOS = (0.5, 0.75, 1.0)  # of the residue of `earlier`
CURVE = ("coarse.sample_every=4", "coarse.sample_prompts=32")  # held-out answers while training


def phases(seeds: Sequence[int], arms: Sequence[str]) -> Iterator[list[Job]]:
    """Jobs that may run side by side; a phase needs what the one before made."""
    yield [Job(SMOLLM, seed, "reward") for seed in seeds]
    needed = {*arms, *(SAME_TOKENS[name] for name in arms if name in SAME_TOKENS)}
    first = [ACTORS, *(name for name in ARMS if name in needed and name not in SAME_TOKENS)]
    yield [Job(SMOLLM, seed, name) for name in first for seed in seeds]
    yield [Job(SMOLLM, seed, name) for name in SAME_TOKENS if name in needed for seed in seeds]
    ratio = float(load_config(CONFIG).fine.ratio)
    fine = {LOGISTIC: (ratio,), DPO: (ratio,), EARLIER: RATIOS}
    names = [fine_name(name, each) for name, ratios in fine.items() if name in needed for each in ratios]
    yield [Job(SMOLLM, seed, name) for name in names for seed in seeds]


def fine_name(arm: str, ratio: float) -> str:
    """The job of the instruct model with an arm's residue at a ratio.

    >>> fine_name("dpo", 0.75)
    'dpo at 0.75'
    """
    return f"{arm} at {ratio:g}"


def run_smollm(job: Job, folder: Path, jobs: Path) -> dict[str, Any]:
    """Run one job; returns its figures. Trained arms keep their adapters in `folder`."""
    rewards = Job(job.world, job.seed, "reward").folder(jobs)
    config = config_of(job.seed)
    models, corpus = resolve_models(config), load_corpus(config)
    if job.name == "reward":
        figures = train_reward(config, models, corpus, folder)
    elif job.name == ACTORS:
        figures = untrained(config, models, corpus, rewards)
    elif job.name in ARMS:
        budget = None
        if job.name in SAME_TOKENS:
            spent = Job(job.world, job.seed, SAME_TOKENS[job.name]).result(jobs)
            budget = json.loads(spent.read_text())["tokens"]
        figures = run_arm(job, config_of(job.seed, arm_settings(job.name, budget)), models, corpus, rewards, folder)
    else:
        arm, ratio = job.name.split(" at ")
        adapter = Job(job.world, job.seed, arm).folder(jobs) / "coarse" / "adapter"
        figures = fine(config, models, corpus, rewards, adapter, float(ratio))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    memory = {
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mib": round(usage.ru_maxrss / 1024),
    }
    return {**figures, **memory}


def config_of(seed: int, overrides: Sequence[str] = ()) -> Config:
    """configs/smollm2.yaml with a seed, and its batch sizes resolved."""
    config = load_config(CONFIG, [f"run.seed={seed}", "run.checkpoint_every=1000", *overrides])
    return resolve(config, plan_here(config, resolve_models(config).base))


def arm_settings(name: str, budget: int | None) -> list[str]:
    longest = load_config(CONFIG).coarse.length.max
    settings = [text.format(longest=longest) for text in (*CURVE, *ARMS[name])]
    settings.append(f"coarse.sample_tokens={load_config(CONFIG).evaluation.max_tokens}")
    return settings + ([f"coarse.token_budget={budget}", "coarse.updates=1000"] if budget else [])


def run_arm(job: Job, config: Config, models: ModelPair, corpus: Corpus, rewards: Path, folder: Path) -> dict[str, Any]:
    """Train a Coarse Actor and answer the held-out questions with it."""
    shutil.copytree(rewards / "reward", folder / "reward")
    result: dict[str, Any] = {}
    if config.coarse.algorithm == "dpo":
        result |= train_dpo(config, models, corpus, folder)
    else:
        train_coarse(config, models, corpus, folder)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        updates = [line for line in lines if line["stage"] == "coarse"]
        keys = ("reward", "limit", "hit_limit", "tokens", "kl", "explained_variance")
        result |= {
            "tokens": round(sum(line["tokens"] for line in updates) * config.coarse.rollouts),
            "updates": len(updates),
            "limit_last": updates[-1]["limit"],
            "training": [[round(line[key], 4) for key in keys] for line in updates],
            "curve": [[step, *curve_point(rows)] for step, rows in samples(folder)],
        }
    prompts = compared_prompts(corpus, config)
    roles, judge = load_coarse(config, models, folder)
    answers = answer_base(
        roles,
        "policy",
        load_tokenizer(models.base),
        config,
        turns_of(prompts),
        final_sampling(config),
        batch_of(config),
    )
    return result | {
        "coarse": figures_of(prompts, answers, judge(turns_of(prompts), answers), folder / "answers.jsonl")
    }


def curve_point(rows: list[dict[str, Any]]) -> list[float]:
    """Reward, tokens, share that ended and share that analyses, of the held-out answers stored after an update."""
    questions = [row["prompt"].strip().removeprefix("Human: ").removesuffix("\n\nAssistant:") for row in rows]
    analytic = fmean(is_reasoned(question, row["response"]) for question, row in zip(questions, rows, strict=True))
    ended = fmean(row["finish"] != "limit" for row in rows)
    means = [fmean(row[key] for row in rows) for key in ("reward", "tokens")]
    return [round(value, 4) for value in (*means, ended, analytic)]


def untrained(config: Config, models: ModelPair, corpus: Corpus, rewards: Path) -> dict[str, Any]:
    """Answers of base and instruct, scored by the seed's reward model."""
    judge = judge_of(config, models, rewards)
    prompts, sampling, batch = compared_prompts(corpus, config), final_sampling(config), batch_of(config)
    turns = turns_of(prompts)
    answers = {
        "base": answer_base(judge.roles, "reference", judge.tokenizer, config, turns, sampling, batch),
        "instruct": InstructModel(config, models.instruct).answer(turns, sampling, batch),
    }
    return {
        actor: figures_of(prompts, rows, judge(turns, rows), rewards.parent / f"{actor}.jsonl")
        for actor, rows in answers.items()
    }


def fine(
    config: Config, models: ModelPair, corpus: Corpus, rewards: Path, adapter: Path, ratio: float
) -> dict[str, Any]:
    """Answers of the instruct model with a residue at a ratio."""
    judge = judge_of(config, models, rewards)
    prompts = compared_prompts(corpus, config)
    instruct = InstructModel(config, models.instruct, adapter)
    with instruct.ratio(ratio):
        answers = instruct.answer(turns_of(prompts), final_sampling(config), batch_of(config))
    file = rewards.parent / f"{adapter.parents[1].name}-{ratio:g}.jsonl"
    return {"fine": figures_of(prompts, answers, judge(turns_of(prompts), answers), file)}


def turns_of(prompts: Sequence[Prompt]) -> list:
    return [prompt.turns for prompt in prompts]


def batch_of(config: Config) -> int:
    return resolved(config.evaluation.batch)


def figures_of(
    prompts: Sequence[Prompt], answers: Sequence[Answer], rewards: Sequence[float], file: Path
) -> dict[str, Any]:
    """Means over the questions, and what paired differences need of each; the answers go into a file to be read."""
    rows = [
        {"prompt": prompt.turns[-1].text, "response": answer.text, "finish": answer.finish, "reward": round(reward, 4)}
        for prompt, answer, reward in zip(prompts, answers, rewards, strict=True)
    ]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return {
        **summarize(prompts, answers, rewards),
        "reward_se": round(standard_error(rewards), 4),
        "rewards": [round(reward, 4) for reward in rewards],
        "lengths": [answer.tokens for answer in answers],
        "ended": [int(answer.finish != "limit") for answer in answers],
        "reasoned": [
            int(is_reasoned(prompt.turns[-1].text, answer.text))
            for prompt, answer in zip(prompts, answers, strict=True)
        ],
        "repeats": [round(repeated_ngrams(answer.text_tokens), 4) for answer in answers],
    }
