"""What a merge is checked for before anything is written."""

import math
import os
import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import yaml

from lite_c2f.backbone.pair import check_configs
from lite_c2f.errors import ConfigError, ModelError, RunError
from lite_c2f.fine import shards
from lite_c2f.fine.delta import Adapter

LayerRatios = str | Path | Sequence[tuple[str, float]]
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")


def check_ratio(key: str, ratio: Any, allow_negative: bool) -> None:
    """Raise ConfigError, naming the key, unless the ratio is a finite number, and not negative unless allowed."""
    number = isinstance(ratio, int | float) and not isinstance(ratio, bool) and math.isfinite(ratio)
    if not number or (ratio < 0 and not allow_negative):
        expected = "a finite number" if allow_negative else "a finite number from 0 up"
        remedy = "allow negative ratios to subtract the residue" if number else "write it like 0.75"
        raise ConfigError.because(f"'{key}' is {ratio!r}", expected, remedy)


def read_layer_ratios(layer_ratios: LayerRatios | None, allow_negative: bool) -> list[tuple[str, float]]:
    """(pattern, ratio) pairs from pairs or from a YAML file: a mapping pattern -> ratio, or a list of pairs.

    Raises ConfigError naming the file or the pattern.
    """
    if layer_ratios is None:
        return []
    where, content = "layer_ratios", layer_ratios
    if isinstance(layer_ratios, str | Path):
        where = str(layer_ratios)
        try:
            content = yaml.safe_load(Path(layer_ratios).read_text(encoding="utf-8"))
        except OSError as error:
            got = f"cannot read '{where}': {error.strerror}"
            raise ConfigError.because(got, "a YAML file of ratios", "check the path") from None
        except (yaml.YAMLError, UnicodeDecodeError):
            raise ConfigError.because(f"'{where}' is not YAML", "pattern: ratio lines", "correct the file") from None
    pairs = list(content.items()) if isinstance(content, dict) else content
    if not isinstance(pairs, list | tuple) or not pairs:
        raise ConfigError.because(f"'{where}' holds no ratios", "pattern: ratio lines", "write some or leave it out")
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ConfigError.because(f"'{where}' holds {pair!r}", "a pattern and a ratio", "write '*.mlp.*: 0.5'")
        check_ratio(f"{where}: {pair[0]}", pair[1], allow_negative)
    return [(pattern, float(value)) for pattern, value in pairs]


def choose_ratios(residue: Adapter, ratio: float, patterns: list[tuple[str, float]]) -> dict[str, float]:
    """The ratio of every weight the adapter changes. Raises ConfigError for a pattern that fits none of them."""
    for pattern, _ in patterns:
        if not any(fnmatchcase(name, pattern) for name in residue.deltas):
            raise ConfigError.because(
                f"'layer_ratios' pattern '{pattern}' fits no weight of the adapter",
                f"a pattern for names like '{next(iter(residue.deltas))}'",
                "correct or remove it",
            )
    return {
        name: next((value for pattern, value in patterns if fnmatchcase(name, pattern)), float(ratio))
        for name in residue.deltas
    }


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


def check_fit(residue: Adapter, config: dict[str, Any], instruct: Path, entries: dict[str, shards.TensorEntry]) -> None:
    """Raise ModelError, naming the weight, unless every delta has its weight in the instruct model and can be added."""
    for name in ("quantization_config", "adapter_config.json"):
        if config.get(name) or (instruct / name).exists():
            got = f"'{instruct}' has '{name}'"
            raise ModelError.because(got, "a plain full-precision model", "take the model before it was changed")
    tied = config.get("tie_word_embeddings") is True or "lm_head.weight" not in entries
    for name, low_rank in residue.deltas.items():
        if tied and name.endswith(EMBEDDINGS):
            got = f"the adapter changes '{name}', which '{instruct}' ties to another weight (tie_word_embeddings)"
            raise ModelError.because(got, "a delta for one weight", "train without embed_tokens and lm_head")
        if name not in entries:
            got = f"the adapter changes '{name}', which '{instruct}' does not have"
            raise ModelError.because(got, "a weight for every delta", "take the instruct model of the same base")
        if low_rank.shape != entries[name].shape:
            got = f"the delta of '{name}' is {low_rank.shape}, its weight in '{instruct}' {entries[name].shape}"
            raise ModelError.because(got, "the same shape", "take the instruct model of the same base")
        if entries[name].dtype not in DTYPES:
            got = f"'{name}' of '{instruct}' is {entries[name].dtype}"
            raise ModelError.because(got, "BF16, F16 or F32", "take the model before it was quantised")


def check_disk(out: Path, needed: int) -> None:
    """Raise RunError when `out` cannot be made, or the disk under it has no room for `needed` bytes."""
    parent = next(folder for folder in out.parents if folder.exists())
    if not os.access(parent, os.W_OK):
        raise RunError.because(f"cannot write to '{parent}'", "a folder of yours", "choose another output folder")
    free = shutil.disk_usage(parent).free
    if free < needed + 2**20:
        got = f"{free / 2**30:.2f} GiB free under '{parent}'"
        raise RunError.because(got, f"{needed / 2**30:.2f} GiB", "free some space or choose another disk")
