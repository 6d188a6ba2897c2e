"""JSON files of the app's visitors, by owner: FOLDER/OWNER/ID.json.

An owner learns nothing about the files of others, not even that they exist: both those and malformed ids are "no such
session", or whatever the files hold. Only plain files are read: no symlink is followed.
"""

import re
import threading
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.errors import RunError
from lite_c2f.storage.files import write_text

_ID = re.compile(r"[0-9a-f]{32}")
# Held while a file is written: write_text's temporary file name has only the process id, and threads would clash.
WRITING = threading.RLock()


def is_id(name: Any) -> bool:
    """Whether it can be the id of an owner or a file: 32 hex digits."""
    return isinstance(name, str) and _ID.fullmatch(name) is not None


class OwnerFiles(NamedTuple):
    """The files of one kind."""

    what: str  # that one of them holds, for messages, such as "session"

    def check(self, *ids: Any) -> None:
        """Raise RunError for malformed ids of owners or files."""
        if not all(map(is_id, ids)):
            raise self.no_such()

    def find(self, folder: Path, owner: str, id: str) -> Path:
        """A file of this owner. Raises RunError where there is none, or none that is plain."""
        self.check(owner, id)
        path = folder / owner / f"{id}.json"
        if path.parent.is_symlink() or path.is_symlink() or not path.is_file():
            raise self.no_such()
        return path

    def read(self, folder: Path, owner: str, id: str) -> str:
        """The text of a file. Raises RunError as `find`, ValueError for what is not UTF-8."""
        try:
            return self.find(folder, owner, id).read_text(encoding="utf-8")
        except FileNotFoundError:  # deleted meanwhile
            raise self.no_such() from None

    def write(self, folder: Path, owner: str, id: str, text: str) -> None:
        """Write a file, whole or not at all. Raises RunError for malformed ids."""
        self.check(owner, id)
        owner_folder = folder / owner
        if owner_folder.is_symlink():
            raise self.no_such()
        owner_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with WRITING:
            write_text(owner_folder / f"{id}.json", text)

    def delete(self, folder: Path, owner: str, id: str) -> None:
        """Remove a file of this owner, also a damaged one. Raises RunError where there is none."""
        try:
            self.find(folder, owner, id).unlink()
        except FileNotFoundError:
            raise self.no_such() from None

    def no_such(self) -> RunError:
        """The same error for every reason, so that it reveals nothing about the files of others."""
        return RunError.because(f"no such {self.what}", "one of your own", "choose another from the list")
