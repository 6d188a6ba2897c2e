"""GGUF models: a file, or the embedded SmolLM2, as an ordinary model folder in the cache."""

from collections.abc import Callable
from pathlib import Path

from lite_c2f.gguf.embedded import smollm_folder
from lite_c2f.gguf.read import gguf_folder, is_gguf
from lite_c2f.smollm import SMOLLM

__all__ = ["is_packed", "unpacked"]


def is_packed(model: str) -> bool:
    """Does this name a GGUF file or the embedded model, and not a folder or a hub name?"""
    return model == SMOLLM or (is_gguf(model) and not Path(model).expanduser().is_dir())


def unpacked(model: str, on_message: Callable[[str], None] | None = None) -> Path:
    """The folder of such a model, made on first use. on_message(text) is called before that, for it takes a while.

    Raises ModelError; see `gguf_folder` and `smollm_folder`.
    """
    return smollm_folder(on_message) if model == SMOLLM else gguf_folder(Path(model).expanduser(), on_message)
