"""A disk that is full, or may not be written to: one line that says so, instead of whatever a library says."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from lite_c2f.errors import RunError

FULL, CLOSED = "the disk is full", "the disk is read-only"
PROBLEMS = {  # what the operating system says, and what to do
    errno.ENOSPC: (FULL, "make room"),
    errno.EDQUOT: ("the disk quota is used up", "make room"),
    errno.EROFS: (CLOSED, "choose another folder"),
    errno.EIO: ("the disk reports an error", "check it"),
    errno.EACCES: ("permission denied", "check its permissions"),
    errno.EPERM: ("permission denied", "check its permissions"),
    errno.ENAMETOOLONG: ("name too long", "use a shorter one"),
}
LATER = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # what a run that was going well can meet
WORDS = {  # libraries below Python only say it so
    "No space left on device": errno.ENOSPC,
    "file write failed": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "Read-only file system": errno.EROFS,
}


@contextlib.contextmanager
def as_user_errors(run: Path) -> Iterator[None]:
    """Inside the block errors of the disk under a run become RunErrors; all others pass through."""
    try:
        yield
    except Exception as error:
        message = refusal(error, run)
        if message is None:
            raise
        raise message from error


def refusal(error: BaseException, run: Path | None = None) -> RunError | None:
    """One line for an error of the disk, None for any other. run: where a command that can go on later was writing."""
    number = error.errno if isinstance(error, OSError) else None
    if not isinstance(error, RunError) and number not in PROBLEMS:
        number = next((number for words, number in WORDS.items() if words in str(error)), None)
    if number not in PROBLEMS or isinstance(error, RunError):
        return None
    problem, remedy = PROBLEMS[number]
    name = getattr(error, "filename", None) or run or "a file"
    free = f", {free_mib(run)} MiB free" if run is not None and number == errno.ENOSPC else ""
    again = "; then the same command goes on from what was saved" if run is not None and number in LATER else ""
    return RunError.because(f"'{str(name)[:120]}': {problem}{free}", "a place that can be written to", remedy + again)


def free_mib(place: Path) -> int:
    """Free space on the disk of a folder, or of the nearest one that exists, in MiB."""
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free // 2**20
