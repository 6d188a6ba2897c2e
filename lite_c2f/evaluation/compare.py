"""Comparison of base, instruct, Coarse and Fine on the same held-out prompts."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import xxhash

from lite_c2f.actors.answers import Answer, repeated_ngrams, standard_error, summarize
from lite_c2f.actors.models import InstructModel, Judged, RewardModel, Turns, kl_of_coarse, load_coarse
from lite_c2f.actors.names import ACTORS, COARSE, FINE
from lite_c2f.backbone.roles import Roles
from lite_c2f.config.settings import Config, resolved
from lite_c2f.data.order import count_by_source
from lite_c2f.data.records import Prompt
from lite_c2f.errors import RunError
from lite_c2f.evaluation.actor_hashes import actor_hashes
from lite_c2f.evaluation.metrics import compression_ratio, distinct, verbosity
from lite_c2f.evaluation.responder import responder
from lite_c2f.evaluation.wins import PAIRS, paired_wins
from lite_c2f.reward.calls import Scores
from lite_c2f.reward.mix import known
from lite_c2f.runs.corpus import Corpus, compared_prompts
from lite_c2f.runs.fingerprints import fingerprints
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.runs.published import coarse_adapter
from lite_c2f.runtime.batch_size import BatchSize, free
from lite_c2f.storage.files import read_json, write_json, write_jsonl
from lite_c2f.storage.results import ResultCache

JSON_TYPES = (str, int, float, bool, list, dict)  # of a column that responses.jsonl repeats

CIRCULAR = (
    "wins are judged by the reward that trained the policy: they measure its preference, not the quality of the answers"
)


def compare_actors(
    config: Config,
    models: ModelPair,
    corpus: Corpus,
    run: Path,
    coarse: tuple[Roles, RewardModel] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Answer held-out prompts with all four actors and score them with the run's reward model.

    Needs the published stages of `run`; writes responses.jsonl and metrics.json. coarse: what `load_coarse` returned,
    if it is loaded already. Returns {actor: {"reward", "tokens", "repeated_4gram", "eos", ...}}. With several data
    sources responses.jsonl names each prompt's, and metrics.json has the figures `by_source`.
    """
    prompts = compared_prompts(corpus, config)
    turns = [prompt.turns for prompt in prompts]
    roles, judge = coarse or load_coarse(config, models, run)
    batch = BatchSize("evaluation.batch", resolved(config.evaluation.batch))
    cache = answer_cache(config, models, run, turns)
    answers: dict[str, list[Answer]] = {}
    for actor in ACTORS:
        if progress is not None:
            progress(actor)
        cached = cache.get(actor)
        if cached is None:
            answers[actor] = responder(config, models, run, actor, batch, (roles, judge))(turns)
            cache.put(actor, answers[actor])
            free()
        else:
            answers[actor] = [Answer(*values) for values in cached]
    judged = {actor: judge.judge(turns, responses, prompts) for actor, responses in answers.items()}
    rewards = {actor: result.rewards for actor, result in judged.items()}
    several = len({prompt.source for prompt in prompts}) > 1
    rows = [
        {
            "prompt": prompt.turns[-1].text,
            **({"source": prompt.source} if several else {}),
            "actor": actor,
            "response": answers[actor][index].text,
            "finish": answers[actor][index].finish,
            "tokens": answers[actor][index].tokens,
            "reward": round(rewards[actor][index], 4),
            "repeated_4gram": round(repeated_ngrams(answers[actor][index].text_tokens), 4),
            **row_of_data(prompt),
            **scores_of(judged[actor], index),
        }
        for index, prompt in enumerate(prompts)
        for actor in ACTORS
    ]
    write_jsonl(run / "evaluation" / "responses.jsonl", rows)
    figures = more_figures(prompts, answers, rewards)
    if several:
        figures["by_source"] = by_source(prompts, answers, rewards)
    kl_coarse = kl_of_coarse(roles, judge.tokenizer, config, turns, answers[COARSE], batch)
    figures["actors"][COARSE]["kl_to_base"] = round(kl_coarse, 4)
    kl_fine = kl_of_fine(config, models, run, turns, answers[FINE], batch)
    figures["actors"][FINE]["kl_to_instruct"] = round(kl_fine, 4)
    write_json(run / "evaluation" / "metrics.json", figures)
    cache.clear()
    return {
        actor: summarize(prompts, answers[actor], rewards[actor]) | source_means(judged[actor].by_source)
        for actor in ACTORS
    }


def row_of_data(prompt: Prompt) -> dict[str, Any]:
    """{"row": the other columns of the prompt's data}, those that are JSON; {} where there are none."""
    columns = {name: value for name, value in prompt.extra.items() if _is_json(value)}
    return {"row": columns} if columns else {}


def _is_json(value: Any) -> bool:
    """Whether a column can be written as JSON: not a date, at any depth, nor NaN."""
    if not isinstance(value, JSON_TYPES):
        return False
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def scores_of(judged: Judged, index: int) -> dict[str, Any]:
    """{"rewards": {source: score}} of one answer; {} where the reward model alone judges."""
    scores = {name: values[index] for name, values in judged.by_source.items()}
    rounded = {name: None if value is None else round(value, 4) for name, value in scores.items()}
    return {"rewards": rounded} if rounded else {}


def source_means(by_source: Mapping[str, Scores]) -> dict[str, float]:
    """{"reward/NAME": mean score} of the sources, before they are scaled and mixed."""
    return {
        f"reward/{name}": round(fmean(values), 4) for name, scores in by_source.items() if (values := known(scores))
    }


def by_source(
    prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Answer]], rewards: Mapping[str, Sequence[float]]
) -> dict[str, dict[str, dict[str, float]]]:
    """{source: {actor: the figures of `summarize`, and "prompts", the number of them}}, by name of the source."""
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for source in count_by_source(prompts):
        rows = [row for row, prompt in enumerate(prompts) if prompt.source == source]
        members = [prompts[row] for row in rows]
        figures[source] = {
            actor: summarize(members, [responses[row] for row in rows], [rewards[actor][row] for row in rows])
            | {"prompts": len(rows)}
            for actor, responses in answers.items()
        }
    return figures


def kl_of_fine(
    config: Config, models: ModelPair, run: Path, turns: Sequence[Turns], answers: Sequence[Answer], batch: BatchSize
) -> float:
    """Mean KL(instruct with the residue || instruct) in nats per token, along the Fine Actor's answers.

    The residue is unmerged, at the ratios of RUN/fine/merge.json: equal to the merged model up to the rounding of the
    merged weights to their dtype and to 4 bits.
    """
    model = InstructModel(config, models.instruct, coarse_adapter(run, config.coarse.use))
    return model.kl(turns, answers, merged_ratios(run, model.weights), batch)


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
    """Figures beyond the summary's: variety and verbosity of each actor, and win rates by the reward model.

    {"actors": {actor: {"distinct_1", ..., "compression_ratio", "hit_limit", ...}}, "wins": {"fine over instruct":
    {"rate", "se", "controlled", "length_effect", "prompts"}}, "note": a caveat about the wins}. The comparison adds
    `kl_to_base` of Coarse and `kl_to_instruct` of Fine, in nats per token, along answers at its temperature.
    """
    result: dict[str, Any] = {"actors": {}, "wins": {}, "note": CIRCULAR}
    for actor, responses in answers.items():
        tokens, texts = [answer.text_tokens for answer in responses], [answer.text for answer in responses]
        figures = {f"distinct_{n}": distinct(tokens, n) for n in (1, 2, 3)}
        figures["compression_ratio"] = compression_ratio(texts)
        figures["hit_limit"] = fmean(answer.finish == "limit" for answer in responses)
        figures["reward_se"] = standard_error(rewards[actor])
        figures["tokens_se"] = standard_error([answer.tokens for answer in responses])
        if all("toy_answer" in prompt.extra for prompt in prompts):
            from lite_c2f.toy.world import is_right

            figures |= verbosity(texts, [partial(is_right, answer=prompt.extra["toy_answer"]) for prompt in prompts])
        result["actors"][actor] = {name: round(value, 4) for name, value in figures.items()}
    for left, right in PAIRS:
        lengths = [[answer.tokens for answer in answers[side]] for side in (left, right)]
        wins = paired_wins(rewards[left], rewards[right], *lengths)
        result["wins"][f"{left} over {right}"] = {name: round(value, 4) for name, value in wins._asdict().items()}
    return result


def answer_cache(config: Config, models: ModelPair, run: Path, turns: Sequence[Any]) -> ResultCache:
    """Cache of the answers of an interrupted comparison, of the same actors to the same prompts."""
    identity = (
        config.identity(("model", "data", "evaluation")) | actor_hashes(config, run) | fingerprints(config, models)
    )
    identity["turns"] = xxhash.xxh3_128(repr(turns).encode()).hexdigest()
    return ResultCache(run / "evaluation" / "answers.jsonl", identity)
