"""The comparison: base, instruct, Coarse and Fine on the same held-out prompts."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import xxhash

from lite_c2f.actors.answers import Answer, repeated_ngrams, standard_error, summarize
from lite_c2f.actors.models import InstructModel, RewardModel, Turns, answer_base, kl_of_coarse, load_coarse
from lite_c2f.backbone.roles import Roles
from lite_c2f.config.settings import Config, resolved
from lite_c2f.data.order import count_by_source
from lite_c2f.data.records import Prompt
from lite_c2f.errors import RunError
from lite_c2f.evaluation.metrics import compression_ratio, distinct, verbosity
from lite_c2f.evaluation.wins import compare
from lite_c2f.runs.corpus import Corpus, compared_prompts
from lite_c2f.runs.fingerprints import fingerprints
from lite_c2f.runs.models import ModelPair
from lite_c2f.runtime.batch_size import BatchSize
from lite_c2f.sampling import Sampling
from lite_c2f.storage.files import hash_of, read_json, write_json, write_jsonl
from lite_c2f.storage.results import ResultCache

PAIRS = (("fine", "instruct"), ("coarse", "base"), ("fine", "coarse"))
CIRCULAR = (
    "wins are judged by the reward model that trained the policy: they say how well it was pleased, not how good the "
    "answers are"
)
ACTORS = ("base", "instruct", "coarse", "fine")


def evaluate(
    config: Config,
    models: ModelPair,
    corpus: Corpus,
    run: Path,
    coarse: tuple[Roles, RewardModel] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Answer held-out prompts with all four actors and score them with the run's reward model.

    Needs the published stages of `run`; writes responses.jsonl and metrics.json. coarse: what `load_coarse` gave, if it
    is loaded already. Returns {actor: {"reward", "tokens", "repeated_4gram", "eos", ...}}. With several data sources
    responses.jsonl names each prompt's, and metrics.json has the figures `by_source`.
    """
    settings = config.evaluation
    prompts = compared_prompts(corpus, config)
    turns = [prompt.turns for prompt in prompts]
    sampling = Sampling(settings.max_tokens, settings.temperature, seed=config.run.seed)
    roles, judge = coarse or load_coarse(config, models, run)
    tell = progress or (lambda _: None)
    answers: dict[str, list[Answer]] = {}
    batch = BatchSize("evaluation.batch", resolved(settings.batch))
    kept = answered_before(config, models, run, turns)
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
            loaded = InstructModel(config, model)
            answers[actor] = loaded.answer(turns, sampling, batch)
            del loaded
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        kept.put(actor, answers[actor])
    rewards = {actor: judge(turns, said) for actor, said in answers.items()}
    several = len({prompt.source for prompt in prompts}) > 1
    rows = [
        {
            "prompt": prompts[row].turns[-1].text,
            **({"source": prompts[row].source} if several else {}),
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
    found = more_figures(prompts, answers, rewards)
    if several:
        found["by_source"] = by_source(prompts, answers, rewards)
    found["actors"]["coarse"]["kl_to_base"] = round(
        kl_of_coarse(roles, judge.tokenizer, config, turns, answers["coarse"], batch), 4
    )
    found["actors"]["fine"]["kl_to_instruct"] = round(kl_of_fine(config, models, run, turns, answers["fine"], batch), 4)
    write_json(run / "evaluation" / "metrics.json", found)
    kept.clear()
    return {actor: summarize(prompts, answers[actor], rewards[actor]) for actor in ACTORS}


def by_source(
    prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Answer]], rewards: Mapping[str, Sequence[float]]
) -> dict[str, dict[str, dict[str, float]]]:
    """{source: {actor: the figures of `summarize`, and "prompts", how many they are over}}, by name of the source."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for source in count_by_source(prompts):
        rows = [row for row, prompt in enumerate(prompts) if prompt.source == source]
        asked = [prompts[row] for row in rows]
        found[source] = {
            actor: summarize(asked, [said[row] for row in rows], [rewards[actor][row] for row in rows])
            | {"prompts": len(rows)}
            for actor, said in answers.items()
        }
    return found


def kl_of_fine(
    config: Config, models: ModelPair, run: Path, turns: Sequence[Turns], answers: Sequence[Answer], batch: BatchSize
) -> float:
    """Mean KL(instruct with the residue || instruct) in nats a token, along the Fine Actor's answers.

    The residue unmerged, at the ratios of RUN/fine/merge.json: the same but for the rounding of the merged weights, to
    their type and to 4 bits.
    """
    loaded = InstructModel(config, models.instruct, run / "coarse" / "adapter")
    return loaded.kl(turns, answers, merged_ratios(run, loaded.weights), batch)


def merged_ratios(run: Path, weights: Sequence[str]) -> dict[str, float]:
    """The ratio at which each weight was merged, by RUN/fine/merge.json; 0 for those it does not list.

    Raises RunError naming the file when it has another form.
    """
    file = run / "fine" / "merge.json"
    try:
        merged = read_json(file)["tensors"]
        return {name: float(merged[name]["ratio"]) if name in merged else 0.0 for name in weights}
    except (KeyError, TypeError, ValueError):
        got = f"'{file}' has no ratio for every tensor"
        raise RunError.because(got, "the report of a merge", "train the fine stage again") from None


def more_figures(
    prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Answer]], rewards: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """Figures beyond the summary's: variety and verbosity of each actor, and who beats whom by the reward model.

    {"actors": {actor: {"distinct_1", ..., "compression_ratio", "hit_limit", ...}}, "wins": {"fine over instruct":
    {"rate", "se", "controlled", "length_effect", "prompts"}}, "note": what to think of the wins}. The comparison adds
    `kl_to_base` of Coarse and `kl_to_instruct` of Fine, in nats a token, along answers at the comparison's temperature.
    """
    found: dict[str, Any] = {"actors": {}, "wins": {}, "note": CIRCULAR}
    for actor, said in answers.items():
        tokens, texts = [answer.text_tokens for answer in said], [answer.text for answer in said]
        figures = {f"distinct_{n}": distinct(tokens, n) for n in (1, 2, 3)}
        figures["compression_ratio"] = compression_ratio(texts)
        figures["hit_limit"] = fmean(answer.finish == "limit" for answer in said)
        figures["reward_se"] = standard_error(rewards[actor])
        figures["tokens_se"] = standard_error([answer.tokens for answer in said])
        if all("toy_answer" in prompt.extra for prompt in prompts):
            from lite_c2f.toy.world import is_right

            figures |= verbosity(texts, [partial(is_right, answer=prompt.extra["toy_answer"]) for prompt in prompts])
        found["actors"][actor] = {name: round(value, 4) for name, value in figures.items()}
    for left, right in PAIRS:
        lengths = [[answer.tokens for answer in answers[side]] for side in (left, right)]
        wins = compare(rewards[left], rewards[right], *lengths)
        found["wins"][f"{left} over {right}"] = {name: round(value, 4) for name, value in wins._asdict().items()}
    return found


def made_of(run: Path) -> dict[str, str]:
    """Hashes of what a comparison compares, and of its judge."""
    files = {
        "coarse": run / "coarse" / "adapter" / "adapter_model.safetensors",
        "reward": run / "reward" / "adapter" / "adapter_model.safetensors",
        "fine": run / "fine" / "merge.json",
    }
    return {name: hash_of(file) for name, file in files.items()}


def answered_before(config: Config, models: ModelPair, run: Path, turns: Sequence[Any]) -> ResultCache:
    """Answers that a comparison which was stopped had already, of the same actors to the same prompts."""
    identity = config.identity(("model", "data", "evaluation")) | made_of(run) | fingerprints(config, models)
    identity["turns"] = xxhash.xxh3_128(repr(turns).encode()).hexdigest()
    return ResultCache(run / "evaluation" / "answers.jsonl", identity)
