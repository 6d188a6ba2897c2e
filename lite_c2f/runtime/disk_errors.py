"""Disk errors (full, read-only, no permission) as errors for the user, instead of a library's message."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from lite_c2f.errors import RunError

FULL, CLOSED = "the disk is full", "the disk is read-only"
PROBLEMS = {  # error number -> (problem, remedy)
    errno.ENOSPC: (FULL, "make room"),
    errno.EDQUOT: ("the disk quota is used up", "make room"),
    errno.EROFS: (CLOSED, "choose another folder"),
    errno.EIO: ("the disk reports an error", "check it"),
    errno.EACCES: ("permission denied", "check its permissions"),
    errno.EPERM: ("permission denied", "check its permissions"),
    errno.ENAMETOOLONG: ("name too long", "use a shorter one"),
}
DURING_RUN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # errors that can occur in the middle of a run
MESSAGES = {  # message of a library without an error number -> number
    "No space left on device": errno.ENOSPC,
    "file write failed": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "Read-only file system": errno.EROFS,
}


@contextlib.contextmanager
def as_user_errors(run: Path) -> Iterator[None]:
    """In the block, disk errors become RunErrors; all others pass through."""
    try:
        yield
    except Exception as error:
        message = refusal(error, run)
        if message is None:
            raise
        raise message from error


def refusal(error: BaseException, run: Path | None = None) -> RunError | None:
    """The RunError of a disk error; None for any other error. run: of a command that can be continued later."""
    number = error.errno if isinstance(error, OSError) else None
    if not isinstance(error, RunError) and number not in PROBLEMS:
        number = next((number for words, number in MESSAGES.items() if words in str(error)), None)
    if number not in PROBLEMS or isinstance(error, RunError):
        return None
    problem, remedy = PROBLEMS[number]
    name = getattr(error, "filename", None) or run or "a file"
    free = f", {free_mib(run)} MiB free" if run is not None and number == errno.ENOSPC else ""
    resume = "; then the same command continues from what was saved" if run is not None and number in DURING_RUN else ""
    return RunError.because(f"'{str(name)[:120]}': {problem}{free}", "a place that can be written to", remedy + resume)


def free_mib(place: Path) -> int:
    """Free space on the disk of a folder, or of the nearest one that exists, in MiB."""
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free // 2**20
