"""Lock of a run directory: one process at a time. The lock ends with its process, however that ends.

Not filelock's: whoever asks for the owner would have to take the lock, of which filelock has no shared form.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from lite_c2f.errors import RunError

NAME = ".lock"
ATTEMPTS = 5  # `owner` holds the lock for a moment, too


class LockOwner(NamedTuple):
    """The process that holds the lock of a run."""

    process: int | None  # None where the lock does not name it

    def __str__(self) -> str:
        return "another process" if self.process is None else f"process {self.process}"


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Make a run directory if need be, and be the only process in it; if it stays empty it is removed again.

    Raises RunError when another process works in it, or the folder cannot be written to.
    """
    if run.exists() and not run.is_dir():
        raise RunError.because(f"run.dir '{run}' is a file", "a folder", "choose another run.dir")
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = _open(run / NAME)
        while take(file) and not _is_current(file, run / NAME):  # its previous owner has removed it
            file.close()
            file = _open(run / NAME)
    except OSError as error:
        raise RunError.because(f"run.dir '{run}': {error.strerror}", "a writable folder", "choose another") from None
    with file:
        if not _take_soon(file):
            holder = _named_in(file)
            who = f" ({holder})" if holder.process is not None else ""
            raise RunError.because(
                f"'{run}' is in use by another process{who}", "one at a time", "wait for it, or choose another run.dir"
            )
        file.truncate(0)
        file.write(f"{LockOwner(os.getpid())}\n")
        file.flush()
        try:
            yield
        finally:
            (run / NAME).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                for folder in made:
                    folder.rmdir()  # only where nothing else is in it


def owner(run: Path) -> LockOwner | None:
    """The process that works in a run; None where there is none."""
    try:
        with (run / NAME).open("r+", encoding="utf-8") as file:
            return None if take(file, shared=True) else _named_in(file)
    except OSError:
        return None


def _named_in(file: IO[str]) -> LockOwner:
    match = re.fullmatch(r"process ([0-9]+)\n?", file.read())
    return LockOwner(int(match[1]) if match else None)


def take(file: IO[str], *, shared: bool = False) -> bool:
    """Lock an open file for this process; False when another one has it. Where the system has no locks: True.

    shared: a lock that several readers can have at once, to see whether a process has the exclusive one.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have none
        return True
    return True


def _take_soon(file: IO[str]) -> bool:
    """Lock an open file, with a few attempts in 50 ms."""
    for _ in range(ATTEMPTS):
        if take(file):
            return True
        time.sleep(0.01)
    return False


def _open(path: Path) -> IO[str]:
    """Open the lock's file without emptying it: it names its owner."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+", encoding="utf-8")


def _is_current(file: IO[str], path: Path) -> bool:
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
