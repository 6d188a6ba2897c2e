"""Models of a run: its base and instruct model, downloaded and checked before anything is trained."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lite_c2f.backbone.context import context_length
from lite_c2f.backbone.end_tokens import unlisted_turn_end
from lite_c2f.backbone.folder import check_architecture, check_weights
from lite_c2f.backbone.load import load_tokenizer
from lite_c2f.backbone.machine import pick_device, pick_dtype
from lite_c2f.backbone.model_kind import check_kind, local_folders
from lite_c2f.backbone.pair import check_pair, read_config
from lite_c2f.backbone.round_trip import check_round_trip
from lite_c2f.config.data import Source
from lite_c2f.config.settings import Config
from lite_c2f.data.encode import encode_answer, encode_chat, encode_prompt
from lite_c2f.data.records import Turn
from lite_c2f.errors import ConfigError, ModelError
from lite_c2f.gguf import is_packed, unpacked
from lite_c2f.memory.remedies import context_refusal
from lite_c2f.runs.model_pair import TOY, ModelPair
from lite_c2f.sampling.stops import Stops
from lite_c2f.sampling.trial import try_kind
from lite_c2f.smollm import SMOLLM

SMALL_FILES = ["*.json", "*.model", "*.jinja"]


def check_kinds(config: Config) -> None:
    """Raise ModelError for a local model (a folder or in the hub's cache) of a kind that cannot be trained.

    Reads config.json only and downloads nothing. `model_kind.check_named` is faster and checks less.
    """
    for folder in local_folders(config.model.base, config.model.instruct):
        check_trainable(folder, config)


def check_trainable(folder: Path, config: Config) -> None:
    """Raise ModelError unless Transformers' class of this model supports what training here needs."""
    check_kind(folder)
    check_architecture(folder)
    try_kind(folder, quantized=config.model.quantization == "nf4")


def check_models(config: Config) -> None:
    """Check the pair of models by its small files, before data are read and weights are downloaded.

    Both must be of one lineage and of a kind that can be trained, with tokenizers that fit the run. Raises ModelError
    or ConfigError naming what is missing or disagrees. The toy pair is not checked.
    """
    pick_dtype(config, pick_device(config))
    if config.model.base == TOY:
        return
    small = ModelPair(*(_local_folder(name, revision, SMALL_FILES) for name, revision in _names_and_revisions(config)))
    for folder in small:
        check_trainable(Path(folder), config)
    check_pair(Path(small.base), Path(small.instruct))
    check_context(config, small)
    check_stops(config, small)


def resolve_models(config: Config, progress=None) -> ModelPair:
    """The pair of models with weights: the toy pair is trained on first use, hub models are downloaded.

    Raises ModelError or ConfigError naming what is missing.
    """
    if config.model.base == TOY:
        from lite_c2f.toy.build import toy_pair

        toy = toy_pair(progress=progress)
        return ModelPair(str(toy.base), str(toy.instruct))
    patterns = [*SMALL_FILES, "*.safetensors"]
    models = ModelPair(*(_local_folder(name, revision, patterns) for name, revision in _names_and_revisions(config)))
    for folder in models:
        check_weights(Path(folder), config.lora.target_modules)
    return models


def _names_and_revisions(config: Config) -> tuple[tuple[str, str | None], tuple[str, str | None]]:
    model = config.model
    return (model.base, model.base_revision), (model.instruct, model.instruct_revision)


def absolute(config: Config) -> Config:
    """The configuration with local paths made absolute, so that a run can be opened from another folder."""

    def resolved(path: str) -> str:
        if path in (TOY, SMOLLM):
            return path
        return str(Path(path).expanduser().resolve()) if Path(path).expanduser().exists() else path

    def with_paths(sources: Sequence[Source]) -> tuple[Source, ...]:
        return tuple(source.model_copy(update={"path": resolved(source.path)}) for source in sources)

    def with_place(source: Any) -> Any:
        if source.function is not None and ".py:" in source.function:
            file, _, name = source.function.rpartition(":")
            return source.model_copy(update={"function": f"{resolved(file)}:{name}"})
        return source if source.adapter is None else source.model_copy(update={"adapter": resolved(source.adapter)})

    data = config.data.model_copy(
        update={"preferences": with_paths(config.data.preferences), "prompts": with_paths(config.data.prompts)}
    )
    coarse = config.coarse.model_copy(
        update={
            "rewards": tuple(with_place(source) for source in config.coarse.rewards),
            "watch": tuple(with_place(source) for source in config.coarse.watch),
        }
    )
    model = config.model.model_copy(
        update={"base": resolved(config.model.base), "instruct": resolved(config.model.instruct)}
    )
    return config.model_copy(update={"data": data, "model": model, "coarse": coarse})


def check_context(config: Config, models: ModelPair) -> None:
    """Raise ConfigError when prompt and longest answer of any stage do not fit the models' context."""
    for name, folder in models._asdict().items():
        settings = read_config(Path(folder))
        context = context_length(settings)
        if context is not None and (refusal := context_refusal(config, context, f"{name} model's context")):
            got, expected, remedy = refusal
            if context != (whole := settings.get("max_position_embeddings")):
                expected += f" (of {whole}; beyond it rotary frequencies change with the longest row of a batch)"
            raise ConfigError.because(got, expected, remedy)


def check_stops(config: Config, models: ModelPair) -> None:
    """Raise ConfigError for texts that the tokenizers cannot take, ModelError for a tokenizer that cannot be used.

    The texts are the stop sequences and the prompt's markers, which must fit into data.max_prompt_tokens. The instruct
    model's tokenizer needs a working chat template; a template that is trained with must render answers after prompts.
    Both tokenizers must decode texts unchanged.
    """
    template, variables = config.model.prompt_template, config.model.chat_template_kwargs
    question, max_tokens = [Turn("human", "Hi")], config.data.max_prompt_tokens
    tokenizer, instruct_tokenizer = load_tokenizer(models.base), load_tokenizer(models.instruct)
    check_round_trip(tokenizer, models.base)
    check_round_trip(instruct_tokenizer, models.instruct)
    Stops(tokenizer, config.model.stop).check()
    encode_prompt(tokenizer, question, max_tokens, template, variables)
    encode_answer(tokenizer, "Hello", ended=True, template=template, template_kwargs=variables)
    try:
        encode_chat(instruct_tokenizer, question, max_tokens, variables)
    except ModelError as error:
        if models.instruct in str(error):
            raise
        raise ModelError(f"instruct model '{models.instruct}': {error}") from None


def unlisted_end(config: Config, models: ModelPair) -> int | None:
    """`unlisted_turn_end` of the instruct model, with the run's variables of its chat template."""
    tokenizer = load_tokenizer(models.instruct)
    return unlisted_turn_end(tokenizer, Path(models.instruct), config.model.chat_template_kwargs)


def turn_end_note(config: Config, models: ModelPair) -> str | None:
    """A message about such a token; None if there is none."""
    if (end := unlisted_end(config, models)) is None:
        return None
    token = load_tokenizer(models.instruct).convert_ids_to_tokens(end)
    return (
        f"the instruct model's chat template ends a turn with {token!r} ({end}), which is not among its end tokens: it "
        "ends answers here, and fine/model/generation_config.json will list it"
    )


def _local_folder(model: str, revision: str | None, patterns: list[str]) -> str:
    """The folder of a model: a local folder itself, that of a GGUF model, or the download of a hub name."""
    if is_packed(model):
        return str(unpacked(model))
    if Path(model).is_dir():
        return str(Path(model).resolve())
    from huggingface_hub import snapshot_download

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
        raise ModelError.for_gguf(f"model '{model}' has no {needed} on the hub: it")
    return folder


def _hub_files(model: str, revision: str | None) -> list[str]:
    """Names of a hub model's files; empty if the hub does not answer."""
    from huggingface_hub import list_repo_files

    with contextlib.suppress(Exception):  # only needed for a better error message
        return list_repo_files(model, revision=revision)
    return []
