"""Staging folder of a merge: hidden, beside the output, with a journal; nothing can take it for a model."""

import contextlib
import errno
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from lite_c2f.errors import RunError
from lite_c2f.fine.shards import sha256_of
from lite_c2f.storage.files import sync, write_json
from lite_c2f.storage.lock import take

JOURNAL, LOCK, MODEL = "journal.json", "lock", "model"


class StagingFolder:
    """`.NAME.merging` beside the output: the folder `model` that will be renamed, a lock, a journal of whole shards.

    A shard is written into the journal only after it was flushed to the disk; config.json comes after the last shard.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.place, self._identity = folder, identity
        self.folder = folder / MODEL
        self.shards: dict[str, dict[str, Any]] = {}  # file name -> sha256 and whatever else was recorded

    def finish(self, name: str, sha256: str, **record: Any) -> None:
        """Flush a shard to the disk and write it into the journal."""
        sync(self.folder / name)
        shards = {**self.shards, name: {"sha256": sha256, **record}}
        write_json(self.place / JOURNAL, {"identity": self._identity, "shards": shards})
        self.shards = shards  # a shard that the journal does not know is not kept

    def take_over(self, is_right: Callable[[str, Any], bool]) -> str:
        """Keep the shards of an interrupted merge of the same inputs and settings; returns what became of them.

        is_right: does a shard's record fit the inputs as they are now? Its file's hash is checked here.
        """
        try:
            journal = json.loads((self.place / JOURNAL).read_text(encoding="utf-8"))
            before, shards = dict(journal["identity"]), dict(journal["shards"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return "nothing to resume: starting from the first shard"
        if before != self._identity:
            changed = [key for key in self._identity if before.get(key) != self._identity[key]]
            return f"not resumed: {', '.join(changed) or 'the settings'} changed; starting from the first shard"
        for name, record in shards.items():
            with contextlib.suppress(OSError, KeyError, TypeError, ValueError, AttributeError):
                if is_right(name, record) and sha256_of(self.folder / name) == record["sha256"]:
                    self.shards[name] = record
        return f"resumed: {len(self.shards)} of {len(shards)} finished shards are whole and kept"

    def clean(self) -> None:
        """Remove everything but the finished shards."""
        if not self.shards:
            (self.place / JOURNAL).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.name not in self.shards:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def unfinished_folder(out: Path) -> Path:
    """The hidden folder in which `out` grows."""
    return out.with_name(f".{out.name}.merging")


def size_of(folder: Path) -> int:
    """Bytes of the files that an interrupted merge left: they are kept or freed."""
    return sum(path.stat().st_size for path in (folder / MODEL).glob("*") if path.is_file())


@contextlib.contextmanager
def unfinished(out: Path, identity: dict[str, Any]) -> Iterator[StagingFolder]:
    """The folder in which `out` grows, locked against other processes; renamed to `out` when the block ends well.

    An interruption or a full disk leaves the shards that were finished, for `take_over`; anything else wrong leaves
    nothing. Raises RunError when another process merges there, or the hidden folder is not one of ours.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = unfinished_folder(out)
    ours = not folder.exists() or (folder.is_dir() and ((folder / LOCK).is_file() or not any(folder.iterdir())))
    if folder.is_symlink() or not ours:
        raise RunError.because(f"'{folder}' was not made by a merge", "that name free", "move it away")
    folder.mkdir(exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        _lock(lock, out)
        work = StagingFolder(folder, identity)
        work.folder.mkdir(exist_ok=True)
        try:
            yield work
            for path in work.folder.rglob("*"):
                if path.is_file() and path.name not in work.shards:
                    sync(path)
            sync(work.folder)
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise OSError(errno.ENOTEMPTY, "something was put there meanwhile", str(out))
            work.folder.rename(out)  # also onto an empty folder
            sync(out.parent)
            shutil.rmtree(folder, ignore_errors=True)
        except (KeyboardInterrupt, OSError):
            if work.shards:
                work.clean()
            else:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _lock(file: IO[str], out: Path) -> None:
    if not take(file):
        raise RunError.because(f"another process merges into '{out}'", "one at a time", "wait for it")
