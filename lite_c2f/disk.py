"""A disk that is full, or may not be written to: one line that says so, instead of whatever a library says."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from lite_c2f.errors import RunError

FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is too large",
}
CLOSED = {errno.EROFS: "the disk is read-only", errno.EACCES: "permission denied", errno.EPERM: "permission denied"}
BROKEN = {errno.EIO: "the disk reports an error"}
WORDS = ("No space left on device", "Disk quota exceeded", "file write failed", "Read-only file system")
LITTLE = 64 * 2**20  # bytes


@contextlib.contextmanager
def told_plainly(run: Path) -> Iterator[None]:
    """Inside the block errors of the disk under a run become RunErrors; all others pass through."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        problem = problem_of(error, run)
        if problem is None:
            raise
        where = getattr(error, "filename", None) or run
        raise RunError.because(
            f"{problem} while writing '{where}' ({free_mib(run)} MiB free)",
            "a disk with room that can be written to",
            "make room or choose another run.dir; then the same command goes on from what was saved",
        ) from error


def problem_of(error: BaseException, run: Path) -> str | None:
    """What is wrong with the disk, None where it is not the disk. Libraries below Python only say it in words."""
    if isinstance(error, OSError) and error.errno is not None:
        inside = error.filename is not None and str(error.filename).startswith(str(run))
        known = FULL | BROKEN | ({} if not inside else CLOSED) | {errno.EROFS: CLOSED[errno.EROFS]}
        return known.get(error.errno)
    if any(words in str(error) for words in WORDS):
        return CLOSED[errno.EROFS] if WORDS[3] in str(error) else FULL[errno.ENOSPC]
    return None


def free_mib(place: Path) -> int:
    """Free space on the disk of a folder, or of the nearest one that exists, in MiB."""
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free // 2**20
