"""What a run reads: its pair of models and its data, the toy world included."""

import contextlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lite_c2f.backbone.context import context_length
from lite_c2f.backbone.folder import check_architecture, check_weights
from lite_c2f.backbone.load import listed_end_tokens, load_tokenizer, pick_device, pick_dtype
from lite_c2f.backbone.pair import check_pair, read_config
from lite_c2f.config import CHAT, Config, Source
from lite_c2f.data.encode import encode_answer, encode_chat, encode_prompt, turn_end
from lite_c2f.data.records import Pair, Prompt, Turn, load_pairs, load_prompts, prompts_of
from lite_c2f.data.sources import local_files
from lite_c2f.errors import ConfigError, DataError, ModelError
from lite_c2f.sampling.stops import Stops

TOY = "toy"
SMALL_FILES = ["*.json", "*.model", "*.jinja"]
TOY_PAIRS, TOY_PROMPTS = 2720, 4096


class ModelPair(NamedTuple):
    """Folders or hub names of the base and the instruct model."""

    base: str
    instruct: str


class Corpus(NamedTuple):
    """Pairs and prompts, each split once into training and held-out parts that share no prompt."""

    train_pairs: list[Pair]
    held_out_pairs: list[Pair]
    train_prompts: list[Prompt]
    held_out_prompts: list[Prompt]
    skipped: dict[str, int]  # reason -> rows that could not be used


def uses_toy_data(config: Config) -> bool:
    """Are the prompts the toy world's, so that answers can be checked?"""
    return any(source.path == TOY for source in config.prompt_sources)


def resolve_models(config: Config, progress=None) -> ModelPair:
    """The pair of models: the toy pair is trained on first use, any other is checked for all that can be seen now.

    Of one lineage, of a kind that can be trained, with tokenizers that fit the run, and whole. Raises ModelError or
    ConfigError naming what is missing or disagrees.
    """
    pick_dtype(config, pick_device(config))
    if config.model.base == TOY:
        from lite_c2f.toy.build import toy_pair

        toy = toy_pair(progress=progress)
        return ModelPair(str(toy.base), str(toy.instruct))
    names = (config.model.base, config.model.base_revision), (config.model.instruct, config.model.instruct_revision)
    small = ModelPair(*(_fetched(name, revision, SMALL_FILES) for name, revision in names))
    check_pair(Path(small.base), Path(small.instruct))  # before gigabytes are downloaded
    for folder in small:
        check_architecture(Path(folder))
    check_context(config, small)
    check_stops(config, small)
    models = ModelPair(*(_fetched(name, revision, [*SMALL_FILES, "*.safetensors"]) for name, revision in names))
    for folder in models:
        check_weights(Path(folder), config.lora.target_modules)
    return models


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
    """
    template, variables = config.model.prompt_template, config.model.chat_template_kwargs
    question, most = [Turn("human", "Hi")], config.data.max_prompt_tokens
    tokenizer = load_tokenizer(models.base)
    Stops(tokenizer, config.model.stop)
    encode_prompt(tokenizer, question, most, template, variables)
    encode_answer(tokenizer, "Hello", ended=True, template=template, template_kwargs=variables)
    try:
        encode_chat(load_tokenizer(models.instruct), question, most, variables)
    except ModelError as error:
        if models.instruct in str(error):
            raise
        raise ModelError(f"instruct model '{models.instruct}': {error}") from None


def unlisted_turn_end(config: Config, models: ModelPair) -> int | None:
    """The token that ends the instruct model's turns, where neither its files nor its tokenizer list it as an end.

    Stock libraries would never stop at it. None where it is listed, or the chat template has none.
    """
    tokenizer = load_tokenizer(models.instruct)
    end = turn_end(tokenizer, CHAT, config.model.chat_template_kwargs)
    return None if end in (tokenizer.eos_token_id, *listed_end_tokens(Path(models.instruct))) else end


def turn_end_note(config: Config, models: ModelPair) -> str | None:
    """What to say of such a token."""
    if (end := unlisted_turn_end(config, models)) is None:
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
    """Read, count and split all data of a run. The toy world brings its own split."""
    seed = config.run.seed
    skipped: dict[str, int] = {}
    pairs, toy_pairs = _read(config.data.preferences, load_pairs, skipped)
    train_pairs, held_pairs = split(pairs, config, lambda pair: pair.turns)
    if toy_pairs:
        from lite_c2f.toy import world

        train_pairs += world.pairs(int(TOY_PAIRS * toy_pairs), seed)
        held_pairs += world.pairs(256, seed, held_out=True)
    if config.data.prompts:
        prompts, toy_prompts = _read(config.data.prompts, load_prompts, skipped)
    else:
        prompts, toy_prompts = prompts_of(pairs), toy_pairs
    held_turns = {pair.turns for pair in held_pairs}
    if config.data.prompts:
        train_prompts, held_prompts = split(prompts, config, lambda prompt: prompt.turns)
    else:  # prompts of the pairs keep their side of the split
        train_prompts = [prompt for prompt in prompts if prompt.turns not in held_turns]
        held_prompts = [prompt for prompt in prompts if prompt.turns in held_turns]
    if toy_prompts:
        from lite_c2f.toy import world

        train_prompts += world.prompts(int(TOY_PROMPTS * toy_prompts), seed, held_out=False)
        held_prompts += world.prompts(512, seed, held_out=True)
    counted = {
        "pairs": train_pairs,
        "held-out pairs": held_pairs,
        "prompts": train_prompts,
        "held-out prompts": held_prompts,
    }
    for what, items in counted.items():
        if not items:
            raise DataError.because(f"data: no usable {what}", "at least one of each", "add data with other prompts")
    return Corpus(train_pairs, held_pairs, train_prompts, held_prompts, skipped)


def _read(sources: Sequence[Source], load, skipped: dict[str, int]) -> tuple[list, float]:
    """Items of the real sources, and the weight of the toy world (0 when it is not named)."""
    toy = sum(source.weight for source in sources if source.path == TOY)
    real = [source for source in sources if source.path != TOY]
    if not real:
        return [], toy
    loaded = load(real)
    for reason, rows in loaded.skipped.items():
        skipped[reason] = skipped.get(reason, 0) + rows
    return list(loaded.items), toy


def split(items: list, config: Config, key) -> tuple[list, list]:
    """Split by prompt, so that no prompt is on both sides: (training, held out)."""
    groups = list(dict.fromkeys(key(item) for item in items))
    random.Random(config.run.seed).shuffle(groups)
    count = min(round(len(groups) * config.data.held_out), config.data.max_held_out) if groups else 0
    held = set(groups[: max(count, 1)]) if len(groups) > 1 else set()
    return [item for item in items if key(item) not in held], [item for item in items if key(item) in held]
