"""Names of models in the folder given at the start, as panes: `folder@NAME`. A name is only looked up in its list."""

from pathlib import Path

from lite_c2f.chat.other_actors import is_run_name
from lite_c2f.errors import ConfigError

FOLDER = "folder"  # the actor of such a pane
ABOUT_FOLDER = "From the folder of models: its own chat template and tokens, this run's reward"


def folder_model_in(name: str) -> str:
    """The subfolder that a name stands for; "" for any other name.

    >>> folder_model_in("folder@SmolLM2-1.7B"), folder_model_in("folder@../x")
    ('SmolLM2-1.7B', '')
    """
    prefix, _, folder = name.partition("@")
    return folder if prefix == FOLDER and folder and "/" not in folder and is_run_name(folder) else ""


def name_of_folder(folder: str) -> str:
    """The inverse of `folder_model_in`, which says whether it is a name."""
    return f"{FOLDER}@{folder}"


def checked_folder(folder: str | Path | None) -> Path | None:
    """The folder of models. Raises ConfigError for what is none."""
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError.because(f"--models '{folder}'", "a folder whose subfolders are models", "correct the path")
    return None if folder is None else Path(folder).resolve()
