"""Checkpoints of a stage: whole or not at all, hashed, the newest good one found again. No pickle."""

import json
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lite_c2f.runs import hash_of, publish_folder, write_json

STATE, TENSORS, HASHES = "state.json", "tensors.safetensors", "hashes.json"


class Checkpoint(NamedTuple):
    """What a stage needs to go on as if it had never stopped."""

    step: int
    state: dict[str, Any]  # JSON: counters, controllers, positions
    tensors: dict[str, Tensor]  # adapters, heads, optimisers, generators
    folder: Path | None = None


class Checkpoints:
    """RUN/STAGE/checkpoints/step-NNNNNN: the last `keep` of them, and the one with the best `score`.

    Tensors are safetensors, everything else JSON; a file of hashes says what is whole.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, max(1, keep)

    def save(self, checkpoint: Checkpoint, score: float | None = None) -> Path:
        """Publish a checkpoint, then remove those that are neither new nor best."""
        target = self.folder / f"step-{checkpoint.step:06d}"
        with publish_folder(target, replace=True) as unfinished:
            save_file({name: _stored(value) for name, value in checkpoint.tensors.items()}, unfinished / TENSORS)
            write_json(unfinished / STATE, {"step": checkpoint.step, "score": score, "state": checkpoint.state})
            hashes = {name: hash_of(unfinished / name) for name in (TENSORS, STATE)}
            write_json(unfinished / HASHES, hashes)
        self._prune()
        return target

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and a sentence for each newer one that is not."""
        damaged: list[str] = []
        for folder in reversed(self.folders()):
            reason = _damage(folder)
            if reason is None:
                saved = json.loads((folder / STATE).read_text(encoding="utf-8"))
                return Checkpoint(saved["step"], saved["state"], load_file(folder / TENSORS), folder), damaged
            damaged.append(f"checkpoint '{folder}' is damaged ({reason}): taking the one before")
        return None, damaged

    def folders(self) -> list[Path]:
        """Those that are published, oldest first."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else ()
        return sorted(path for path in found if path.is_dir() and re.fullmatch(r"step-\d{6,}", path.name))

    def clear(self) -> None:
        """Remove all of them: the stage is published, or starts anew."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _prune(self) -> None:
        folders = self.folders()
        scores = {folder: score for folder in folders if (score := _score(folder)) is not None}
        best = max(scores, key=lambda folder: (scores[folder], folder.name), default=None)
        for folder in folders[: -self.keep]:
            if folder != best:
                shutil.rmtree(folder, ignore_errors=True)


def generators(own: Mapping[str, torch.Generator] | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The states of all random generators, as JSON and tensors: python, NumPy, torch, each GPU, and our own by name."""
    version, numbers, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=True)
    kind, keys, position, has_gauss, cached = numpy_state
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [str(kind), int(position), int(has_gauss), float(cached)],
    }
    tensors = {"rng.torch": torch.get_rng_state(), "rng.numpy": torch.from_numpy(keys.astype(np.int64))}
    if torch.cuda.is_available():
        tensors |= {f"rng.cuda.{index}": value for index, value in enumerate(torch.cuda.get_rng_state_all())}
    tensors |= {f"rng.own.{name}": generator.get_state() for name, generator in (own or {}).items()}
    return state, tensors


def restore_generators(
    state: Mapping[str, Any], tensors: Mapping[str, Tensor], own: Mapping[str, torch.Generator] | None = None
) -> None:
    """Put the generators back to what `generators` found."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, tensors["rng.numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["rng.torch"])
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"rng.cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"rng.cuda.{index}"], index)
    for name, generator in (own or {}).items():
        generator.set_state(tensors[f"rng.own.{name}"])


def optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors: `prefix.INDEX.exp_avg` and so on, by the parameter's place."""
    found = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            found[f"{prefix}.{index}.{name}"] = torch.as_tensor(value)
    return found


def restore_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load what `optimizer_tensors` found; settings such as the learning rate stay those of `optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(f"{prefix}."):
            index, key = name.removeprefix(f"{prefix}.").split(".", 1)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _stored(tensor: Tensor) -> Tensor:
    """On the CPU, in memory of its own: safetensors refuses tensors that share it."""
    return tensor.detach().cpu().contiguous().clone()


def _damage(folder: Path) -> str | None:
    try:
        hashes = json.loads((folder / HASHES).read_text(encoding="utf-8"))
        if set(hashes) != {TENSORS, STATE}:
            return f"{HASHES} names other files"
        for name, expected in hashes.items():
            if hash_of(folder / name) != expected:
                return f"{name} has another hash"
        load_file(folder / TENSORS)
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _score(folder: Path) -> float | None:
    try:
        return json.loads((folder / STATE).read_text(encoding="utf-8"))["score"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
