"""Settings of a run against those of the configuration that it was started from."""

import functools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.config.loading import load_config
from lite_c2f.config.settings_diff import differences
from lite_c2f.errors import C2FError
from lite_c2f.ui.runs.stages import STAGE_ORDER, read_json_object
from lite_c2f.ui.runs.starts import Started

ELSEWHERE = "run.dir"  # where a run lies is no setting of its training


class Changed(NamedTuple):
    """What differs from the configuration of a name: (key, before, now) of each setting."""

    parent: str
    rows: list[tuple[str, Any, Any]]


def changed_settings(
    run: Path, started: Started | None, listed: list[str], configs: Mapping[str, Path]
) -> Changed | None:
    """The settings of a run that its parent does not have; None where no parent is known, or cannot be read.

    The parent is the run or configuration in the command of its last start from a page (which --resume replaces), else
    the configuration whose name the run has, with or without `-NUMBER`. listed: names of the runs beside it; configs:
    by name. Only files of these two lists are opened.
    """
    parent = _parent(run, started, listed, configs)
    before, now = (settings_of(file) for file in (parent[1], run / "config.yaml")) if parent else (None, None)
    if parent is None or before is None or now is None:
        return None
    return Changed(parent[0], [row for row in differences(before, now) if row[0] != ELSEWHERE])


def _parent(
    run: Path, started: Started | None, listed: list[str], configs: Mapping[str, Path]
) -> tuple[str, Path] | None:
    files = {f"the run {name}": run.parent / name / "config.yaml" for name in listed if name != run.name}
    files |= {f"the configuration {name}": file for name, file in configs.items() if file != run / "config.yaml"}
    wanted = _config_argument(started.command) if started is not None else None
    for name, file in files.items():
        if wanted is not None and file.absolute() == wanted.absolute():
            return name, file
    stem, _, number = run.name.rpartition("-")
    same = next((name for name in (run.name, stem if number.isdigit() else "") if name in configs), None)
    return (f"the configuration {same}", configs[same]) if same is not None else None


def _config_argument(command: str) -> Path | None:
    """The configuration in a command such as `lite-c2f train FILE key=value --run-dir RUN`."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    return Path(words[2]) if words[1:2] == ["train"] and len(words) > 2 else None


def settings_of(file: Path) -> dict[str, Any] | None:
    """The settings in a configuration file, defaults included; None where it cannot be read."""
    try:
        status = file.stat()
    except OSError:
        return None
    return _settings(file, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=64)
def _settings(file: Path, changed: int, size: int) -> dict[str, Any] | None:
    try:
        return load_config(file).model_dump(mode="json")
    except (C2FError, OSError):
        return None


def earlier_seconds(run: Path, listed: list[str]) -> dict[str, float]:
    """Seconds of each stage in the newest finished run beside this one that has its settings, whatever their seeds.

    {} where there is none. Stages are named as in STAGE_ORDER. Whether the machine was as busy then is not known.
    """
    now = settings_of(run / "config.yaml")
    for name in listed if now is not None else []:
        other = run.parent / name
        before = settings_of(other / "config.yaml") if name != run.name else None
        if before is None or any(key not in (ELSEWHERE, "run.seed") for key, _, _ in differences(before, now)):
            continue
        recorded = read_json_object(other / "run.json").get("seconds")
        if not isinstance(recorded, dict) or not (other / "summary.json").is_file():
            continue
        seconds = {name: recorded.get("evaluation" if name == "comparison" else name) for name in STAGE_ORDER}
        return {name: float(value) for name, value in seconds.items() if isinstance(value, int | float)}
    return {}
