"""Lineage check of a base and an instruct model: a residue fits only a model tuned from the same base."""

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from lite_c2f.backbone.weights import first_gguf
from lite_c2f.errors import ModelError
from lite_c2f.gguf import is_packed, unpacked

SIZE_KEYS = (
    "architectures",
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)
OTHER_NAMES = {  # in config.json of GPT-2 and its kin, OPT, Falcon and MPT
    "hidden_size": ("n_embd", "d_model"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "num_hidden_layers": ("n_layer", "n_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "num_key_value_heads": ("num_kv_heads",),
}
# Fine-tuning changes none of these, so a difference means another lineage (Mistral-7B-Instruct-v0.2 has another
# rope_theta and no sliding window, so it is not tuned from Mistral-7B-v0.1, although every tensor has the same shape).
LINEAGE_KEYS = ("rope_theta", "rope_parameters", "sliding_window")
DEFAULT_ROPE_THETA = 10000.0
MISTRAL_SLIDING_WINDOW = 4096  # what a Mistral config without the key means; a null means none


def check_pair(base_dir: str | Path, instruct_dir: str | Path) -> None:
    """Refuse a base and an instruct folder whose models are not of one lineage; imports no torch.

    Compared: the sizes, the positional encoding and the attention window of config.json, then the vocabularies
    (token -> id, added tokens included). Our own rule: the paper does not say how it chose its pair. The weights
    themselves are not compared.

    Raises ModelError naming the key and both values, or the first token that differs, or the missing file.

    >>> check_pair("Mistral-7B-v0.1", "Mistral-7B-Instruct-v0.1")
    """
    base_dir, instruct_dir = Path(base_dir), Path(instruct_dir)
    check_configs(base_dir, instruct_dir)
    check_vocabularies(base_dir, instruct_dir)


def check_configs(base_dir: Path, instruct_dir: Path, *, leave_out: Collection[str] = ()) -> None:
    """Raise ModelError naming the first key of `lineage` on which the two config.json differ, with both values.

    leave_out: keys that may differ.
    """
    base, instruct = _lineage_of(base_dir), _lineage_of(instruct_dir)
    for key, value in base.items():
        if value != instruct[key] and key not in leave_out:
            raise ModelError.because(
                f"'{key}' is {value!r} in '{base_dir}' but {instruct[key]!r} in '{instruct_dir}'",
                "two models of one lineage",
                "take the instruct model that was tuned from this base",
            )


def _lineage_of(folder: Path) -> dict[str, Any]:
    try:
        return lineage(read_config(folder))
    except (TypeError, ValueError, AttributeError, KeyError):
        got = f"'{folder / 'config.json'}' has sizes or rotary settings of another form"
        raise ModelError.because(got, "the file that Transformers wrote", "download the model again") from None


def check_vocabularies(base_dir: Path, instruct_dir: Path) -> None:
    """Raise ModelError naming the first token to which the two tokenizers give different ids."""
    base, instruct = read_vocabulary(base_dir), read_vocabulary(instruct_dir)
    if base == instruct:
        return
    raise different_token(base_dir, instruct_dir, base, instruct, [*base, *instruct])


def different_token(
    base_dir: Path, instruct_dir: Path, base: dict[str, int], instruct: dict[str, int], tokens: Iterable[str]
) -> ModelError:
    """The error that names the first of these tokens to which two vocabularies give different ids."""
    token = next(token for token in tokens if base.get(token) != instruct.get(token))
    return ModelError.because(
        f"token {token!r} is {_numbered(base.get(token))} in the tokenizer of '{base_dir}' "
        f"but {_numbered(instruct.get(token))} in that of '{instruct_dir}'",
        "the same vocabulary in both",
        "take the instruct model that was tuned from this base",
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a model folder. Raises ModelError naming the folder or the file."""
    if is_packed(str(folder)):
        folder = unpacked(str(folder))
    if not folder.is_dir():
        raise ModelError.because(
            f"no folder '{folder}'",
            "a local model folder",
            "check the path; of a hub model, `hf download` it",
        )
    if not (folder / "config.json").is_file() and (gguf := first_gguf(folder)):
        raise ModelError.for_gguf(f"'{folder}' holds '{gguf}' and no config.json: it")
    return _read_object(folder / "config.json")


def lineage(config: dict[str, Any]) -> dict[str, Any]:
    """The values on which a pair has to agree, in one form for every way of writing them.

    Missing keys take the meaning that Transformers gives them. The rotary settings of Transformers 4 (`rope_theta`,
    `rope_scaling`) and 5 (`rope_parameters`) come out alike.
    """
    config = {**config, **(config.get("text_config") or {})}
    values = {key: _first(config, key, *OTHER_NAMES.get(key, ())) for key in SIZE_KEYS}
    heads = values["num_attention_heads"]
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = heads
    if values["head_dim"] is None and heads and values["hidden_size"]:
        values["head_dim"] = values["hidden_size"] // heads
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    values["rope_theta"] = rope.pop("rope_theta", config.get("rope_theta")) or DEFAULT_ROPE_THETA
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)  # Transformers 4 wrote both names
    values["rope_parameters"] = {"rope_type": kind, **rope}
    default_window = MISTRAL_SLIDING_WINDOW if values["model_type"] == "mistral" else None
    window = config.get("sliding_window", default_window)
    values["sliding_window"] = window if config.get("use_sliding_window", True) else None
    return values


def _first(config: dict[str, Any], *names: str) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)


def read_vocabulary(folder: Path) -> dict[str, int]:
    """Token -> id, added tokens included, from tokenizer.json or from vocab.json (+ added_tokens.json).

    Raises ModelError when the folder has neither, or when the file has another form.
    """
    file = folder / "tokenizer.json"
    if file.is_file():
        content = _read_object(file)
        try:
            vocabulary = content["model"]["vocab"]
            if isinstance(vocabulary, list):  # Unigram: (token, score) in the order of the ids
                vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
            added = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
            return {**vocabulary, **added}
        except (KeyError, TypeError, ValueError):
            raise ModelError.because(f"'{file}' has no vocabulary", "model.vocab", "save the tokenizer again") from None
    if (folder / "vocab.json").is_file():
        added_file = folder / "added_tokens.json"
        return {**_read_object(folder / "vocab.json"), **(_read_object(added_file) if added_file.is_file() else {})}
    raise ModelError.because(
        f"no tokenizer.json in '{folder}'",
        "a fast tokenizer beside the weights",
        "download it, or save it with AutoTokenizer.from_pretrained(...).save_pretrained(folder)",
    )


def read_added_tokens(folder: Path) -> set[str]:
    """Tokens added to a tokenizer's own vocabulary: control tokens, and placeholders reserved for them."""
    for name in ("tokenizer.json", "added_tokens.json"):
        if (folder / name).is_file():
            content = _read_object(folder / name)
            added = content.get("added_tokens") or [] if name == "tokenizer.json" else [*content]
            return {token if isinstance(token, str) else token["content"] for token in added}
    return set()


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError.because(f"no '{file}'", "a complete model folder", "download the model again") from None
    except (ValueError, RecursionError, OSError):
        content = None
    if not isinstance(content, dict):
        raise ModelError.because(f"'{file}' is not a JSON object", "an undamaged file", "download the model again")
    return content


def _numbered(number: int | None) -> str:
    return "missing" if number is None else f"number {number}"
