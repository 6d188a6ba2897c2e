"""The comparison: base, instruct, Coarse and Fine on the same held-out prompts."""

from collections.abc import Callable
from pathlib import Path

import torch

from lite_c2f.actors import Instruct, Judge, answer_base, load_coarse
from lite_c2f.answers import Answer, repeated_ngrams, summarize
from lite_c2f.backbone.roles import Roles
from lite_c2f.batches import BatchSize
from lite_c2f.config import Config, settled
from lite_c2f.inputs import Corpus, ModelPair
from lite_c2f.kept import Kept
from lite_c2f.runs import hash_of, write_jsonl
from lite_c2f.sampling import Sampling

ACTORS = ("base", "instruct", "coarse", "fine")


def evaluate(
    config: Config,
    models: ModelPair,
    corpus: Corpus,
    run: Path,
    coarse: tuple[Roles, Judge] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Answer held-out prompts with all four actors and score them with the run's reward model.

    Needs the published stages of `run`; writes RUN/evaluation/responses.jsonl. coarse: what `load_coarse` gave, if it
    is loaded already. Returns {actor: {"reward", "tokens", "repeated_4gram", "eos", ...}}.
    """
    settings = config.evaluation
    prompts = corpus.held_out_prompts[: settings.prompts]
    turns = [prompt.turns for prompt in prompts]
    sampling = Sampling(settings.max_tokens, settings.temperature, seed=config.run.seed)
    roles, judge = coarse or load_coarse(config, models, run)
    tell = progress or (lambda _: None)
    answers: dict[str, list[Answer]] = {}
    batch = BatchSize("evaluation.batch", settled(settings.batch))
    kept = answered_before(config, run)
    for actor in ACTORS:
        tell(actor)
        if (before := kept.get(actor)) is not None:
            answers[actor] = [Answer(*said) for said in before]
            continue
        if actor in ("base", "coarse"):
            role = "policy" if actor == "coarse" else "reference"
            answers[actor] = answer_base(roles, role, judge.tokenizer, config, turns, sampling, batch)
        else:
            model = models.instruct if actor == "instruct" else str(run / "fine" / "model")
            loaded = Instruct(config, model)
            answers[actor] = loaded.answer(turns, sampling, batch)
            del loaded
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        kept.put(actor, answers[actor])
    rewards = {actor: judge(turns, said) for actor, said in answers.items()}
    rows = [
        {
            "prompt": prompts[row].turns[-1].text,
            "actor": actor,
            "response": answers[actor][row].text,
            "finish": answers[actor][row].finish,
            "tokens": answers[actor][row].tokens,
            "reward": round(rewards[actor][row], 4),
            "repeated_4gram": round(repeated_ngrams(answers[actor][row].text_tokens), 4),
        }
        for row in range(len(prompts))
        for actor in ACTORS
    ]
    write_jsonl(run / "evaluation" / "responses.jsonl", rows)
    kept.clear()
    return {actor: summarize(prompts, answers[actor], rewards[actor]) for actor in ACTORS}


def answered_before(config: Config, run: Path) -> Kept:
    """Answers that a comparison which was stopped had already, of the same actors to the same prompts."""
    files = {
        "coarse": run / "coarse" / "adapter" / "adapter_model.safetensors",
        "reward": run / "reward" / "adapter" / "adapter_model.safetensors",
        "fine": run / "fine" / "merge.json",
    }
    identity = {name: hash_of(file) for name, file in files.items()}
    return Kept(run / "evaluation" / "answers.jsonl", config.identity(("model", "data", "evaluation")) | identity)
