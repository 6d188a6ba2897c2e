"""What a run reads: its pair of models and its data, the toy world included."""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from lite_c2f.backbone.context import context_length
from lite_c2f.backbone.end_tokens import unlisted_turn_end
from lite_c2f.backbone.folder import check_architecture, check_weights
from lite_c2f.backbone.load import load_tokenizer, pick_device, pick_dtype
from lite_c2f.backbone.model_kind import check_kind, here
from lite_c2f.backbone.pair import check_pair, read_config
from lite_c2f.backbone.round_trip import check_round_trip
from lite_c2f.config.settings import Config, Source
from lite_c2f.data.encode import encode_answer, encode_chat, encode_prompt
from lite_c2f.data.order import at_most, conversation_hash, held_out, shuffled
from lite_c2f.data.records import Loaded, Pair, Prompt, Turn, load_pairs, load_prompts, prompts_of
from lite_c2f.data.sources import local_files
from lite_c2f.errors import ConfigError, DataError, ModelError
from lite_c2f.sampling.stops import Stops
from lite_c2f.sampling.trial import try_kind

TOY = "toy"
SMALL_FILES = ["*.json", "*.model", "*.jinja"]
TOY_PAIRS, TOY_PROMPTS = 2720, 4096


class ModelPair(NamedTuple):
    """Folders or hub names of the base and the instruct model."""

    base: str
    instruct: str


class Corpus(NamedTuple):
    """Pairs and prompts, split once: no prompt that is held out is trained on, in pairs or in prompts.

    Every part is shuffled so that its first rows, and its last, hold each source in its share.
    """

    train_pairs: list[Pair]
    held_out_pairs: list[Pair]
    train_prompts: list[Prompt]
    held_out_prompts: list[Prompt]
    skipped: dict[str, int]  # reason -> rows that could not be used
    first: Mapping[str, str] = MappingProxyType({})  # reason -> the first such row
    notes: tuple[str, ...] = ()  # columns that are not read, a line a source


def uses_toy_data(config: Config) -> bool:
    """Are the prompts the toy world's, so that answers can be checked?"""
    return any(source.path == TOY for source in config.prompt_sources)


def check_kinds(config: Config) -> None:
    """Raise ModelError for a model here, in a folder or the hub's cache, of a kind that cannot be trained.

    From config.json alone, and nothing is downloaded. What the keys say, `model_kind.check_named` says faster.
    """
    for folder in here(config.model.base, config.model.instruct):
        check_trainable(folder, config)


def check_trainable(folder: Path, config: Config) -> None:
    """Raise ModelError unless Transformers' class of this model does what training here asks of it."""
    check_kind(folder)
    check_architecture(folder)
    try_kind(folder, quantized=config.model.quantization == "nf4")


def check_models(config: Config) -> None:
    """Check the pair of models by its small files alone: before data are read, and before gigabytes are downloaded.

    Of one lineage, of a kind that can be trained, with tokenizers that fit the run. Raises ModelError or ConfigError
    naming what is missing or disagrees. The toy pair needs no check before it is made.
    """
    pick_dtype(config, pick_device(config))
    if config.model.base == TOY:
        return
    small = ModelPair(*(_fetched(name, revision, SMALL_FILES) for name, revision in _names(config)))
    for folder in small:
        check_trainable(Path(folder), config)
    check_pair(Path(small.base), Path(small.instruct))
    check_context(config, small)
    check_stops(config, small)


def resolve_models(config: Config, progress=None) -> ModelPair:
    """The pair of models, whole: the toy pair is trained on first use, one from the hub downloaded.

    Raises ModelError or ConfigError naming what is missing.
    """
    if config.model.base == TOY:
        from lite_c2f.toy.build import toy_pair

        toy = toy_pair(progress=progress)
        return ModelPair(str(toy.base), str(toy.instruct))
    patterns = [*SMALL_FILES, "*.safetensors"]
    models = ModelPair(*(_fetched(name, revision, patterns) for name, revision in _names(config)))
    for folder in models:
        check_weights(Path(folder), config.lora.target_modules)
    return models


def _names(config: Config) -> tuple[tuple[str, str | None], tuple[str, str | None]]:
    model = config.model
    return (model.base, model.base_revision), (model.instruct, model.instruct_revision)


def absolute(config: Config) -> Config:
    """The configuration with local paths made absolute, so that a run can be opened from another folder."""

    def resolved(path: str) -> str:
        return str(Path(path).expanduser().resolve()) if path != TOY and Path(path).expanduser().exists() else path

    def sources(given: Sequence[Source]) -> tuple[Source, ...]:
        return tuple(source.model_copy(update={"path": resolved(source.path)}) for source in given)

    data = config.data.model_copy(
        update={"preferences": sources(config.data.preferences), "prompts": sources(config.data.prompts)}
    )
    model = config.model.model_copy(
        update={"base": resolved(config.model.base), "instruct": resolved(config.model.instruct)}
    )
    return config.model_copy(update={"data": data, "model": model})


def check_sources(config: Config) -> None:
    """Raise DataError for a data file that is not there, before it is taken for another setting."""
    for source in (*config.data.preferences, *config.data.prompts):
        if source.path != TOY:
            local_files(source.path)


def check_context(config: Config, models: ModelPair) -> None:
    """Raise ConfigError when prompt and longest answer of any stage do not fit the models' context."""
    for name, folder in models._asdict().items():
        settings = read_config(Path(folder))
        context = context_length(settings)
        if context is not None and config.longest_row > context:
            whole = settings.get("max_position_embeddings")
            reason = f" (of {whole}; beyond it rotary frequencies change with the longest row of a batch)"
            raise ConfigError.because(
                f"data.max_prompt_tokens and the longest answer make {config.longest_row} tokens",
                f"at most the {name} model's context of {context}" + (reason if context != whole else ""),
                "lower coarse.length.max, fine.max_tokens, evaluation.max_tokens or data.max_answer_tokens",
            )


def check_stops(config: Config, models: ModelPair) -> None:
    """Raise ConfigError for texts that the tokenizers cannot take, ModelError for a tokenizer that cannot be used.

    The texts: stop sequences, and the markers around a prompt, which need room within data.max_prompt_tokens. The
    instruct model's tokenizer needs a chat template that works; one that is trained with needs answers behind prompts.
    Both give texts back unchanged.
    """
    template, variables = config.model.prompt_template, config.model.chat_template_kwargs
    question, most = [Turn("human", "Hi")], config.data.max_prompt_tokens
    tokenizer, instruct_tokenizer = load_tokenizer(models.base), load_tokenizer(models.instruct)
    check_round_trip(tokenizer, models.base)
    check_round_trip(instruct_tokenizer, models.instruct)
    Stops(tokenizer, config.model.stop).check()
    encode_prompt(tokenizer, question, most, template, variables)
    encode_answer(tokenizer, "Hello", ended=True, template=template, template_kwargs=variables)
    try:
        encode_chat(instruct_tokenizer, question, most, variables)
    except ModelError as error:
        if models.instruct in str(error):
            raise
        raise ModelError(f"instruct model '{models.instruct}': {error}") from None


def unlisted_end(config: Config, models: ModelPair) -> int | None:
    """`unlisted_turn_end` of the instruct model, with the run's variables of its chat template."""
    tokenizer = load_tokenizer(models.instruct)
    return unlisted_turn_end(tokenizer, Path(models.instruct), config.model.chat_template_kwargs)


def turn_end_note(config: Config, models: ModelPair) -> str | None:
    """What to say of such a token."""
    if (end := unlisted_end(config, models)) is None:
        return None
    token = load_tokenizer(models.instruct).convert_ids_to_tokens(end)
    return (
        f"the instruct model's chat template ends a turn with {token!r} ({end}), which is not among its end tokens: it "
        "ends answers here, and fine/model/generation_config.json will list it"
    )


def adapter_base(config: Config, models: ModelPair) -> str:
    """What an adapter names as its base: the hub name where there is one, which means something elsewhere too."""
    local = config.model.base == TOY or Path(config.model.base).is_dir()
    return models.base if local else config.model.base


def _fetched(model: str, revision: str | None, patterns: list[str]) -> str:
    """A local folder as it is; a hub name as the folder of its download."""
    if Path(model).is_dir():
        return str(Path(model).resolve())
    from huggingface_hub import snapshot_download

    if model.lower().endswith(".gguf"):
        raise ModelError.of_gguf(f"model '{model}'")
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError.because(f"model '{model}': no such folder", "a model folder or a hub name", "check the path")
    try:
        folder = snapshot_download(model, revision=revision, allow_patterns=patterns, ignore_patterns=["consolidated*"])
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError.because(
            f"model '{model}': not a folder, and the hub did not give it ({reason})",
            "a model folder or a hub name",
            "check the name, the network and `hf auth login`",
        ) from None
    needed = "*.safetensors" if "*.safetensors" in patterns else "config.json"
    if not any(Path(folder).glob(needed)) and any(
        name.lower().endswith(".gguf") for name in _hub_files(model, revision)
    ):
        raise ModelError.of_gguf(f"model '{model}' has no {needed} on the hub: it")
    return folder


def _hub_files(model: str, revision: str | None) -> list[str]:
    """Names of a hub model's files; none where the hub does not answer."""
    from huggingface_hub import list_repo_files

    with contextlib.suppress(Exception):  # asked only for a better message than that of the missing file
        return list_repo_files(model, revision=revision)
    return []


def load_corpus(config: Config) -> Corpus:
    """Read, count and split all data of a run, each part in an order whose beginnings are fair samples (data/order.py).

    The toy world brings its own split. What it holds out, and what is held out here, is in nothing that is trained on.
    """
    data, seed = config.data, config.run.seed
    pairs, toy_pairs = _read(data.preferences, load_pairs)
    prompts, toy_prompts = _read(data.prompts, load_prompts)
    if not data.prompts:
        prompts, toy_prompts = prompts._replace(items=prompts_of(pairs.items)), toy_pairs
    corpus = split(pairs.items, prompts.items, config, _toy(toy_pairs, toy_prompts, seed))
    skipped = Counter(pairs.skipped) + Counter(prompts.skipped) + Counter(corpus.skipped)
    notes = tuple(dict.fromkeys(pairs.notes + prompts.notes))
    corpus = corpus._replace(skipped=dict(skipped), first=prompts.first | pairs.first, notes=notes)
    parts = {
        "pairs": corpus.train_pairs,
        "held-out pairs": corpus.held_out_pairs,
        "prompts": corpus.train_prompts,
        "held-out prompts": corpus.held_out_prompts,
    }
    for what, items in parts.items():
        if not items:
            got = f"data: no usable {what}" + (f" (rows skipped: {skipped_rows(corpus)})" if skipped else "")
            raise DataError.because(got, "at least one of each", "add data with other prompts")
    return corpus


def skipped_rows(corpus: Corpus) -> str:
    """How many rows were skipped for which reason, and the first of each."""
    places = {reason: f" (first at {place})" for reason, place in corpus.first.items()}
    return ", ".join(f"{count} {reason}{places.get(reason, '')}" for reason, count in corpus.skipped.items())


def split(pairs: list[Pair], prompts: list[Prompt], config: Config, own: Corpus = Corpus([], [], [], [], {})) -> Corpus:
    """Hold out prompts, with all their pairs, of pairs and prompts together; each part in the order of `shuffled`.

    own: rows with a split of their own; one that is trained on there and held out here counts as held out. A held-out
    prompt is asked once, however often the data have it or a weight repeats it: errors count different prompts.
    """
    seed, most = config.run.seed, config.data.max_held_out
    own_pairs, own_prompts = own.train_pairs + own.held_out_pairs, own.train_prompts + own.held_out_prompts
    everything: list[Pair | Prompt] = [*pairs, *prompts, *own_pairs, *own_prompts]
    turns = dict.fromkeys(item.turns for item in everything)
    numbers = {conversation: conversation_hash(conversation, seed) for conversation in turns}
    of_pairs, of_prompts = ([(item.source, numbers[item.turns]) for item in part] for part in (pairs, prompts))
    own_held: list[Pair | Prompt] = [*own.held_out_pairs, *own.held_out_prompts]
    already = {numbers[item.turns] for item in own_held}
    held = held_out((of_pairs, of_prompts), config.data.held_out, most, already)
    evaluated = at_most(of_pairs, held, most), at_most(of_prompts, held, most)

    def trained(items: list) -> list:
        return shuffled([item for item in items if numbers[item.turns] not in held], seed)

    def tested(items: list, wanted: set[int], own_items: list) -> list:
        own_rows = [item for item in own_items if numbers[item.turns] in held]
        return shuffled([item for item in items if numbers[item.turns] in wanted] + own_rows, seed)

    def once(items: list) -> list:
        return list({numbers[item.turns]: item for item in reversed(items)}.values())[::-1]

    corpus = Corpus(
        trained(pairs + own.train_pairs),
        tested(pairs, evaluated[0], own_pairs),
        trained(prompts + own.train_prompts),
        tested(once(prompts), evaluated[1], once(own_prompts)),
        {},
    )
    used = corpus.train_pairs, corpus.held_out_pairs, corpus.train_prompts, corpus.held_out_prompts
    copies = sum(numbers[item.turns] in held for item in [*prompts, *own_prompts]) - sum(
        numbers[item.turns] in held for item in [*once(prompts), *once(own_prompts)]
    )
    unused = len(everything) - sum(len(part) for part in used) - copies
    return corpus._replace(skipped={"held out beyond data.max_held_out": unused}) if unused else corpus


def training_pairs(corpus: Corpus, config: Config) -> list[Pair]:
    """The pairs that the reward model trains on."""
    return corpus.train_pairs[: config.reward.max_pairs]


def compared_prompts(corpus: Corpus, config: Config) -> list[Prompt]:
    """The held-out prompts of the comparison: the first ones."""
    return corpus.held_out_prompts[: config.evaluation.prompts]


def ratio_prompts(corpus: Corpus, config: Config) -> list[Prompt]:
    """The held-out prompts that ratios are tried on: the last ones, not the comparison's as long as there are enough.

    The list's end holds each source in its share as its beginning does; a piece of its middle may be another row off.
    """
    return corpus.held_out_prompts[-config.fine.prompts :]


def sampled_prompts(corpus: Corpus, config: Config) -> list[Prompt]:
    """The held-out prompts that are answered again and again while PPO trains."""
    return corpus.held_out_prompts[: config.coarse.sample_prompts]


def _toy(pairs: float, prompts: float, seed: int) -> Corpus:
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


def _read(sources: Sequence[Source], load: Any) -> tuple[Loaded, float]:
    """What the real sources hold, and the weight of the toy world (0 when it is not named)."""
    toy = sum(source.weight for source in sources if source.path == TOY)
    real = [source for source in sources if source.path != TOY]
    return load(real) if real else Loaded([], {}, {}), toy
