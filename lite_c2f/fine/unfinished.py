"""Where a merge grows: a hidden folder beside the output, with a journal, that nobody can take for a model."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lite_c2f.errors import RunError
from lite_c2f.fine.shards import sha256_of
from lite_c2f.runs import sync, write_json

JOURNAL, LOCK = "journal.json", "lock"


class Unfinished:
    """`.NAME.merging` beside the output: shards, and a journal of those that are whole and on the disk.

    It has no config.json until the last moment, so it does not load. A shard is written into the journal only after
    it was flushed to the disk.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self._identity = folder, identity
        self.shards: dict[str, dict[str, Any]] = {}  # file name -> sha256 and whatever else was recorded

    def finish(self, name: str, sha256: str, **record: Any) -> None:
        """Flush a shard to the disk and write it into the journal."""
        sync(self.folder / name)
        self.shards = {**self.shards, name: {"sha256": sha256, **record}}
        write_json(self.folder / JOURNAL, {"identity": self._identity, "shards": self.shards})

    def take_over(self) -> str:
        """Keep the shards of an interrupted merge of the same inputs and settings; returns what became of them."""
        try:
            journal = json.loads((self.folder / JOURNAL).read_text(encoding="utf-8"))
            before, shards = journal["identity"], dict(journal["shards"])
        except (OSError, ValueError, KeyError, TypeError):
            return "nothing to resume: starting from the first shard"
        if before != self._identity:
            changed = [key for key in self._identity if before.get(key) != self._identity[key]]
            return f"not resumed: {', '.join(changed) or 'the settings'} changed; starting from the first shard"
        whole = {}
        for name, record in shards.items():
            with contextlib.suppress(OSError):
                if sha256_of(self.folder / Path(name).name) == record["sha256"]:
                    whole[name] = record
        self.shards = whole
        return f"resumed: {len(whole)} of {len(shards)} finished shards are whole and kept"

    def clean(self, keep_journal: bool = False) -> None:
        """Remove everything but the finished shards."""
        kept = {*self.shards, LOCK, *([JOURNAL] if keep_journal else [])}
        for path in self.folder.iterdir():
            if path.name in kept:
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def unfinished_folder(out: Path) -> Path:
    """The hidden folder in which `out` grows."""
    return out.with_name(f".{out.name}.merging")


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder, 0 where there is none: an interrupted merge's are kept or freed."""
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())


@contextlib.contextmanager
def unfinished(out: Path, identity: dict[str, Any]) -> Iterator[Unfinished]:
    """The folder in which `out` grows, locked against other processes; renamed to `out` when the block ends well.

    An interruption or a full disk leaves the shards that were finished, for `take_over`; anything else wrong leaves
    nothing. Raises RunError when another process is at it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = unfinished_folder(out)
    folder.mkdir(exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        _lock(lock, out)
        work = Unfinished(folder, identity)
        try:
            yield work
            for path in folder.rglob("*"):
                if path.is_file() and path.name not in work.shards:
                    sync(path)
            (folder / JOURNAL).unlink(missing_ok=True)
            (folder / LOCK).unlink()
            sync(folder)
            folder.rename(out)  # also onto an empty folder
            sync(out.parent)
        except (KeyboardInterrupt, OSError):
            if work.shards:
                work.clean(keep_journal=True)
            else:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _lock(file: IO[str], out: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no such lock on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
    except OSError:
        raise RunError.because(f"another process merges into '{out}'", "one at a time", "wait for it") from None
