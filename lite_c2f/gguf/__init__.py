"""GGUF models: a file, or the embedded SmolLM2, as an ordinary model folder in the cache."""

from collections.abc import Callable
from pathlib import Path

from lite_c2f.gguf.embedded import smollm_file, smollm_folder
from lite_c2f.gguf.read import gguf_folder, is_gguf
from lite_c2f.smollm import SMOLLM

__all__ = ["is_packed", "packed_file", "unpacked"]


def is_packed(model: str) -> bool:
    """Does this name a GGUF file or the embedded model, and not a folder or a hub name?"""
    return model == SMOLLM or (is_gguf(model) and not Path(model).expanduser().is_dir())


def unpacked(model: str, on_message: Callable[[str], None] | None = None) -> Path:
    """The folder of such a model, made on first use. on_message(text) is called before that, for it takes a while.

    Raises ModelError; see `gguf_folder` and `smollm_folder`.
    """
    return smollm_folder(on_message) if model == SMOLLM else gguf_folder(Path(model).expanduser(), on_message)


def packed_file(model: str) -> Path:
    """The GGUF file of such a model. Raises ModelError without the embedded model's package."""
    return smollm_file() if model == SMOLLM else Path(model).expanduser().resolve()
