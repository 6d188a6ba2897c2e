"""Files of a run's sources of reward: adapters, means and deviations, statistics, and the hashes of all that scores.

Imports no torch.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.config.rewards import Watched
from lite_c2f.config.settings import Config
from lite_c2f.errors import RunError
from lite_c2f.reward.calls import source_hash
from lite_c2f.storage.files import hash_of, read_json, write_json

METRICS = "metrics.json"


class Normalizer(NamedTuple):
    """The reward model's own mean and standard deviation on held-out pairs, by which scores are standardised."""

    mean: float
    std: float

    def __call__(self, score: float) -> float:
        return (score - self.mean) / self.std


def adapter_folder(source: Watched, run: Path) -> Path:
    """The folder of a reward model's adapter."""
    return run / "reward" / "adapter" if source.model is not None else Path(str(source.adapter))


def trained_normalizer(run: Path) -> Normalizer:
    """Mean and standard deviation of the run's own reward model. Raises RunError naming the file without them."""
    return _normalizer(run / "reward" / "metrics.json", "train that stage again")


def saved_mix(run: Path) -> dict[str, Any]:
    """The statistics and multipliers that the coarse stage ended with; {} where its reward was the usual one."""
    return read_json(run / "coarse" / "metrics.json").get("mix") or {}


def reward_identity(config: Config, run: Path) -> dict[str, Any]:
    """Hashes of all that scores in a run, on which a comparison depends: reward models, functions, and their mix."""
    coarse = config.coarse
    identity: dict[str, Any] = {}
    if coarse.needs_reward_model:
        identity["reward"] = hash_of(run / "reward" / "adapter" / "adapter_model.safetensors")
    if not coarse.usual_rewards:
        identity |= {"sources": content_hashes(coarse.judges), "mix": saved_mix(run)}
    return identity


def publish_skipped(run: Path) -> None:
    """Publish a reward stage that trains nothing: no source of the run is the trained reward model."""
    write_json(run / "reward" / "metrics.json", {"skipped": "no source of coarse.rewards or coarse.watch is trained"})


def is_skipped(run: Path) -> bool:
    """Whether the reward stage was published without a reward model."""
    file = run / "reward" / "metrics.json"
    return file.is_file() and "skipped" in read_json(file)


def own_normalizer(source: Watched) -> Normalizer | None:
    """Mean and standard deviation beside another reward adapter, or in it; None where there are none.

    Raises RunError naming a file without usable ones.
    """
    folder = Path(str(source.adapter))
    files = (file for file in (folder.parent / METRICS, folder / METRICS) if file.is_file())
    file = next((file for file in files if "mean" in read_json(file)), None)
    return _normalizer(file, "correct it, or set `scale: none` for raw scores") if file is not None else None


def _normalizer(file: Path, remedy: str) -> Normalizer:
    saved = read_json(file)
    try:
        mean, std = float(saved["mean"]), float(saved["std"])
        if not (math.isfinite(mean) and 0 < std < math.inf):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise RunError.because(f"'{file}' has no usable mean and std", "a reward model's", remedy) from None
    return Normalizer(mean, std)


def content_hashes(sources: Sequence[Watched]) -> dict[str, str]:
    """{name: hash} of what scores: a function's whole file, another adapter's weights, with its mean and deviation."""
    hashes = {source.name: source_hash(source.function) for source in sources if source.function is not None}
    for source in sources:
        if source.adapter is not None:
            own = own_normalizer(source) if getattr(source, "scale", "auto") == "auto" else None
            figures = f", mean {own.mean!r}, std {own.std!r}" if own is not None else ""
            hashes[source.name] = hash_of(Path(source.adapter) / "adapter_model.safetensors")[:16] + figures
    return hashes
