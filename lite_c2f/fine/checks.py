"""Checks of a merge: its folders, and that adapter, base and instruct model belong together."""

import contextlib
import math
import os
import re
import reprlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lite_c2f.backbone.pair import check_configs, read_config
from lite_c2f.backbone.weights import weight_files
from lite_c2f.errors import ConfigError, ModelError, RunError
from lite_c2f.fine.adapter import EXPERTS, Adapter
from lite_c2f.fine.delta import DTYPES, Delta, TokenRows
from lite_c2f.fine.report import hub_name
from lite_c2f.fine.shards import TensorEntry
from lite_c2f.fine.sparsify import Treatment
from lite_c2f.fine.tensor_names import is_embedding, is_expert, is_reward_head
from lite_c2f.gguf import is_packed, unpacked

SAME_BASE_REMEDY = "take the instruct model of the same base"
RESIZED_REMEDY = (
    "the adapter's vocabulary has another size (tokens were added in training, or it is of another base): train "
    "without the embedding and the head"
)


def check_out(out: Path, inputs: list[Path], hidden: bool = False) -> None:
    """Raise RunError when the resolved `out` is not empty, is no folder, or lies in an input folder.

    hidden: `out` is the staging folder, which may hold files but no input.
    """
    for folder in inputs:
        if out.is_relative_to(folder) or (hidden and folder.is_relative_to(out)):
            got = f"the output '{out}' lies in '{folder}', which is read"
            raise RunError.because(got, "a folder of its own", "choose another output folder")
    if not hidden and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError.because(f"'{out}' exists", "a new or an empty folder", "choose another name or remove it")


def check_origin(residue: Adapter, base: Path, instruct: Path) -> str | None:
    """A sentence if the adapter's recorded base may differ from `base`; None if it is the same.

    Raises ModelError if the recorded base exists here and is another kind of model, or is the instruct model.
    """
    name = residue.base_model_name
    if not name:
        return None
    with contextlib.suppress(OSError):  # a text that is no valid path
        exists = (Path(name) / "config.json").is_file()
        if exists and Path(name).resolve() == base:
            return None
        if exists and Path(name).resolve() == instruct:
            got = f"the adapter was trained on '{name}', which is given as the instruct model"
            raise ModelError.because(got, "it as the base", "swap the two (--base and --instruct)")
        try:
            if exists:
                check_configs(Path(name), base, leave_out=("vocab_size", "architectures"))
        except ModelError as error:
            raise ModelError.because(
                f"'base_model_name_or_path' of the adapter is '{name}', which is not like '{base}' ({error})",
                "the base that the adapter was trained on",
                "give that base, and the instruct model tuned from it",
            ) from None
        with contextlib.suppress(ModelError):  # it may have no weights
            if exists and _file_ends(Path(name)) == _file_ends(base):
                return None
    recorded, chosen = hub_name(name) or name, hub_name(str(base)) or str(base)
    if _model_name(recorded) == _model_name(chosen):
        return None
    return f"the adapter was trained on '{recorded}', and the base given is '{chosen}': are they the same model?"


def _file_ends(folder: Path) -> list[tuple[str, int, bytes]]:
    """(name, size, last MiB) of every weight file, which are equal for copies of a model and not for tuned ones."""
    ends = []
    for file in weight_files(folder):
        with file.open("rb") as source:
            size = source.seek(0, os.SEEK_END)
            source.seek(max(0, size - 2**20))
            ends.append((file.name, size, source.read()))
    return ends


def _model_name(name: str) -> str:
    """A model's name without owner or folder, and without the suffix of a 4-bit copy."""
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower()
    return re.sub(r"(-unsloth)?-bnb-4bit$", "", last)


def resolved_path(folder: str | Path) -> Path:
    """The absolute path without links. Raises RunError for circular links and invalid names."""
    try:
        path = Path(folder).resolve()
        path.exists()
    except (RuntimeError, OSError) as error:  # RuntimeError, before Python 3.13, for a circle
        why = getattr(error, "strerror", None) or "it leads nowhere"
        got = f"{reprlib.repr(str(folder))} cannot be used ({why})"
        raise RunError.because(got, "a folder", "correct the path or the link") from None
    return path


def model_folder(model: str | Path, on_message: Callable[[str], None] | None = None) -> Path:
    """The absolute folder of a model; a GGUF model is unpacked on first use, see `lite_c2f.gguf`."""
    return unpacked(str(model), on_message) if is_packed(str(model)) else resolved_path(model)


def check_report(report: Path, out: Path, written: Iterable[str], inputs: Iterable[Path]) -> None:
    """Raise RunError when the report would replace a file of the model, or lie in an input folder."""
    taken = report.is_relative_to(out) and str(report.relative_to(out)) in {".", *written}
    if taken or any(report.is_relative_to(folder) for folder in inputs):
        raise RunError.because(
            f"the report '{report}' is in the way of a model's file", "a place of its own", "move it"
        )


def check_fit(
    residue: Adapter,
    deltas: Mapping[str, Delta],
    config: Mapping[str, Any],
    instruct: Path,
    entries: Mapping[str, TensorEntry],
    of_base: Mapping[str, TensorEntry],
) -> None:
    """Raise ModelError, naming the weight, unless every delta has its weight in the instruct model and can be added."""
    for name in ("quantization_config", "adapter_config.json"):
        if config.get(name) or (instruct / name).exists():
            got = f"'{instruct}' has '{name}'"
            raise ModelError.because(got, "a plain full-precision model", "take the model before it was changed")
    for name, delta in deltas.items():
        if name not in entries:
            raise _missing_weight_error(name, instruct, entries, of_base, residue.base_model_name)
        entry = entries[name]
        if len(entry.shape) > 2:
            got = f"the adapter changes '{name}' of shape {entry.shape}"
            raise ModelError.because(got, "a matrix or a vector", EXPERTS)
        if not _shape_fits(delta, entry.shape):
            got = f"the delta of '{name}' is {delta.shape}, its weight in '{instruct}' {entry.shape}"
            rows = is_embedding(name) and delta.shape[1:] == entry.shape[1:]
            raise ModelError.because(got, "the same shape", RESIZED_REMEDY if rows else SAME_BASE_REMEDY)
        if entry.dtype not in DTYPES:
            got = f"'{name}' of '{instruct}' is {entry.dtype}"
            raise ModelError.because(got, "BF16, F16 or F32", "take the model before it was quantised")


def _missing_weight_error(
    name: str, instruct: Path, entries: Mapping[str, TensorEntry], of_base: Mapping[str, TensorEntry], trained_on: Any
) -> ModelError:
    """Why a weight that the adapter changes is not in the instruct model."""
    got = f"the adapter changes '{name}', which '{instruct}' does not have"
    remedy = SAME_BASE_REMEDY
    if is_reward_head(name):
        remedy = "this is a classifier's or a value head: merge the adapter of the policy, not that of a reward model"
    elif is_expert(name):
        remedy = EXPERTS
    elif name.partition(".")[2] in entries:
        got += f" under this name: it holds '{name.partition('.')[2]}', as a model without its head is saved"
        remedy = "load it with AutoModelForCausalLM and save it again with save_pretrained"
    elif near := next((other for other in entries if other.partition(".")[2] == name), None):
        got += f" under this name: it holds '{near}'"
        remedy = "the adapter is of a model without its head (AutoModel): train it on AutoModelForCausalLM"
    elif of_base and name not in of_base:
        got = f"the adapter changes '{name}', which neither the base nor '{instruct}' has"
        remedy = f"it was trained on another kind of model ({trained_on!r}): give that base, and its instruct model"
    return ModelError.because(got, "a weight for every delta", remedy)


def check_base(
    residue: Adapter,
    deltas: Mapping[str, Delta],
    entries: Mapping[str, TensorEntry],
    of_base: Mapping[str, TensorEntry],
    base: Path | None,
    treatment: Treatment,
) -> None:
    """Raise ConfigError or ModelError unless the base has the needed weights, in the adapter's shapes.

    Whether the values are the same is only known if PEFT saved some of them with the adapter (`check_copies`).
    """
    if base is None:
        absolute = [name for name, delta in deltas.items() if delta.needs_base]
        if treatment.needs_base:
            got = f"'sparsify' {treatment.sparsify} without the base model"
            raise ConfigError.because(got, "its weights", "give the folder of the base")
        if absolute or residue.copies:
            got = f"the adapter holds values of '{(absolute or list(residue.copies))[0]}', not a change of them"
            raise ModelError.because(got, "the base's weights to compare with", "give the folder of the base")
        return
    if read_config(base).get("quantization_config"):
        got = f"'{base}' has 'quantization_config'"
        raise ModelError.because(got, "the base in full precision", "give the model that it was quantised from")
    for name in deltas:
        if name not in of_base or of_base[name].dtype not in DTYPES or of_base[name].shape != entries[name].shape:
            state = f"{of_base[name].dtype} {of_base[name].shape}" if name in of_base else "missing"
            raise ModelError.because(
                f"the adapter changes '{name}', which is {state} in '{base}'",
                f"{entries[name].shape} in full precision, as in the instruct model",
                "give the base that the adapter was trained on",
            )


def _shape_fits(delta: Delta, shape: tuple[int, ...]) -> bool:
    if isinstance(delta, TokenRows):  # its shape depends on its largest token, not on the vocabulary
        return len(shape) == 2 and delta.shape[0] <= shape[0] and delta.shape[1] == shape[1]
    return delta.shape == shape


def check_disk(out: Path, needed: int) -> None:
    """Raise RunError when `out` cannot be made, or its disk has less than `needed` bytes free."""
    parent = next(folder for folder in out.parents if folder.exists())
    if not os.access(parent, os.W_OK):
        raise RunError.because(f"cannot write to '{parent}'", "a folder of yours", "choose another output folder")
    free = shutil.disk_usage(parent).free
    if free < needed + 2**20:
        got = f"{free // 2**20:,} MiB free under '{parent}'"
        raise RunError.because(got, f"{math.ceil(needed / 2**20) + 1:,} MiB", "make room or choose another disk")
