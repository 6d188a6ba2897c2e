"""Weight files of a model folder: one rule for loading, training and merging. Imports no torch."""

import json
from pathlib import Path

from lite_c2f.errors import ModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: model.safetensors, or those that the index names, which may be missing.

    Raises ModelError when there is neither (naming the pickle or the GGUF that is there instead), when the index is
    damaged, and when there are both and the index names other files: Transformers would load model.safetensors, other
    programs the files of the index.
    """
    single, index = folder / SINGLE, folder / INDEX
    if not single.is_file() and not index.is_file():
        raise no_weights(folder)
    if not index.is_file():
        return [single]
    names = sorted(set(read_index(folder).values()))
    if single.is_file() and names != [SINGLE]:
        other = next(name for name in names if name != SINGLE)
        raise ModelError.because(
            f"'{folder}' has '{SINGLE}' beside '{INDEX}', which names other files ('{other}')",
            "one of the two: programs differ in which they load",
            "remove the one that is not this model's, or download the model again into an empty folder",
        )
    return [folder / name for name in names]


def read_index(folder: Path) -> dict[str, str]:
    """Tensor name -> file name. Raises ModelError naming the index when it cannot be read or leads elsewhere."""
    file = folder / INDEX
    try:
        weight_map = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        # Only names beside the index: a path to another folder would be read from, and written to, there.
        names = weight_map.values()
        if weight_map and all(Path(name).name == name and name.endswith(".safetensors") for name in names):
            return weight_map
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
        pass
    raise ModelError.because(
        f"'{file}' cannot be read",
        "a weight_map from tensors to safetensors files beside it",
        "download the model again",
    )


def no_weights(folder: Path) -> ModelError:
    """The error for a folder without safetensors, naming what it holds instead."""
    if gguf := first_gguf(folder):
        return ModelError.for_gguf(f"'{folder}' holds '{gguf}' and no safetensors: it")
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth"))
    return ModelError.because(
        f"no {SINGLE} or {INDEX} in '{folder}'" + (f", only the pickle '{pickles[0]}'" if pickles else ""),
        "weights as safetensors" + (": a pickle can run code" if pickles else ""),
        "load the model with transformers and save it again" if pickles else "check the path",
    )


def first_gguf(folder: Path) -> str | None:
    """The name of a GGUF file in a folder."""
    return next((path.name for path in sorted(folder.glob("*")) if path.suffix.lower() == ".gguf"), None)
