"""What a merge is checked for before anything is written."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lite_c2f.backbone.pair import check_configs
from lite_c2f.errors import ConfigError, ModelError, RunError
from lite_c2f.fine.adapter import Adapter
from lite_c2f.fine.delta import DTYPES, Absolute, Delta, LowRank, TokenRows, read_tensor
from lite_c2f.fine.shards import TensorEntry, part_of
from lite_c2f.fine.treatment import Treatment

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


def check_out(out: Path, inputs: list[Path]) -> None:
    """Raise RunError when the resolved `out` holds something, is no folder, or lies in a folder that is read."""
    for folder in inputs:
        if out.is_relative_to(folder.resolve()):
            got = f"the output '{out}' lies in '{folder}', which is read"
            raise RunError.because(got, "a folder of its own", "choose another output folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError.because(f"'{out}' exists", "a new or an empty folder", "choose another name or remove it")


def check_origin(residue: Adapter, base: Path) -> None:
    """Raise ModelError when the base that the adapter recorded is at hand and is another model than `base`."""
    name = residue.base_model_name
    if not name or not (Path(name) / "config.json").is_file() or Path(name).resolve() == base.resolve():
        return  # a hub name or a folder that is gone says nothing that could be checked
    try:
        check_configs(Path(name), base)
    except ModelError as error:
        raise ModelError.because(
            f"'base_model_name_or_path' of the adapter is '{name}', which is not like '{base}' ({error})",
            "the base that the adapter was trained on",
            "give that base, and the instruct model tuned from it",
        ) from None


def resolved(folder: str | Path) -> Path:
    """An absolute path without links. Raises RunError for links that lead in a circle."""
    try:
        return Path(folder).resolve()
    except (RuntimeError, OSError):  # RuntimeError before Python 3.13
        raise RunError.because(f"'{folder}' is a link that leads nowhere", "a folder", "correct the link") from None


def settle_tied(
    residue: Adapter, config: Mapping[str, Any], entries: Mapping[str, TensorEntry], instruct: Path
) -> tuple[dict[str, Delta], str | None]:
    """The deltas with tied embeddings settled, and a sentence on what was done about them.

    One weight serves as embedding and as head: a delta for one of the two alone cannot be merged. It can where the
    adapter was trained with both tied (ensure_weight_tying), or trains single tokens (PEFT keeps those tied). Raises
    ModelError otherwise.
    """
    deltas = dict(residue.deltas)
    embedding = next((name for name in deltas if name.endswith(EMBEDDING)), None)
    head = next((name for name in deltas if name.endswith(HEAD)), None)
    stored = next((name for name in entries if name.endswith(EMBEDDING)), None)
    file_has_head = any(name.endswith(HEAD) for name in entries)
    tied = config.get("tie_word_embeddings") is True or (stored is not None and not file_has_head)
    if not tied or (embedding is None and head is None):
        return deltas, None
    both = residue.ties and embedding is not None and head is not None and _same(deltas[embedding], deltas[head])
    if not both and not (embedding is not None and head is None and isinstance(deltas[embedding], TokenRows)):
        raise ModelError.because(
            f"the adapter changes '{embedding or head}', tied to another weight in '{instruct}' (tie_word_embeddings)",
            "a delta for both (ensure_weight_tying), or single tokens",
            "train without embed_tokens and lm_head, or untie the models first",
        )
    assert embedding is not None
    deltas.pop(head or "", None)
    if file_has_head:  # written twice, though tied: both copies have to change
        deltas[next(name for name in entries if name.endswith(HEAD))] = deltas[embedding]
    return deltas, f"'{embedding}' is tied to the head: its change is a change of both"


def check_fit(
    deltas: Mapping[str, Delta], config: Mapping[str, Any], instruct: Path, entries: Mapping[str, TensorEntry]
) -> None:
    """Raise ModelError, naming the weight, unless every delta has its weight in the instruct model and can be added."""
    for name in ("quantization_config", "adapter_config.json"):
        if config.get(name) or (instruct / name).exists():
            got = f"'{instruct}' has '{name}'"
            raise ModelError.because(got, "a plain full-precision model", "take the model before it was changed")
    for name, delta in deltas.items():
        if name not in entries:
            got = f"the adapter changes '{name}', which '{instruct}' does not have"
            raise ModelError.because(got, "a weight for every delta", "take the instruct model of the same base")
        entry = entries[name]
        if len(entry.shape) > 2:
            got = f"the adapter changes '{name}' of shape {entry.shape}"
            raise ModelError.because(got, "a matrix or a vector", "parameters of experts cannot be merged")
        if not _fits(delta, entry.shape):
            got = f"the delta of '{name}' is {delta.shape}, its weight in '{instruct}' {entry.shape}"
            raise ModelError.because(got, "the same shape", "take the instruct model of the same base")
        if entry.dtype not in DTYPES:
            got = f"'{name}' of '{instruct}' is {entry.dtype}"
            raise ModelError.because(got, "BF16, F16 or F32", "take the model before it was quantised")


def check_base(
    residue: Adapter,
    deltas: Mapping[str, Delta],
    entries: Mapping[str, TensorEntry],
    of_base: Mapping[str, TensorEntry],
    base: Path | None,
    treatment: Treatment,
) -> None:
    """Raise unless the base's weights are there where they are needed, and are those the adapter was trained on."""
    if base is None:
        wants = [name for name, delta in deltas.items() if delta.needs_base]
        if treatment.needs_base:
            got = "'sparsify' ties or a 'qerr_ratio' without the base model"
            raise ConfigError.because(got, "its weights", "give the folder of the base")
        if wants or residue.copies:
            got = f"the adapter holds values of '{(wants or list(residue.copies))[0]}', not a change of them"
            raise ModelError.because(got, "the base's weights to compare with", "give the folder of the base")
        return
    for name in deltas:
        if name not in of_base or of_base[name].dtype not in DTYPES or of_base[name].shape != entries[name].shape:
            found = f"{of_base[name].dtype} {of_base[name].shape}" if name in of_base else "missing"
            raise ModelError.because(
                f"the adapter changes '{name}', which is {found} in '{base}'",
                f"{entries[name].shape} in full precision, as in the instruct model",
                "give the base that the adapter was trained on",
            )
    embedding = next((entry for name, entry in of_base.items() if name.endswith(EMBEDDING)), None)
    for name, copy in residue.copies.items():
        own = of_base.get(name, embedding if name.endswith(HEAD) else None)  # a tied head is the embedding
        if own is None or own.shape != copy.shape or not _equal(copy, own):
            raise ModelError.because(
                f"the adapter comes with a '{name}' that is not the one of '{base}'",
                "the base's own, unchanged",
                "give the base that the adapter was trained on; a resized vocabulary cannot be merged",
            )


def with_dtype(config: Mapping[str, Any], dtype: str | None) -> dict[str, Any] | None:
    """config.json with a new dtype under the key that is there; None where nothing changes.

    `dtype`; before Transformers 5 `torch_dtype`.
    """
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    if dtype is None or all(config.get(key) == dtype for key in keys):
        return None
    return {**config, **dict.fromkeys(keys, dtype)}


def _fits(delta: Delta, shape: tuple[int, ...]) -> bool:
    if isinstance(delta, TokenRows):  # knows its largest token, not the vocabulary
        return len(shape) == 2 and delta.shape[0] <= shape[0] and delta.shape[1] == shape[1]
    return delta.shape == shape


def _same(left: Delta, right: Delta) -> bool:
    if isinstance(left, LowRank) and isinstance(right, LowRank):
        factors = ((left.down, right.down), (left.up, right.up))
        return left.scaling == right.scaling and all(torch.equal(a.read(), b.read()) for a, b in factors)
    if isinstance(left, Absolute) and isinstance(right, Absolute):
        return left.shape == right.shape and _equal(left.entry, right.entry)
    return False


def _equal(left: TensorEntry, right: TensorEntry) -> bool:
    """Do two tensors of one shape hold the same numbers? Their dtypes may differ."""
    rows = left.shape[0]
    step = max(1, 2**20 // max(1, left.shape[-1]))
    return all(
        torch.equal(
            read_tensor(part_of(left, first, min(step, rows - first))).float(),
            read_tensor(part_of(right, first, min(step, rows - first))).float(),
        )
        for first in range(0, rows, step)
    )


def check_disk(out: Path, needed: int) -> None:
    """Raise RunError when `out` cannot be made, or the disk under it has no room for `needed` bytes."""
    parent = next(folder for folder in out.parents if folder.exists())
    if not os.access(parent, os.W_OK):
        raise RunError.because(f"cannot write to '{parent}'", "a folder of yours", "choose another output folder")
    free = shutil.disk_usage(parent).free
    if free < needed + 2**20:
        got = f"{free / 2**30:.2f} GiB free under '{parent}'"
        raise RunError.because(got, f"{needed / 2**30:.2f} GiB", "free some space or choose another disk")
