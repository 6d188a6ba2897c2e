"""Adapter of a folder: weight deltas by name, with the rank and alpha they were trained with."""

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
from lite_c2f.fine.adapter_files import CONFIG, GATHER_REMEDY, WEIGHTS, adapter_weights, as_safetensors
from lite_c2f.fine.delta import DTYPES, Absolute, Bias, Delta, Factor, LowRank, TokenRows, read_tensor
from lite_c2f.fine.tensor_names import ORIGINAL, SAVED, is_embedding, is_expert, is_reward_head, plain_name

EXPERTS = "parameters of a mixture of experts cannot be merged: train a LoRA of the attention's linear layers"
EMBEDDING, HEAD = "embed_tokens", "lm_head"  # the first is what a plain list of trainable_token_indices refers to


class Adapter(NamedTuple):
    """Contents of an adapter: deltas by weight name (as in the model's own files)."""

    deltas: dict[str, Delta]
    base_model_name: str | None  # as recorded by PEFT: a path or a hub name
    copies: dict[str, shards.TensorEntry]  # unchanged weights of the base that PEFT saved with the adapter
    fan_in_fan_out: bool  # PEFT's flag: some of its weights are stored transposed
    ties: bool  # trained with tied embeddings kept tied (ensure_weight_tying)
    files: tuple[Path, ...]  # the weight files of its folder
    tensors: dict[str, shards.TensorEntry]  # all tensors but the copies, by plain name
    notes: tuple[str, ...] = ()  # settings in its configuration that match no tensor


def read_adapter(path: str | Path, stack: contextlib.ExitStack | None = None) -> Adapter:
    """Read a LoRA or rsLoRA adapter in PEFT's format; factors stay on disk until they are used.

    scaling = alpha / r, or alpha / sqrt(r) with use_rslora (Hu et al. 2021; Kalajdzievski 2023), where rank_pattern
    and alpha_pattern override r and alpha layer by layer. The LoRA of an embedding, or of a transposed
    weight (fan_in_fan_out), is returned transposed. Values that replace the base's become differences from it. Names
    may contain parts of other tools' wrappers (`plain_name`). stack: owns a copy of pickled weights until it is closed.

    Raises ModelError for pickles without a stack or with more than tensors in them, missing or damaged files, adapter
    variants with another meaning of the tensors (naming the key), unused tensors, a lora_A without lora_B, inconsistent
    ranks, NaN and infinity.

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
            parts = _other_delta(config, entries[name], name, copies)
        if parts is None:
            raise _unused_tensor_error(name, files[0])
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
    """{plain tensor name: its place in a file}; reads every value once, to find NaN and infinity."""
    stored = files
    if files[0].suffix == ".bin":
        if stack is None:
            got = f"only the pickle '{files[0]}'"
            raise ModelError.because(got, "weights as safetensors", "load the adapter with PEFT and save it again")
        stored = as_safetensors(files, stack)
    entries: dict[str, shards.TensorEntry] = {}
    for file, read in zip(files, stored, strict=True):
        for entry in shards.read_header(read):
            name = _checked_name(entry, file)
            if name in entries:
                names = f"{entries[name].name} {entry.name}"
                if (
                    f".{SAVED}." in names
                    and shards.read_bytes(entries[name]).tobytes() == shards.read_bytes(entry).tobytes()
                ):
                    continue  # PEFT may save a fully trained embedding twice
                got = f"'{entries[name].name}' and '{entry.name}' of '{file}' are both '{name}'"
                raise ModelError.because(
                    got, "one adapter with every tensor once", "save that adapter alone, with PEFT's save_pretrained"
                )
            entries[name] = entry
    if not entries:
        remedy = f"save the adapter again; after DeepSpeed ZeRO-3, {GATHER_REMEDY}"
        raise ModelError.because(f"'{files[0]}' holds no tensors", "a trained adapter", remedy)
    return entries


def _checked_name(entry: shards.TensorEntry, file: Path) -> str:
    """The plain name of a tensor. Raises ModelError if its values cannot be used. file: for messages."""
    name = plain_name(entry.name)
    if name is None:
        raise _unused_tensor_error(entry.name, file, "save the adapter with PEFT's save_pretrained")
    if entry.shape == (0,):
        got = f"'{name}' of '{file}' has the shape (0,): DeepSpeed ZeRO-3 leaves weights empty that were not gathered"
        raise ModelError.because(got, "whole weights", GATHER_REMEDY)
    if entry.dtype not in DTYPES:
        got = f"'{name}' of '{file}' is {entry.dtype}"
        raise ModelError.because(got, "BF16, F16 or F32", "save the adapter again")
    if any(not torch.isfinite(part).all() for part in _flat_pieces(entry)):
        got = f"'{name}' of '{file}' holds NaN or infinity"
        raise ModelError.because(got, "finite weights", "take a checkpoint from before")
    return name


def _flat_pieces(entry: shards.TensorEntry) -> Any:
    """A tensor in flat pieces of at most 16 MiB, because a saved embedding may be large."""
    item = shards.ITEM_BYTES[entry.dtype]
    for start in range(0, entry.size, 2**24):
        size = min(2**24, entry.size - start)
        yield read_tensor(entry._replace(start=entry.start + start, size=size, shape=(size // item,)))


def _low_rank(
    config: Mapping[str, Any], entries: Mapping[str, shards.TensorEntry], name: str, folder: Path
) -> dict[str, Delta] | None:
    """{weight: delta} of a lora_A tensor with its lora_B; {} for lora_B itself, None for other tensors."""
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
        raise _unused_tensor_error(name, folder / WEIGHTS, EXPERTS)
    rank, scaling = rank_and_scaling(config, module)
    down, up = entries[name], entries[partner]
    if len(down.shape) != 2 or len(up.shape) != 2 or not down.shape[0] == up.shape[1] == rank:
        experts = is_expert(name) or bool(config.get("target_parameters"))
        raise ModelError.because(
            f"'{name}' {down.shape} and '{partner}' {up.shape} of '{folder}'",
            f"two matrices of the rank {rank} that r and rank_pattern give",
            EXPERTS
            if experts
            else "convolutions cannot be merged: train a LoRA of linear layers"
            if max(len(down.shape), len(up.shape)) > 2
            else "save the adapter again with its adapter_config.json",
        )
    delta = LowRank(Factor(down), Factor(up), scaling)
    # The LoRA of an embedding W (vocabulary, hidden) is transposed. Other transposed weights are found later, because
    # fan_in_fan_out is one flag for all modules and only tells about the last of them.
    return {_parameter(config, module): delta.transposed() if embedding else delta}


def _parameter(config: Mapping[str, Any], module: str) -> str:
    """The weight that a module's LoRA changes: `weight`, or the one that target_parameters names."""
    for path in config.get("target_parameters") or []:
        owner, _, parameter = path.rpartition(".")
        if module == owner or module.endswith(f".{owner}"):
            return f"{module}.{parameter}"
    return f"{module}.weight"


def _other_delta(
    config: Mapping[str, Any], entry: shards.TensorEntry, name: str, copies: dict[str, shards.TensorEntry]
) -> dict[str, Delta] | None:
    """{weight: delta} of a tensor that is no LoRA factor; None if the configuration does not explain it."""
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
    saved_modules = list(config.get("modules_to_save") or [])
    if config.get("ensure_weight_tying") and any(module.endswith(EMBEDDING) for module in saved_modules):
        saved_modules.append(HEAD)  # saved with the embedding that it is tied to
    if any(_belongs_to(name, module) for module in saved_modules):
        return {weight: Absolute(entry)}
    if weight.endswith(".bias") and config.get("bias", "none") != "none":
        return {weight: Absolute(entry)}
    of_lora = re.search(r"\.lora_|\.token_adapter\.", name)
    if name.endswith((".base_layer.weight", ".base_layer.bias")) or (is_embedding(name) and not of_lora):
        copies[weight] = entry  # PEFT's save_embedding_layers, or a vocabulary that was resized in training
        return {}
    return None


def _check_complete(config: Mapping[str, Any], deltas: Mapping[str, Delta], file: Path) -> None:
    """Raise ModelError if the configuration names tensors that the file does not have."""
    tokens = config.get("trainable_token_indices") or {}
    names_of_tokens = list(tokens) if isinstance(tokens, dict) else [EMBEDDING] if tokens else []
    expected: list[tuple[str, list[str], type]] = [
        ("modules_to_save", config.get("modules_to_save") or [], Absolute),
        ("trainable_token_indices", names_of_tokens, TokenRows),
    ]
    for key, names, kind in expected:
        for name in names:
            listed = isinstance(tokens, list) and key == "trainable_token_indices"
            if not any(
                (listed or _belongs_to(weight, name)) for weight, delta in deltas.items() if isinstance(delta, kind)
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


def _belongs_to(name: str, module: str) -> bool:
    """Whether a tensor is of a module whose path ends with the text `module` (PEFT's rule, not by whole parts)."""
    parts = name.split(".")
    return any(".".join(parts[:length]).endswith(module) for length in range(1, len(parts)))


def _unused_tensor_error(name: str, file: Path, remedy: str = OTHER_FORM) -> C2FError:
    expected = f"only tensors that {CONFIG} explains"
    if is_reward_head(name):
        remedy = "this is a classifier's or a value head: merge the adapter of the policy, not that of a reward model"
    elif "lora_magnitude_vector" in name:
        remedy = f"this is DoRA's, which cannot be merged: {OTHER_FORM}"
    elif remedy == OTHER_FORM and ".lora_" not in name and name.endswith((".weight", ".bias")):
        module = name.rpartition(".")[0].replace(".base_layer", "")
        remedy = f"where '{module}' was trained whole, add it to modules_to_save in {CONFIG}"
    return ModelError.because(f"tensor '{name}' of '{file}' is not used", expected, remedy)
