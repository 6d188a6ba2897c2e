"""Starts of runs from a page: RUNS/.started/NAME.json holds the command, NAME.log what the process printed.

Beside the runs and not in them: `train` refuses a folder that holds anything but a run.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import psutil

FOLDER = ".started"
LOG_TAIL = 8192  # bytes of the log that are read
PROGRAM = "lite_c2f"


class Started(NamedTuple):
    """A process that was started for a run."""

    process: int
    created: float  # when the system made it: another process of that number has another time
    began: float  # seconds since the epoch
    command: str
    alive: bool
    log: tuple[str, ...]  # its last lines
    stopped: bool = False  # by a page


def file_of(run: Path, kind: str) -> Path:
    """Where `json` or `log` of a run's start are."""
    return run.parent / FOLDER / f"{run.name}.{kind}"


def read_start(run: Path) -> Started | None:
    """The last start of a run from a page; None where there was none, or its file is damaged."""
    try:
        saved = json.loads(file_of(run, "json").read_text(encoding="utf-8"))
        process, created = int(saved["process"]), float(saved["created"])
        alive = is_alive(process, created)
        began, command, stopped = float(saved["began"]), str(saved["command"]), saved.get("stopped") is True
        return Started(process, created, began, command, alive, last_lines(run), stopped)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def last_lines(run: Path) -> tuple[str, ...]:
    """The last lines that the process printed, without empty ones and control characters."""
    try:
        with file_of(run, "log").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - LOG_TAIL))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ()
    lines = ("".join(character for character in line if character.isprintable()).rstrip() for line in text.splitlines())
    return tuple(line for line in lines if line)


def is_alive(process: int, created: float) -> bool:
    """Is it still the same process, and does it run?"""
    try:
        running = psutil.Process(process)
        return abs(running.create_time() - created) < 1 and running.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def is_training(arguments: list[str]) -> bool:
    """Is this the command line of `lite-c2f train` or `demo`, however it was called?"""
    for index, (previous, word) in enumerate(pairwise(["", *arguments])):
        is_module = word == PROGRAM and previous == "-m"
        if is_module or Path(word).name == "lite-c2f" or Path(word).parts[-2:] == (PROGRAM, "__main__.py"):
            return bool({"train", "demo"} & set(arguments[index + 1 :]))
    return False
