"""Training processes that a page starts and stops; they outlive the server."""

import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from lite_c2f.config.loading import load_config
from lite_c2f.errors import RunError
from lite_c2f.storage import lock
from lite_c2f.storage.files import write_json
from lite_c2f.ui.runs import follow, names
from lite_c2f.ui.runs.stages import read_json_object
from lite_c2f.ui.runs.starts import PROGRAM, file_of, is_training, read_start

SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # Windows opens a device under these names
_starting = threading.Lock()  # one start or stop at a time
_signalled: dict[int, float] = {}  # processes that were sent SIGTERM, with the times they began


def new_run(runs: Path, name: str) -> Path:
    """The folder of a run that is to be made. Raises RunError for a name that is no slug, or taken."""
    if not isinstance(name, str) or not SLUG.fullmatch(name) or RESERVED.fullmatch(name):
        raise RunError.because(
            f"run name {str(name)[:80]!r}", "a to z, 0 to 9, '.', '_', '-', at most 64", "choose another name"
        )
    if (runs / name / "config.yaml").exists():
        raise RunError.because(f"there is a run '{name}'", "a new name", "choose another, or resume that one")
    return runs / name


def known_run(runs: Path, name: str) -> Path:
    """The folder of a run that is in the list. Raises RunError for any other name."""
    if not isinstance(name, str) or name not in names(runs):
        raise RunError.because(f"no run {str(name)[:80]!r} here", "one of the list", "choose one")
    return runs / name


def config_of(configs: Mapping[str, Path], name: str) -> Path:
    """The file of a configuration that is in the list. Raises RunError for any other name."""
    if not isinstance(name, str) or name not in configs:
        raise RunError.because(f"no configuration {str(name)[:80]!r}", "one of the list", "choose one")
    return configs[name]


def command(
    config: Path, run: Path, seed: int | None = None, updates: int | None = None, resume: bool = False
) -> list[str]:
    """The command that trains, as it is typed. seed, updates: None leaves the configuration's.

    >>> " ".join(command(Path("configs/toy.yaml"), Path("runs/toy"), seed=1))
    'lite-c2f train configs/toy.yaml run.seed=1 --run-dir runs/toy'
    """
    arguments = _overrides(seed, updates)
    return ["lite-c2f", "train", str(config), *arguments, "--run-dir", str(run), *(["--resume"] if resume else [])]


def _overrides(seed: int | None, updates: int | None) -> list[str]:
    changes = {"run.seed": seed, "coarse.updates": updates}
    return [f"{key}={_whole(key, value)}" for key, value in changes.items() if value is not None]


def new_command(
    runs: Path, name: str, configs: Mapping[str, Path], config: str, seed: int | None = None, updates: int | None = None
) -> list[str]:
    """The command that starts a new run from a configuration of the list.

    Raises RunError for names that are not of the list or no slug, and where the run exists; ConfigError for settings
    that the training would refuse.
    """
    run, file = new_run(runs, name), config_of(configs, config)
    load_config(str(file), _overrides(seed, updates))
    return command(file, run, seed, updates)


def start(
    runs: Path, name: str, configs: Mapping[str, Path], config: str, seed: int | None = None, updates: int | None = None
) -> int:
    """Start a new run from a configuration of the list; returns the number of its process.

    Raises as `new_command` does, and RunError where the run is in use.
    """
    arguments = new_command(runs, name, configs, config, seed, updates)
    return _launch(new_run(runs, name), arguments)


def resume(runs: Path, name: str) -> int:
    """Resume a run of the list, with the settings it began with; returns the number of its process."""
    run = known_run(runs, name)
    if not (run / "config.yaml").is_file():
        raise RunError.because(f"'{name}' has not begun", "a run with a config.yaml", "start it")
    return _launch(run, resume_command(run))


def resume_command(run: Path) -> list[str]:
    """The command that resumes a run."""
    return command(run / "config.yaml", run, resume=True)


def stop(run: Path) -> int:
    """Ask the training in a run to finish its step, save and end (SIGTERM); returns the number of its process.

    A second signal would end it before it has saved: it is not sent. Raises RunError where no process works in the run,
    where it was sent before, or where the process is no `lite-c2f train` or `demo`.
    """
    with _starting:
        number = _worker(run)
        try:
            process = psutil.Process(number)
            if not is_training(process.cmdline()):
                got = f"process {number} in '{run}' is no training of lite-c2f"
                raise RunError.because(got, "`lite-c2f train`", "end it where it was started")
            if follow(run).state == "stopping" or _signalled.get(number) == process.create_time():
                raise RunError.because(
                    f"'{run}' is stopping already", "one signal", "wait until it has finished its step"
                )
            if _worker(run) != number:
                raise RunError.because(f"'{run}' has ended meanwhile", "a running training", "reload the page")
            _signalled[number] = process.create_time()
            process.terminate()
            _write_stopped(run, number)
        except psutil.Error as error:
            raise RunError.because(
                f"process {number}: {type(error).__name__}", "a process of this user", "end it where it was started"
            ) from None
    return number


def _write_stopped(run: Path, process: int) -> None:
    """Note in the start's file that a page has stopped it: the process may end before it notes that itself."""
    saved = read_json_object(file_of(run, "json"))
    if saved.get("process") == process:
        write_json(file_of(run, "json"), saved | {"stopped": True})


def _worker(run: Path) -> int:
    """The process that holds the run's lock, or that was started and has not taken it yet."""
    holder = lock.owner(run)
    if holder is None:
        started = read_start(run)
        if started is None or not started.alive:
            raise RunError.because(f"no process trains in '{run}'", "a running training", "start it")
        return started.process
    if holder.process is None:
        raise RunError.because(f"'{run}' is in use by {holder}", "a process of this machine", "end it where it runs")
    return holder.process


def _launch(run: Path, arguments: list[str]) -> int:
    """Start a command in a process session of its own, its output in a file beside the runs."""
    with _starting:
        if (holder := lock.owner(run)) or follow(run).state == "starting":
            who = holder or "a process that was just started"
            raise RunError.because(
                f"'{run}' is in use by {who}", "a run that no process uses", "wait for it, or stop it"
            )
        output = file_of(run, "log")
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            with output.open("wb") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", PROGRAM, *arguments[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                )
        except OSError as error:
            raise RunError.because(f"cannot start '{run}': {error.strerror}", "a writable folder", "check it") from None
        threading.Thread(target=process.wait, daemon=True).start()  # or it would stay as a zombie
        saved = {"process": process.pid, "created": _created(process.pid), "began": time.time()}
        write_json(file_of(run, "json"), saved | {"command": shlex.join(arguments)})
    return process.pid


def _created(number: int) -> float:
    try:
        return psutil.Process(number).create_time()
    except psutil.Error:  # gone already
        return 0.0


def _whole(key: str, value: float) -> int:
    """A whole number from a form. Raises RunError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise RunError.because(f"{key}={str(value)[:40]!r}", "a whole number", "correct it")
    return int(value)
