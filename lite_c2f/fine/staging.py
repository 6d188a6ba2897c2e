"""Staging folder of a merge: hidden, beside the output, with a journal of finished shards."""

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
    """`.NAME.merging` beside the output: the folder `model` to be renamed, a lock, a journal of finished shards.

    A shard is added to the journal only after it was flushed to the disk; config.json is written after the last shard.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.root, self._identity = folder, identity
        self.folder = folder / MODEL
        self.shards: dict[str, dict[str, Any]] = {}  # file name -> its record with sha256

    def finish(self, name: str, sha256: str, **record: Any) -> None:
        """Flush a shard to the disk and add it to the journal."""
        sync(self.folder / name)
        shards = {**self.shards, name: {"sha256": sha256, **record}}
        write_json(self.root / JOURNAL, {"identity": self._identity, "shards": shards})
        self.shards = shards  # only after the journal has it

    def resume(self, matches: Callable[[str, Any], bool]) -> str:
        """Keep the shards of an interrupted merge of the same inputs and settings; returns a message about them.

        matches: whether a shard's record fits the current inputs. The hash of its file is checked here.
        """
        try:
            journal = json.loads((self.root / JOURNAL).read_text(encoding="utf-8"))
            before, shards = dict(journal["identity"]), dict(journal["shards"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return "nothing to resume: starting from the first shard"
        if before != self._identity:
            changed = [key for key in self._identity if before.get(key) != self._identity[key]]
            return f"not resumed: {', '.join(changed) or 'the settings'} changed; starting from the first shard"
        for name, record in shards.items():
            with contextlib.suppress(OSError, KeyError, TypeError, ValueError, AttributeError):
                if matches(name, record) and sha256_of(self.folder / name) == record["sha256"]:
                    self.shards[name] = record
        return f"resumed: {len(self.shards)} of {len(shards)} finished shards are intact and kept"

    def clean(self) -> None:
        """Remove everything but the finished shards."""
        if not self.shards:
            (self.root / JOURNAL).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.name not in self.shards:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def staging_path(out: Path) -> Path:
    """The staging folder of `out`."""
    return out.with_name(f".{out.name}.merging")


def leftover_bytes(folder: Path) -> int:
    """Bytes of the files that an interrupted merge left, which will be kept or removed."""
    return sum(path.stat().st_size for path in (folder / MODEL).glob("*") if path.is_file())


@contextlib.contextmanager
def staging_folder(out: Path, identity: dict[str, Any]) -> Iterator[StagingFolder]:
    """Yield the staging folder of `out`, locked; it is renamed to `out` when the block succeeds.

    An interruption or a full disk leaves the finished shards, for `StagingFolder.resume`; other errors leave nothing.
    Raises RunError when another process merges there, or the folder was not made by a merge.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = staging_path(out)
    is_staging = not folder.exists() or (folder.is_dir() and ((folder / LOCK).is_file() or not any(folder.iterdir())))
    if folder.is_symlink() or not is_staging:
        raise RunError.because(f"'{folder}' was not made by a merge", "that name free", "move it away")
    folder.mkdir(exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        _lock_for(lock, out)
        staging = StagingFolder(folder, identity)
        staging.folder.mkdir(exist_ok=True)
        try:
            yield staging
            for path in staging.folder.rglob("*"):
                if path.is_file() and path.name not in staging.shards:
                    sync(path)
            sync(staging.folder)
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise OSError(errno.ENOTEMPTY, "it was filled in the meantime", str(out))
            staging.folder.rename(out)  # also onto an empty folder
            sync(out.parent)
            shutil.rmtree(folder, ignore_errors=True)
        except (KeyboardInterrupt, OSError):
            if staging.shards:
                staging.clean()
            else:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _lock_for(file: IO[str], out: Path) -> None:
    if not take(file):
        raise RunError.because(f"another process merges into '{out}'", "one at a time", "wait for it")
