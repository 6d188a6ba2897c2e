"""Adapter folder -> named weight deltas, with the rank and alpha that were trained."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lite_c2f.errors import C2FError, ModelError
from lite_c2f.fine import shards
from lite_c2f.fine.delta import DTYPES, Absolute, Bias, Delta, Factor, LowRank, TokenRows, read_tensor
from lite_c2f.fine.treatment import is_number

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
EMBEDDING, HEAD = "embed_tokens", "lm_head"  # a bare list of trainable_token_indices is about the first

# Keys that are read below, and keys that say how the adapter was trained or runs but not what it holds. Every other
# key has to be null, false or empty: a key we do not know may change what the tensors mean.
READ_KEYS = {
    *("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "rank_pattern"),
    *("alpha_pattern", "init_lora_weights", "bias", "lora_bias", "fan_in_fan_out", "modules_to_save"),
    *("trainable_token_indices", "target_parameters", "ensure_weight_tying", "eva_config"),
}
INERT_KEYS = {
    *("auto_mapping", "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout"),
    *("megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules"),
}
OTHER_FORM = "train a plain LoRA or rsLoRA adapter"
PLAIN_INITS = ("true", "false", "gaussian", "orthogonal", "eva")  # those that leave the base's weights alone
REMEDIES = {
    "init_lora_weights": "it changes the base's weights or starts from a delta that is not the residue: train with "
    "init_lora_weights=True, or save with path_initial_model_for_weight_conversion",
    "loftq_config": "LoftQ changes the base's weights: train with init_lora_weights=True",
    "layer_replication": "its layers are not the base's layers: train without it",
    "alora_invocation_tokens": "it acts on a part of each text only, which no merged weight can: train without it",
}


class Adapter(NamedTuple):
    """What an adapter adds: weight name (as in the model's own files) -> delta."""

    deltas: dict[str, Delta]
    base_model_name: str | None  # as recorded by PEFT: a path or a hub name
    copies: dict[str, shards.TensorEntry]  # weights of the base that PEFT saved beside the adapter, unchanged
    fan_in_fan_out: bool  # weights that lie transposed are among those it changes, says PEFT
    ties: bool  # trained with tied embeddings kept tied (ensure_weight_tying)


def read_adapter(path: str | Path) -> Adapter:
    """Read a LoRA or rsLoRA adapter in PEFT's format; factors stay on disk until they are used.

    scaling = alpha / r, or alpha / sqrt(r) with use_rslora (Hu et al. 2021; Kalajdzievski 2023), where rank_pattern
    and alpha_pattern override r and alpha layer by layer. A LoRA of an embedding, or of a transposed weight
    (fan_in_fan_out), comes out turned. Values that replace the base's come out as differences from it.

    Raises ModelError for pickles, missing or damaged files, every variant whose tensors mean something else (naming
    the key), tensors that are not used or lack their partner, ranks that disagree, NaN and infinity.

    >>> adapter = read_adapter("runs/a/coarse/adapter")
    >>> adapter.deltas["model.layers.0.self_attn.q_proj.weight"].open()(slice(0, 2), None).shape
    torch.Size([2, 4096])
    """
    folder = Path(path)
    config = read_adapter_config(folder)
    check_adapter_config(config, folder / CONFIG)
    entries = _read_entries(folder)
    deltas: dict[str, Delta] = {}
    copies: dict[str, shards.TensorEntry] = {}
    for name in sorted(entries):
        found = _low_rank(config, entries, name, folder)
        if found is None:
            found = _other(config, entries[name], name, copies)
        if found is None:
            raise _unused(name)
        for weight, delta in found.items():
            if weight in deltas:
                got = f"two tensors of '{folder}' change '{weight}'"
                raise ModelError.because(got, "one delta a weight", OTHER_FORM)
            deltas[weight] = delta
    _check_complete(config, deltas, folder)
    flags = (bool(config.get(key)) for key in ("fan_in_fan_out", "ensure_weight_tying"))
    if not deltas:
        got = f"'{folder / WEIGHTS}' holds no delta"
        raise ModelError.because(got, "a trained adapter", "save the adapter again")
    return Adapter(deltas, config.get("base_model_name_or_path"), copies, *flags)


def rank_and_scaling(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """The rank and the scaling of one module: alpha / r, or alpha / sqrt(r) with use_rslora.

    A pattern is a regular expression for the end of the module's name, whole name parts only; the first that fits wins
    (PEFT's rule). Raises ModelError naming the key when a value is not a positive rank or a finite alpha.
    """
    rank = _by_pattern(config, "rank_pattern", module, config.get("r"))
    alpha = _by_pattern(config, "alpha_pattern", module, config.get("lora_alpha"))
    if type(rank) is not int or rank < 1:
        raise ModelError.because(f"'r' or 'rank_pattern' gives {rank!r}", "a rank of at least 1", f"correct {CONFIG}")
    if not is_number(alpha):
        raise ModelError.because(f"'lora_alpha' or 'alpha_pattern' gives {alpha!r}", "a number", f"correct {CONFIG}")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def check_adapter_config(config: Mapping[str, Any], file: Path) -> None:
    """Refuse every adapter_config.json that is not a LoRA or rsLoRA of a causal language model on an unchanged base.

    Raises ModelError naming the key, its value and the remedy.
    """
    if config.get("peft_type") != "LORA":
        raise _refused(file, "peft_type", config.get("peft_type"), "'LORA'", OTHER_FORM)
    if config.get("task_type") not in ("CAUSAL_LM", None):
        remedy = "merge the adapter of the policy, not that of a reward model or a critic"
        raise _refused(file, "task_type", config.get("task_type"), "'CAUSAL_LM'", remedy)
    init = config.get("init_lora_weights", True)
    if str(init).lower() not in PLAIN_INITS:
        raise _refused(
            file, "init_lora_weights", init, "one of " + ", ".join(PLAIN_INITS), REMEDIES["init_lora_weights"]
        )
    if config.get("eva_config") and init != "eva":
        raise _refused(file, "eva_config", config["eva_config"], "null unless init_lora_weights is 'eva'", OTHER_FORM)
    if config.get("bias", "none") not in ("none", "lora_only", "all"):
        raise _refused(file, "bias", config["bias"], "'none', 'lora_only' or 'all'", "save the adapter again")
    for key in ("use_rslora", "lora_bias", "fan_in_fan_out", "ensure_weight_tying"):
        if config.get(key, False) not in (True, False, None):
            raise _refused(file, key, config[key], "true or false", "save the adapter again")
    for key in ("modules_to_save", "target_parameters"):
        value = config.get(key) or []
        if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
            raise _refused(file, key, value, "a list of names", "save the adapter again")
    if config.get("target_parameters") and (config.get("rank_pattern") or config.get("alpha_pattern")):
        got = config["target_parameters"]
        raise _refused(file, "target_parameters", got, "it without rank_pattern and alpha_pattern", OTHER_FORM)
    for key, value in sorted(config.items()):
        if key not in READ_KEYS | INERT_KEYS and value not in (None, False, [], {}):
            raise _refused(file, key, value, "null, false or empty", REMEDIES.get(key, OTHER_FORM))


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of an adapter folder. Raises ModelError naming the file."""
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        near = next(
            (folder / name for name in ("coarse/adapter", "adapter") if (folder / name / CONFIG).is_file()), None
        )
        remedy = f"did you mean '{near}'?" if near else "check the path (a folder on this machine, no hub name)"
        raise ModelError.because(f"no '{file}'", "an adapter folder saved by PEFT", remedy) from None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or not isinstance(config.get("base_model_name_or_path"), str | None):
        got = f"'{file}' is not a JSON object, or its base_model_name_or_path no text"
        raise ModelError.because(got, "the file PEFT wrote", "save the adapter again")
    return config


def _read_entries(folder: Path) -> dict[str, shards.TensorEntry]:
    """Tensor name without PEFT's prefix -> where it lies; every value is read once, to find NaN and infinity."""
    file = folder / WEIGHTS
    if not file.is_file():
        pickle = (folder / "adapter_model.bin").exists()
        raise ModelError.because(
            f"no '{file}'" + (", only the pickle 'adapter_model.bin'" if pickle else ""),
            "weights as safetensors",
            "load the adapter with PEFT and save it again" if pickle else "check the path",
        )
    entries = shards.read_header(file)
    if not entries:
        raise ModelError.because(f"'{file}' holds no tensors", "a trained adapter", "save the adapter again")
    for entry in entries:
        if not entry.name.startswith(PREFIX):
            raise _unused(entry.name, "save the adapter with PEFT's save_pretrained")
        if entry.dtype not in DTYPES:
            got = f"'{entry.name}' of '{file}' is {entry.dtype}"
            raise ModelError.because(got, "BF16, F16 or F32", "save the adapter again")
        if any(not torch.isfinite(part).all() for part in _parts(entry)):
            got = f"'{entry.name}' of '{file}' holds NaN or infinity"
            raise ModelError.because(got, "finite weights", "take a checkpoint from before")
    return {entry.name.removeprefix(PREFIX): entry for entry in entries}


def _parts(entry: shards.TensorEntry) -> Any:
    """A tensor in flat pieces of at most 16 MiB: a saved embedding may be large."""
    item = shards.ITEM_BYTES[entry.dtype]
    for start in range(0, entry.size, 2**24):
        size = min(2**24, entry.size - start)
        yield read_tensor(entry._replace(start=entry.start + start, size=size, shape=(size // item,)))


def _low_rank(
    config: Mapping[str, Any], entries: Mapping[str, shards.TensorEntry], name: str, folder: Path
) -> dict[str, Delta] | None:
    """The delta that a lora_A or lora_B tensor is a part of ({} for B, which comes with its A); None for others."""
    match = re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(\.weight)?", name)
    if match is None or bool(match[2]) == bool(match[4]):
        return None
    module, embedding, letter, _ = match.groups()
    partner = f"{module}.lora_{embedding or ''}{'B' if letter == 'A' else 'A'}{match[4] or ''}"
    if partner not in entries:
        got = f"'{name}' of '{folder}' has no '{partner}'"
        raise ModelError.because(got, "lora_A and lora_B together", "save the adapter again")
    if letter == "B":
        return {}
    if re.search(r"\.base_layer$", module):
        raise _unused(name, "target one parameter a module: nested ones, as in mixtures of experts, cannot be merged")
    rank, scaling = rank_and_scaling(config, module)
    first, second = entries[name], entries[partner]
    if len(first.shape) != 2 or len(second.shape) != 2 or not first.shape[0] == second.shape[1] == rank:
        raise ModelError.because(
            f"'{name}' {first.shape} and '{partner}' {second.shape} of '{folder}'",
            f"two matrices of the rank {rank} that r and rank_pattern give",
            "save the adapter again with its adapter_config.json (3-D parameters of experts cannot be merged)",
        )
    delta = LowRank(Factor(first), Factor(second), scaling)
    # An embedding W (vocabulary, hidden) was trained the other way round. Other transposed weights are found later:
    # fan_in_fan_out is one flag for all modules, and says what the last of them was.
    return {_parameter(config, module): delta.transposed() if embedding else delta}


def _parameter(config: Mapping[str, Any], module: str) -> str:
    """The weight that a module's LoRA changes: `weight`, or the one that target_parameters names."""
    for path in config.get("target_parameters") or []:
        owner, _, parameter = path.rpartition(".")
        if module == owner or module.endswith(f".{owner}"):
            return f"{module}.{parameter}"
    return f"{module}.weight"


def _other(
    config: Mapping[str, Any], entry: shards.TensorEntry, name: str, copies: dict[str, shards.TensorEntry]
) -> dict[str, Delta] | None:
    """The delta of a tensor that is no LoRA factor; None where the configuration does not explain it."""
    if name.endswith(".token_adapter.trainable_tokens_delta"):
        module = name.removesuffix(".token_adapter.trainable_tokens_delta")
        return {f"{module}.weight": _token_rows(config, entry, module)}
    if name.endswith(".lora_B.bias") and config.get("lora_bias"):
        module = name.removesuffix(".lora_B.bias")
        return {f"{module}.bias": Bias(entry, rank_and_scaling(config, module)[1])}
    weight = name.replace(".base_layer.", ".")
    whole = list(config.get("modules_to_save") or [])
    if config.get("ensure_weight_tying") and any(module.endswith(EMBEDDING) for module in whole):
        whole.append(HEAD)  # saved beside the embedding that it is tied to
    if any(_within(name, module) for module in whole):
        return {weight: Absolute(entry)}
    if weight.endswith(".bias") and config.get("bias", "none") != "none":
        return {weight: Absolute(entry)}
    if name.endswith(".base_layer.weight") and len(entry.shape) == 2:  # save_embedding_layers
        copies[weight] = entry
        return {}
    return None


def _check_complete(config: Mapping[str, Any], deltas: Mapping[str, Delta], folder: Path) -> None:
    """Raise ModelError where the configuration promises tensors that the file does not have."""
    tokens = config.get("trainable_token_indices") or {}
    names_of_tokens = list(tokens) if isinstance(tokens, dict) else [EMBEDDING] if tokens else []
    promised: list[tuple[str, list[str], type]] = [
        ("modules_to_save", config.get("modules_to_save") or [], Absolute),
        ("trainable_token_indices", names_of_tokens, TokenRows),
    ]
    for key, names, kind in promised:
        for name in names:
            listed = isinstance(tokens, list) and key == "trainable_token_indices"
            if not any(
                (listed or _within(weight, name)) for weight, delta in deltas.items() if isinstance(delta, kind)
            ):
                got = f"'{key}' names '{name}', of which '{folder / WEIGHTS}' has nothing"
                raise ModelError.because(got, "its tensors", "save the adapter again")
    if config.get("lora_bias") and not any(isinstance(delta, Bias) for delta in deltas.values()):
        got = f"'lora_bias' is true and '{folder / WEIGHTS}' has no biases"
        raise ModelError.because(got, "them", "save the adapter again")


def _token_rows(config: Mapping[str, Any], entry: shards.TensorEntry, module: str) -> TokenRows:
    given = config.get("trainable_token_indices")
    last = module.split(".")[-1]
    if isinstance(given, dict):
        listed: Any = next((ids for name, ids in given.items() if name.split(".")[-1] == last), None)
    else:
        listed = given  # of the input embedding, whatever the model calls it
    whole = isinstance(listed, list) and all(type(token) is int and token >= 0 for token in listed)
    if not whole or len(entry.shape) != 2 or len(set(listed)) != len(listed) or len(listed) != entry.shape[0]:
        raise ModelError.because(
            f"'trainable_token_indices' gives {listed!r} for the {entry.shape} of '{entry.name}'",
            "as many different tokens as rows",
            f"correct {CONFIG}",
        )
    return TokenRows(entry, tuple(listed), (max(listed) + 1, entry.shape[1]))


def _within(name: str, module: str) -> bool:
    """Does a tensor belong to a module whose path ends with `module`? PEFT's rule: the end of the text, not a part."""
    parts = name.split(".")
    return any(".".join(parts[:length]).endswith(module) for length in range(1, len(parts)))


def _by_pattern(config: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    try:
        for pattern, value in (config.get(key) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
    except (re.error, AttributeError) as error:
        raise ModelError.because(f"'{key}' {error}", "regular expressions -> numbers", f"correct {CONFIG}") from None
    return default


def _refused(file: Path, key: str, value: Any, expected: str, remedy: str) -> C2FError:
    return ModelError.because(f"'{key}' is {value!r} in '{file}'", expected, remedy)


def _unused(name: str, remedy: str | None = None) -> C2FError:
    if remedy is None and re.search(r"\b(score|classifier)\b", name):
        remedy = "this is a classifier's head: merge the adapter of the policy, not that of a reward model"
    got = f"tensor '{name}' of '{WEIGHTS}' is not used"
    return ModelError.because(got, "only tensors that adapter_config.json explains", remedy or OTHER_FORM)
