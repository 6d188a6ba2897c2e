"""Cache of the project on this machine: models that are made or unpacked once."""

import os
from pathlib import Path


def cache_root() -> Path:
    """`LITE_C2F_CACHE`, or `lite_c2f` in the user's cache folder."""
    if named := os.environ.get("LITE_C2F_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lite_c2f"
