"""Files of lines that others append to: what is new is read, what was read is not read again."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Generic, TypeVar

T = TypeVar("T")
PROBE = 64  # last bytes that were read: found changed, the file was written anew under the same number


class Tail(Generic[T]):
    """The whole lines of a growing file, as `parse` gives them; a last line that is only half written waits.

    A file that was replaced, cut or removed is read from its beginning. version: another number when `lines` changed.
    """

    def __init__(self, file: Path, parse: Callable[[bytes], T | None]) -> None:
        """parse: a line without its end -> what to keep, None where that is nothing."""
        self._file, self._parse = file, parse
        self._seen: tuple[int, int, int] | None = None  # file number, time of change, size
        self.lines: list[T] = []
        self._read, self._probe = 0, b""
        self.version = 0

    def read(self) -> list[T]:
        """All lines by now. Costs one look at the file's size and time while nothing changes."""
        try:
            status = self._file.stat()
        except OSError:
            if self.lines or self._read:
                self._begin()
            self._seen = None
            return self.lines
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen != self._seen:
            self._go_on(replaced=self._seen is None or self._seen[0] != seen[0])
            self._seen = seen  # as it was before reading: what came meanwhile is found at the next look
        return self.lines

    @property
    def changed(self) -> float | None:
        """When the file was changed last, in seconds since the epoch; None where there is none."""
        return None if self._seen is None else self._seen[1] / 1e9

    def _go_on(self, *, replaced: bool) -> None:
        try:
            with self._file.open("rb") as file:
                if self._read and (replaced or not self._continues(file)):
                    self._begin()
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
            parsed = self._parse(line)
            if parsed is not None:
                self.lines.append(parsed)
        self.version += 1

    def _continues(self, file: IO[bytes]) -> bool:
        if os.fstat(file.fileno()).st_size < self._read:
            return False
        file.seek(self._read - len(self._probe))
        return file.read(len(self._probe)) == self._probe

    def _begin(self) -> None:
        self.lines, self._read, self._probe = [], 0, b""
        self.version += 1
