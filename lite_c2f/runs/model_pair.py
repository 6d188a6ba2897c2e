"""The base and the instruct model of a run, as the names of their folders. Imports no torch."""

from pathlib import Path
from typing import NamedTuple

from lite_c2f.config.settings import Config
from lite_c2f.gguf import is_packed

TOY = "toy"  # as `model.base` and as a source of data


class ModelPair(NamedTuple):
    """Folders or hub names of the base and the instruct model."""

    base: str
    instruct: str


def adapter_base(config: Config, models: ModelPair) -> str:
    """The base model that an adapter names: the hub name if there is one, which is valid on other machines too."""
    local = config.model.base == TOY or is_packed(config.model.base) or Path(config.model.base).is_dir()
    return models.base if local else config.model.base
