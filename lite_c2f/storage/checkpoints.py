"""Checkpoints of a stage: written atomically, hashed, without pickle; the newest intact one is loaded."""

import json
import logging
import math
import random
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lite_c2f.config.loading import with_defaults
from lite_c2f.config.settings_diff import first_difference, without_locations
from lite_c2f.errors import RunError
from lite_c2f.runtime import accelerators
from lite_c2f.storage.files import hash_of, publish_folder, write_json

SKIPS = 3  # consecutive steps skipped for non-finite numbers before a rollback to a checkpoint
ROLLBACKS = 3  # at most per stage
LR_FACTOR = 0.5  # of the learning rates after each rollback
log = logging.getLogger(__name__)
FORMAT = 2  # version of the checkpoints' content; others are refused
STATE, TENSORS, HASHES = "state.json", "tensors.safetensors", "hashes.json"
# Mean reward of the policy in the checkpoint, by its step; higher is better; non-finite scores are ignored
Scores = Mapping[int, float]


class Checkpoint(NamedTuple):
    """State of a stage, with which it resumes exactly."""

    step: int
    state: dict[str, Any]  # JSON: counters, controllers, positions
    tensors: dict[str, Tensor]  # adapters, heads, optimisers, generators
    folder: Path | None = None


class CheckpointStore:
    """RUN/STAGE/checkpoints/step-NNNNNN: the last `keep` of them, and the one with the best score.

    A folder holds the files that its stage wrote, and hashes.json with the hash of each. Scores are not stored: they
    become known later, and the stage passes them each time it saves.
    """

    def __init__(self, folder: Path, keep: int = 2, needed: Sequence[str] = ()) -> None:
        """keep: newest checkpoints kept besides the best one; needed: files that every checkpoint of this stage has."""
        self.folder, self.keep, self._needed = folder, max(1, keep), set(needed)

    def publish(self, step: int, fill: Callable[[Path], None], scores: Scores | None = None) -> Path:
        """Publish a folder that `fill` writes, with its hashes; remove checkpoints that are neither recent nor best."""
        target = self.folder / f"step-{step:06d}"
        with publish_folder(target, replace=True) as unfinished:
            fill(unfinished)
            files = sorted(path for path in unfinished.rglob("*") if path.is_file())
            hashes = {path.relative_to(unfinished).as_posix(): hash_of(path) for path in files}
            write_json(unfinished / HASHES, hashes)
        log.info("saved %s", target)
        self._prune(scores or {})
        return target

    def newest_folder(self) -> tuple[Path | None, list[str]]:
        """(the newest intact folder, a sentence for each newer damaged one)."""
        damaged: list[str] = []
        for folder in reversed(self.folders()):
            reason = self._damage(folder)
            if reason is None:
                return folder, damaged
            damaged.append(f"checkpoint '{folder}' is damaged ({reason}): looking for an older one")
        if damaged:
            damaged.append(f"no checkpoint in '{self.folder}' is whole: beginning anew")
        return None, damaged

    def discard(self, folder: Path) -> None:
        """Rename a checkpoint so that it is not used again."""
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)

    def set_aside(self) -> None:
        """Rename damaged checkpoints, which would otherwise count among those to keep."""
        for folder in self.folders():
            if self._damage(folder) is not None:
                self.discard(folder)

    def save(self, checkpoint: Checkpoint, scores: Scores | None = None) -> Path:
        """Publish a checkpoint of JSON and tensors."""

        def fill(folder: Path) -> None:
            save_file({name: _storable(value) for name, value in checkpoint.tensors.items()}, folder / TENSORS)
            write_json(folder / STATE, {"step": checkpoint.step, "state": checkpoint.state})

        return self.publish(checkpoint.step, fill, scores)

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """(the newest intact checkpoint made by `save`, a sentence for each newer damaged one)."""
        folder, damaged = self.newest_folder()
        return None if folder is None else _load(folder), damaged

    def best(self, scores: Scores) -> Checkpoint | None:
        """The checkpoint made by `save` with the highest score; None without scores or if it is damaged."""
        folder = self.best_folder(scores)
        return _load(folder) if folder is not None and self._damage(folder) is None else None

    def folders(self) -> list[Path]:
        """Folders of all checkpoints, oldest first."""
        paths = self.folder.glob("step-*") if self.folder.is_dir() else ()
        named = (path for path in paths if path.is_dir() and re.fullmatch(r"step-\d{6,}", path.name))
        return sorted(named, key=step_of)

    def clear(self) -> None:
        """Remove all checkpoints."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def best_folder(self, scores: Scores) -> Path | None:
        """The folder with the highest score, the newest of equal ones; None without scores."""
        known = {folder: scores.get(step_of(folder), math.nan) for folder in self.folders()}
        finite = [folder for folder, score in known.items() if math.isfinite(score)]
        return max(finite, key=lambda folder: (known[folder], step_of(folder)), default=None)

    def _damage(self, folder: Path) -> str | None:
        try:
            expected = json.loads((folder / HASHES).read_text(encoding="utf-8"))
            present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {HASHES}
            if set(expected) != present:
                differing = ", ".join(sorted(set(expected) ^ present)[:3])
                return f"{HASHES} and the folder do not hold the same files: {differing}"
            if missing := self._needed - present:
                return f"no {', '.join(sorted(missing))}"
            for name, known in expected.items():
                if hash_of(folder / name) != known:
                    return f"{name} has another hash"
        except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    def _prune(self, scores: Scores) -> None:
        folders, best = self.folders(), self.best_folder(scores)
        for folder in folders[: -self.keep]:
            if folder != best:
                shutil.rmtree(folder, ignore_errors=True)


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was made.

    >>> step_of(Path("step-000010"))
    10
    """
    return int(folder.name.removeprefix("step-"))


class SaveSchedule:
    """Schedule of checkpoints: every so many steps, and at the first step after so many minutes.

    Minutes are of the monotonic clock, which does not depend on the system time.
    """

    def __init__(self, every: int, minutes: float) -> None:
        self._every, self._seconds = every, 60 * minutes
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after this step."""
        return step % self._every == 0 or time.monotonic() - self._last >= self._seconds

    def saved(self) -> None:
        """Restart the minutes."""
        self._last = time.monotonic()


def check_identity(
    place: Path, form: Any, before: Any, now: Any, restart: str, *, force: bool = False, forcible: Sequence[str] = ()
) -> None:
    """Raise RunError naming the first setting or input in which a checkpoint's identity differs from this run's.

    place: the checkpoint's path, for the message; form: its `FORMAT`; before, now: the settings of the checkpoint and
    of this run; restart: how to start over, for the message; forcible: keys whose difference `force` accepts.
    """
    if form != FORMAT or not isinstance(before, dict):
        raise RunError.because(
            f"'{place}' has format {form!r}", f"format {FORMAT}", f"use the version that made it, or {restart}"
        )
    before = with_defaults(without_locations(before), now)
    accepted = {**now, **{key: before.get(key) for key in forcible}}
    difference = first_difference(before, accepted if force else now)
    if difference is not None:
        key, recorded, current = difference
        remedy = "set it back" + (", accept it with --force" if first_difference(before, accepted) is None else "")
        got = f"'{place}' was made with {key}={recorded!r}, now {current!r}"
        raise RunError.because(got, "the same value", f"{remedy}, or {restart}")


def generator_states(
    extra_generators: Mapping[str, torch.Generator] | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The states of all random generators, as JSON and tensors.

    They are those of python, NumPy, torch, each GPU, and `extra_generators` by name.
    """
    version, numbers, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=True)
    kind, keys, position, has_gauss, cached = numpy_state
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [str(kind), int(position), int(has_gauss), float(cached)],
    }
    tensors = {"rng.torch": torch.get_rng_state(), "rng.numpy": torch.from_numpy(keys.astype(np.int64))}
    tensors |= {f"rng.{name}": value for name, value in accelerators.generator_states().items()}
    tensors |= {f"rng.own.{name}": generator.get_state() for name, generator in (extra_generators or {}).items()}
    return state, tensors


def restore_generators(
    state: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    extra_generators: Mapping[str, torch.Generator] | None = None,
) -> None:
    """Restore the states that `generator_states` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, tensors["rng.numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["rng.torch"])
    accelerators.restore_generators({name.removeprefix("rng."): value for name, value in tensors.items()})
    for name, generator in (extra_generators or {}).items():
        generator.set_state(tensors[f"rng.own.{name}"])


def optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors: `prefix.INDEX.exp_avg` and so on, by the parameter's index."""
    tensors = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"{prefix}.{index}.{name}"] = torch.as_tensor(value)
    return tensors


def restore_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load what `optimizer_tensors` returned; settings such as the learning rate stay those of `optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(f"{prefix}."):
            index, key = name.removeprefix(f"{prefix}.").split(".", 1)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _storable(tensor: Tensor) -> Tensor:
    """The tensor on the CPU in its own memory, because safetensors refuses shared memory; copied only if needed."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _load(folder: Path) -> Checkpoint:
    saved = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return Checkpoint(saved["step"], saved["state"], load_file(folder / TENSORS), folder)
