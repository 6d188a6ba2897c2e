"""Hashes of the actors of a run and of what scores them: what votes and comparisons are about. Imports no torch."""

from pathlib import Path
from typing import Any

from lite_c2f.config.settings import Config
from lite_c2f.reward.files import reward_identity
from lite_c2f.runs.published import coarse_adapter
from lite_c2f.storage.files import hash_of


def actor_hashes(config: Config, run: Path) -> dict[str, Any]:
    """Hashes of the compared actors, of the reward model, and of the other sources of reward."""
    files = {
        "coarse": coarse_adapter(run, config.coarse.use) / "adapter_model.safetensors",
        "fine": run / "fine" / "merge.json",
    }
    return {name: hash_of(file) for name, file in files.items()} | reward_identity(config, run)
