"""Residues in files: an adapter that a run has published, or the policy's adapter in a checkpoint of its training."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from lite_c2f.backbone.multi_model import Residue, Residues
from lite_c2f.errors import ModelError
from lite_c2f.storage.files import read_json

PEFT_PREFIX = "base_model.model."
UNLIKE_PLAIN = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication")  # keys of PEFT's
A_ENDING, B_ENDING = ".lora_A.weight", ".lora_B.weight"


class ResidueFile(NamedTuple):
    """Where a residue is, and how it is scaled."""

    file: Path  # of safetensors
    prefix: str = ""  # of the names of its tensors; the file may have others
    alpha: float = 1.0
    rslora: bool = False

    @property
    def place(self) -> str:
        """The end of its path, for messages: visitors read them too."""
        return "/".join(self.file.parts[-4:])

    def scaling(self, rank: int) -> float:
        """The factor of B @ A."""
        return self.alpha / (math.sqrt(rank) if self.rslora else rank)


def published_residue(folder: Path) -> ResidueFile:
    """That of an adapter's folder. Raises ModelError for more than B @ A of one rank, RunError where it is missing."""
    config = read_json(folder / "adapter_config.json")
    unlike = [key for key in UNLIKE_PLAIN if not isinstance(config, dict) or config.get(key)]
    if unlike or not isinstance(config.get("lora_alpha"), int | float):
        got = f"adapter '{folder.parent.name}/{folder.name}': {unlike[0] if unlike else 'no lora_alpha'}"
        raise ModelError.because(got, "a plain LoRA adapter of lite-c2f", "train that stage again")
    return ResidueFile(
        folder / "adapter_model.safetensors", alpha=config["lora_alpha"], rslora=bool(config.get("use_rslora"))
    )


def count_weights(source: ResidueFile) -> int:
    """Weights of a residue, from the file's header alone. Raises ModelError naming a file that is gone or damaged."""
    with _opened(source) as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in _keys(file, source))


def read_residue(source: ResidueFile, decoder: str) -> Residues:
    """A residue in float32, scaled as PEFT scales it. decoder: of `decoder_prefix`.

    Raises ModelError naming a file that is gone or damaged, a tensor that is of no LoRA layer, or one that has numbers
    that are not finite: in a batch they would reach the rows of other residues.
    """
    with _opened(source) as file:
        tensors = {key.removeprefix(source.prefix): file.get_tensor(key) for key in _keys(file, source)}
    residue = {}
    for key in tensors:
        name = key.removeprefix(decoder).removesuffix(A_ENDING).removesuffix(B_ENDING)
        parts = [tensors.get(f"{decoder}{name}{ending}") for ending in (A_ENDING, B_ENDING)]
        if any(part is None or part.ndim != 2 for part in parts):
            raise _unfit(source, f"{key} is no matrix of a LoRA layer of the decoder")
        if not all(part.isfinite().all() for part in parts if part is not None):
            raise _unfit(source, f"{key} is not finite")
        residue[name] = _scaled(parts, source)
    return residue


def decoder_prefix(model: Any) -> str:
    """What stands before the decoder's layers in the names of a PEFT model's adapter tensors."""
    base = model.get_base_model()
    decoder = base.get_decoder()
    name = next(name for name, module in base.named_modules() if module is decoder)
    return PEFT_PREFIX + (f"{name}." if name else "")


def _scaled(parts: list[Any], source: ResidueFile) -> Residue:
    a, b = (part.float() for part in parts)
    return Residue(a, b * source.scaling(len(a)))


@contextlib.contextmanager
def _opened(source: ResidueFile) -> Iterator[Any]:
    """The open file, whose errors name it."""
    try:
        with safe_open(source.file, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise ModelError.because(f"'{source.place}' is gone", "the file of an adapter", "choose another") from None
    except (SafetensorError, OSError) as error:
        raise _unfit(source, str(error)) from None


def _keys(file: Any, source: ResidueFile) -> list[str]:
    """The residue's tensors, by name."""
    keys = [key for key in file.keys() if key.startswith(source.prefix + PEFT_PREFIX)]  # noqa: SIM118  no mapping
    if not keys:
        raise _unfit(source, f"it has no tensor {source.prefix}{PEFT_PREFIX}...")
    return keys


def _unfit(source: ResidueFile, reason: str) -> ModelError:
    return ModelError.because(f"'{source.place}': {reason}", "a residue that lite-c2f wrote", "choose another")
