"""The corpus of a run: preference pairs and prompts of all sources, and which of them are held out."""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from lite_c2f.config.data import Source
from lite_c2f.config.settings import Config
from lite_c2f.data.order import at_most, conversation_hash, held_out, shuffled
from lite_c2f.data.records import LoadedRows, Pair, Prompt, load_pairs, load_prompts, prompts_of
from lite_c2f.data.sources import local_files
from lite_c2f.errors import DataError
from lite_c2f.runs.model_pair import TOY
from lite_c2f.smollm import SMOLLM
from lite_c2f.smollm import data as smollm

TOY_PAIRS, TOY_PROMPTS = 2720, 4096
EMBEDDED = (TOY, SMOLLM)  # sources that the package brings, each with a split of its own


class Corpus(NamedTuple):
    """Pairs and prompts, split once: no held-out prompt is trained on, neither in pairs nor in prompts.

    Every part is shuffled so that its first rows, and its last, hold each source in its share.
    """

    train_pairs: list[Pair]
    held_out_pairs: list[Pair]
    train_prompts: list[Prompt]
    held_out_prompts: list[Prompt]
    skipped: dict[str, int]  # reason -> number of unusable rows
    first: Mapping[str, str] = MappingProxyType({})  # reason -> the first such row
    notes: tuple[str, ...] = ()  # columns that are not read, one line per source


def example_questions(config: Config) -> list[str]:
    """Three held-out questions of the embedded sources among the prompts; [] where there is none."""
    names = {source.path for source in config.prompt_sources}
    if TOY in names:
        from lite_c2f.toy.world import problems

        source = problems(random.Random(4), held_out=True)
        return [next(source).question for _ in range(3)]
    return [question.text for question in smollm.all_questions()[1][:3]] if SMOLLM in names else []


def check_sources(config: Config) -> None:
    """Raise DataError for a data file that does not exist, before a later check blames another setting."""
    for source in (*config.data.preferences, *config.data.prompts):
        if source.path not in EMBEDDED:
            local_files(source.path)


def load_corpus(config: Config) -> Corpus:
    """Read, count and split all data of a run, each part in the order of `data.order.shuffled`.

    Embedded sources have their own split. Nothing that is held out there or here is trained on.
    """
    data, seed = config.data, config.run.seed
    without_pairs = not config.coarse.needs_reward_model  # nothing trains on them
    preferences = () if without_pairs and data.prompts else data.preferences
    pairs, prompts = _load_real(preferences, load_pairs), _load_real(data.prompts, load_prompts)
    if not data.prompts:
        prompts = prompts._replace(items=prompts_of(pairs.items))
    corpus = split(pairs.items, prompts.items, config, _embedded(preferences, config.prompt_sources, seed))
    skipped = Counter(pairs.skipped) + Counter(prompts.skipped) + Counter(corpus.skipped)
    functions = any(source.function is not None for source in config.coarse.judges)  # which may read any column
    notes = tuple(dict.fromkeys(pairs.notes + (() if functions else prompts.notes)))
    corpus = corpus._replace(skipped=dict(skipped), first=prompts.first | pairs.first, notes=notes)
    parts = {
        "pairs": corpus.train_pairs,
        "held-out pairs": corpus.held_out_pairs,
        "prompts": corpus.train_prompts,
        "held-out prompts": corpus.held_out_prompts,
    }
    for what, items in parts.items():
        if not items and not (without_pairs and "pairs" in what):
            got = f"data: no usable {what}" + (f" (rows skipped: {skipped_rows(corpus)})" if skipped else "")
            raise DataError.because(got, "at least one of each", "add data with other prompts")
    return corpus


def skipped_rows(corpus: Corpus) -> str:
    """How many rows were skipped for which reason, and the first of each."""
    places = {reason: f" (first at {place})" for reason, place in corpus.first.items()}
    return ", ".join(f"{count} {reason}{places.get(reason, '')}" for reason, count in corpus.skipped.items())


def split(
    pairs: list[Pair], prompts: list[Prompt], config: Config, presplit: Corpus = Corpus([], [], [], [], {})
) -> Corpus:
    """Hold out prompts, with all their pairs, of pairs and prompts together; each part in the order of `shuffled`.

    presplit: rows that are split already; one that is trained on there and held out here counts as held out. A held-out
    prompt occurs once, however often the data or a weight repeat it: standard errors count different prompts.
    """
    seed, max_held_out = config.run.seed, config.data.max_held_out
    presplit_pairs = presplit.train_pairs + presplit.held_out_pairs
    presplit_prompts = presplit.train_prompts + presplit.held_out_prompts
    all_items: list[Pair | Prompt] = [*pairs, *prompts, *presplit_pairs, *presplit_prompts]
    numbers = {turns: conversation_hash(turns, seed) for turns in dict.fromkeys(item.turns for item in all_items)}
    pair_numbers, prompt_numbers = ([(item.source, numbers[item.turns]) for item in part] for part in (pairs, prompts))
    held_there: list[Pair | Prompt] = [*presplit.held_out_pairs, *presplit.held_out_prompts]
    already = {numbers[item.turns] for item in held_there}
    held = held_out((pair_numbers, prompt_numbers), config.data.held_out, max_held_out, already)
    evaluated = at_most(pair_numbers, held, max_held_out), at_most(prompt_numbers, held, max_held_out)

    def training_part(items: list) -> list:
        return shuffled([item for item in items if numbers[item.turns] not in held], seed)

    def held_out_part(items: list, selected: set[int], presplit_items: list) -> list:
        presplit_rows = [item for item in presplit_items if numbers[item.turns] in held]
        return shuffled([item for item in items if numbers[item.turns] in selected] + presplit_rows, seed)

    def distinct(items: list) -> list:
        return list({numbers[item.turns]: item for item in reversed(items)}.values())[::-1]

    corpus = Corpus(
        training_part(pairs + presplit.train_pairs),
        held_out_part(pairs, evaluated[0], presplit_pairs),
        training_part(prompts + presplit.train_prompts),
        held_out_part(distinct(prompts), evaluated[1], distinct(presplit_prompts)),
        {},
    )
    used = corpus.train_pairs, corpus.held_out_pairs, corpus.train_prompts, corpus.held_out_prompts
    copies = sum(numbers[item.turns] in held for item in [*prompts, *presplit_prompts]) - sum(
        numbers[item.turns] in held for item in [*distinct(prompts), *distinct(presplit_prompts)]
    )
    unused = len(all_items) - sum(len(part) for part in used) - copies
    return corpus._replace(skipped={"held out beyond data.max_held_out": unused}) if unused else corpus


def training_pairs(corpus: Corpus, config: Config) -> list[Pair]:
    """The pairs that the reward model trains on."""
    return corpus.train_pairs[: config.reward.max_pairs]


def compared_prompts(corpus: Corpus, config: Config) -> list[Prompt]:
    """The held-out prompts of the comparison: the first ones."""
    return corpus.held_out_prompts[: config.evaluation.prompts]


def ratio_prompts(corpus: Corpus, config: Config) -> list[Prompt]:
    """The held-out prompts that ratios are tried on: the last ones, disjoint from the comparison's if there are enough.

    Prefixes and suffixes of the list hold each source in its share; a slice of the middle may be off by another row.
    """
    return corpus.held_out_prompts[-config.fine.prompts :]


def evaluated_prompts(corpus: Corpus, config: Config) -> list[Prompt]:
    """The held-out prompts that are answered while training: the last ones, as for `ratio_prompts`."""
    return corpus.held_out_prompts[-config.coarse.evaluate_prompts :]


def sampled_prompts(corpus: Corpus, config: Config) -> list[Prompt]:
    """The held-out prompts that are sampled repeatedly during PPO."""
    return corpus.held_out_prompts[: config.coarse.sample_prompts]


def _embedded(preferences: Sequence[Source], prompts: Sequence[Source], seed: int) -> Corpus:
    """The rows of the embedded sources that are named, each at its weight."""

    def weight(sources: Sequence[Source], name: str) -> float:
        return sum(source.weight for source in sources if source.path == name)

    toy = _toy_corpus(weight(preferences, TOY), weight(prompts, TOY), seed)
    real = _smollm_corpus(weight(preferences, SMOLLM), weight(prompts, SMOLLM))
    return Corpus(
        toy.train_pairs + real.train_pairs,
        toy.held_out_pairs + real.held_out_pairs,
        toy.train_prompts + real.train_prompts,
        toy.held_out_prompts + real.held_out_prompts,
        {},
    )


def _smollm_corpus(pairs: float, prompts: float) -> Corpus:
    """The rows of the embedded real model at these weights; none at weight 0."""

    def weighted(rows: list, weight: float) -> list:
        count = round(len(rows) * weight)
        return [row._replace(source=SMOLLM) for row in (rows * math.ceil(weight))[:count]]

    return Corpus(
        weighted(smollm.pairs(held_out=False), pairs) if pairs else [],
        weighted(smollm.pairs(held_out=True), 1.0) if pairs else [],
        weighted(smollm.prompts(held_out=False), prompts) if prompts else [],
        weighted(smollm.prompts(held_out=True), 1.0) if prompts else [],
        {},
    )


def _toy_corpus(pairs: float, prompts: float, seed: int) -> Corpus:
    """The toy world's rows at these weights; none at weight 0."""
    from lite_c2f.toy import world

    parts: list[list[Any]] = [
        world.pairs(int(TOY_PAIRS * pairs), seed) if pairs else [],
        world.pairs(256, seed, held_out=True) if pairs else [],
        world.prompts(int(TOY_PROMPTS * prompts), seed, held_out=False) if prompts else [],
        world.prompts(512, seed, held_out=True) if prompts else [],
    ]
    train_pairs, held_pairs, train_prompts, held_prompts = ([i._replace(source=TOY) for i in part] for part in parts)
    return Corpus(train_pairs, held_pairs, train_prompts, held_prompts, {})


def _load_real(sources: Sequence[Source], load: Any) -> LoadedRows:
    """The rows of all sources that are not embedded."""
    real = [source for source in sources if source.path not in EMBEDDED]
    return load(real) if real else LoadedRows([], {}, {})
