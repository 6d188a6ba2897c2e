"""Files that grow by lines: only what is new is read."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Generic, TypeVar

T = TypeVar("T")
PROBE = 64  # last bytes read: where they have changed, the file was rewritten in place


class Tail(Generic[T]):
    """Rows of a growing file, a line each, as `parse` returns them; a last line that is only half written waits.

    A file that was replaced, cut or removed is read from its beginning. version: another number when `rows` changed.
    """

    def __init__(self, file: Path, parse: Callable[[bytes], T | None]) -> None:
        """parse: a line without its end -> its row, or None to leave it out."""
        self._file, self._parse = file, parse
        self._seen: tuple[int, int, int] | None = None  # file number, time of change, size
        self.rows: list[T] = []
        self._read, self._probe = 0, b""
        self.version = 0

    def read(self) -> list[T]:
        """All rows by now. While nothing changes, only the file's size and time are read."""
        try:
            status = self._file.stat()
        except OSError:
            if self.rows or self._read:
                self._restart()
            self._seen = None
            return self.rows
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen != self._seen:
            self._read_new(replaced=self._seen is None or self._seen[0] != seen[0])
            self._seen = seen  # as it was before reading: what came meanwhile is read next time
        return self.rows

    def _read_new(self, *, replaced: bool) -> None:
        try:
            with self._file.open("rb") as file:
                if self._read and (replaced or not self._continues(file)):
                    self._restart()
                file.seek(self._read)
                new = file.read()
        except OSError:  # removed meanwhile
            return
        whole = new[: new.rfind(b"\n") + 1]
        if not whole:
            return
        self._read += len(whole)
        self._probe = (self._probe + whole)[-PROBE:]
        for line in whole.removesuffix(b"\n").split(b"\n"):
            row = self._parse(line)
            if row is not None:
                self.rows.append(row)
        self.version += 1

    def _continues(self, file: IO[bytes]) -> bool:
        if os.fstat(file.fileno()).st_size < self._read:
            return False
        file.seek(self._read - len(self._probe))
        return file.read(len(self._probe)) == self._probe

    def _restart(self) -> None:
        self.rows, self._read, self._probe = [], 0, b""
        self.version += 1
