"""Adapter folder -> named weight deltas, with the rank and alpha that were trained."""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lite_c2f.errors import C2FError, ModelError
from lite_c2f.fine import shards
from lite_c2f.fine.adapter_config import (
    OTHER_FORM,
    check_adapter_config,
    rank_and_scaling,
    read_adapter_config,
    unused_patterns,
)
from lite_c2f.fine.adapter_files import CONFIG, GATHER, WEIGHTS, adapter_weights, as_safetensors
from lite_c2f.fine.delta import DTYPES, Absolute, Bias, Delta, Factor, LowRank, TokenRows, read_tensor
from lite_c2f.fine.tensor_names import ORIGINAL, SAVED, is_embedding, is_expert, is_reward_head, plain_name

EXPERTS = "parameters of a mixture of experts cannot be merged: train a LoRA of the attention's linear layers"
EMBEDDING, HEAD = "embed_tokens", "lm_head"  # a bare list of trainable_token_indices is about the first


class Adapter(NamedTuple):
    """What an adapter adds: weight name (as in the model's own files) -> delta."""

    deltas: dict[str, Delta]
    base_model_name: str | None  # as recorded by PEFT: a path or a hub name
    copies: dict[str, shards.TensorEntry]  # weights of the base that PEFT saved beside the adapter, unchanged
    fan_in_fan_out: bool  # weights that lie transposed are among those it changes, says PEFT
    ties: bool  # trained with tied embeddings kept tied (ensure_weight_tying)
    files: tuple[Path, ...]  # the weight files of its folder
    tensors: dict[str, shards.TensorEntry]  # every tensor that is no copy, by its plain name
    notes: tuple[str, ...] = ()  # what its configuration says of no tensor


def read_adapter(path: str | Path, stack: contextlib.ExitStack | None = None) -> Adapter:
    """Read a LoRA or rsLoRA adapter in PEFT's format; factors stay on disk until they are used.

    scaling = alpha / r, or alpha / sqrt(r) with use_rslora (Hu et al. 2021; Kalajdzievski 2023), where rank_pattern
    and alpha_pattern override r and alpha layer by layer. A LoRA of an embedding, or of a transposed weight
    (fan_in_fan_out), comes out turned. Values that replace the base's come out as differences from it. Names may hold
    parts of other tools' wrappers (`plain_name`). stack: keeps a copy of weights that are pickled, until it is closed.

    Raises ModelError for pickles without a stack or with more than tensors in them, missing or damaged files, every
    variant whose tensors mean something else (naming the key), tensors that are not used or lack their partner, ranks
    that disagree, NaN and infinity.

    >>> adapter = read_adapter("runs/a/coarse/adapter")
    >>> adapter.deltas["model.layers.0.self_attn.q_proj.weight"].open()(slice(0, 2), None).shape
    torch.Size([2, 4096])
    """
    folder = Path(path)
    config = read_adapter_config(folder)
    check_adapter_config(config, folder / CONFIG)
    files = adapter_weights(folder)
    entries = _read_entries(files, stack)
    deltas: dict[str, Delta] = {}
    copies: dict[str, shards.TensorEntry] = {}
    for name in sorted(entries):
        parts = _low_rank(config, entries, name, folder)
        if parts is None:
            parts = _other(config, entries[name], name, copies)
        if parts is None:
            raise _unused(name, files[0])
        for weight, delta in parts.items():
            if weight in deltas:
                got = f"two tensors of '{folder}' change '{weight}'"
                raise ModelError.because(got, "one delta a weight", OTHER_FORM)
            deltas[weight] = delta
    _check_complete(config, deltas, files[0])
    if not deltas:
        raise ModelError.because(f"'{files[0]}' holds no delta", "a trained adapter", "save the adapter again")
    modules = {name.rpartition(".lora_")[0]: entries[name].name.rpartition(".lora_")[0] for name in entries}
    modules.pop("", None)
    return Adapter(
        deltas=deltas,
        base_model_name=config.get("base_model_name_or_path"),
        copies=copies,
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        ties=bool(config.get("ensure_weight_tying")),
        files=tuple(files),
        tensors={name: entry for name, entry in entries.items() if entry not in copies.values()},
        notes=tuple(unused_patterns(config, modules, folder / CONFIG)),
    )


def _read_entries(files: list[Path], stack: contextlib.ExitStack | None) -> dict[str, shards.TensorEntry]:
    """Plain tensor name -> where it lies; every value is read once, to find NaN and infinity."""
    stored = files
    if files[0].suffix == ".bin":
        if stack is None:
            got = f"only the pickle '{files[0]}'"
            raise ModelError.because(got, "weights as safetensors", "load the adapter with PEFT and save it again")
        stored = as_safetensors(files, stack)
    entries: dict[str, shards.TensorEntry] = {}
    for file, read in zip(files, stored, strict=True):
        for entry in shards.read_header(read):
            name = _checked(entry, file)
            if name in entries:
                names = f"{entries[name].name} {entry.name}"
                if (
                    f".{SAVED}." in names
                    and shards.read_bytes(entries[name]).tobytes() == shards.read_bytes(entry).tobytes()
                ):
                    continue  # PEFT writes an embedding that is trained whole twice, where it saves embeddings
                got = f"'{entries[name].name}' and '{entry.name}' of '{file}' are both '{name}'"
                raise ModelError.because(
                    got, "one adapter with every tensor once", "save that adapter alone, with PEFT's save_pretrained"
                )
            entries[name] = entry
    if not entries:
        remedy = f"save the adapter again; after DeepSpeed ZeRO-3, {GATHER}"
        raise ModelError.because(f"'{files[0]}' holds no tensors", "a trained adapter", remedy)
    return entries


def _checked(entry: shards.TensorEntry, file: Path) -> str:
    """The plain name of a tensor whose values can be used. file: where it was saved."""
    name = plain_name(entry.name)
    if name is None:
        raise _unused(entry.name, file, "save the adapter with PEFT's save_pretrained")
    if entry.shape == (0,):
        got = f"'{name}' of '{file}' has the shape (0,): DeepSpeed ZeRO-3 leaves weights empty that were not gathered"
        raise ModelError.because(got, "whole weights", GATHER)
    if entry.dtype not in DTYPES:
        got = f"'{name}' of '{file}' is {entry.dtype}"
        raise ModelError.because(got, "BF16, F16 or F32", "save the adapter again")
    if any(not torch.isfinite(part).all() for part in _parts(entry)):
        got = f"'{name}' of '{file}' holds NaN or infinity"
        raise ModelError.because(got, "finite weights", "take a checkpoint from before")
    return name


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
        raise _unused(name, folder / WEIGHTS, EXPERTS)
    rank, scaling = rank_and_scaling(config, module)
    first, second = entries[name], entries[partner]
    if len(first.shape) != 2 or len(second.shape) != 2 or not first.shape[0] == second.shape[1] == rank:
        experts = is_expert(name) or bool(config.get("target_parameters"))
        raise ModelError.because(
            f"'{name}' {first.shape} and '{partner}' {second.shape} of '{folder}'",
            f"two matrices of the rank {rank} that r and rank_pattern give",
            EXPERTS
            if experts
            else "convolutions cannot be merged: train a LoRA of linear layers"
            if max(len(first.shape), len(second.shape)) > 2
            else "save the adapter again with its adapter_config.json",
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
    if f".{ORIGINAL}." in name:
        copies[name.replace(f".{ORIGINAL}.", ".")] = entry
        return {}
    weight = name.replace(".base_layer.", ".")
    whole = list(config.get("modules_to_save") or [])
    if config.get("ensure_weight_tying") and any(module.endswith(EMBEDDING) for module in whole):
        whole.append(HEAD)  # saved beside the embedding that it is tied to
    if any(_within(name, module) for module in whole):
        return {weight: Absolute(entry)}
    if weight.endswith(".bias") and config.get("bias", "none") != "none":
        return {weight: Absolute(entry)}
    of_lora = re.search(r"\.lora_|\.token_adapter\.", name)
    if name.endswith((".base_layer.weight", ".base_layer.bias")) or (is_embedding(name) and not of_lora):
        copies[weight] = entry  # save_embedding_layers: asked for, or the vocabulary was resized in training
        return {}
    return None


def _check_complete(config: Mapping[str, Any], deltas: Mapping[str, Delta], file: Path) -> None:
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
                got = f"'{key}' names '{name}', of which '{file}' has nothing"
                raise ModelError.because(got, "its tensors", "save the adapter again")
    if config.get("lora_bias") and not any(isinstance(delta, Bias) for delta in deltas.values()):
        got = f"'lora_bias' is true and '{file}' has no biases"
        raise ModelError.because(got, "them", "save the adapter again")


def _token_rows(config: Mapping[str, Any], entry: shards.TensorEntry, module: str) -> TokenRows:
    indices = config.get("trainable_token_indices")
    last = module.split(".")[-1]
    if isinstance(indices, dict):
        listed: Any = next((ids for name, ids in indices.items() if name.split(".")[-1] == last), None)
    else:
        listed = indices  # of the input embedding, whatever the model calls it
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


def _unused(name: str, file: Path, remedy: str = OTHER_FORM) -> C2FError:
    expected = f"only tensors that {CONFIG} explains"
    if is_reward_head(name):
        remedy = "this is a classifier's or a value head: merge the adapter of the policy, not that of a reward model"
    elif "lora_magnitude_vector" in name:
        remedy = f"this is DoRA's, which cannot be merged: {OTHER_FORM}"
    elif remedy == OTHER_FORM and ".lora_" not in name and name.endswith((".weight", ".bias")):
        module = name.rpartition(".")[0].replace(".base_layer", "")
        remedy = f"where '{module}' was trained whole, add it to modules_to_save in {CONFIG}"
    return ModelError.because(f"tensor '{name}' of '{file}' is not used", expected, remedy)
