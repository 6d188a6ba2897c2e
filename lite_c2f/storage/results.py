"""Finished parts of a stage, one line each, so that a stage that was stopped does not do them again."""

import json
import os
from pathlib import Path
from typing import Any

from lite_c2f.config.settings_diff import in_recorded_form, without_places
from lite_c2f.storage.files import cut_lines, read_lines


class ResultCache:
    """Results by name in a .jsonl file; what was made from other inputs or settings is forgotten.

    identity: what all results depend on, JSON-ready; where a model's files are is not compared, fingerprints are.
    """

    def __init__(self, file: Path, identity: Any) -> None:
        self._file, self._identity = file, without_places(json.loads(json.dumps(identity)))
        self._found: dict[str, Any] = {}
        cut_lines(file, lambda _: True)  # a line that a kill left half-written
        lines = read_lines(file)
        recorded = without_places(lines[0].get("identity")) if lines else None
        if lines and recorded == in_recorded_form(recorded, self._identity):
            self._found = {line["name"]: line["value"] for line in lines[1:] if "name" in line}

    def get(self, name: str) -> Any:
        """What was put under a name; None where nothing was."""
        return self._found.get(name)

    def put(self, name: str, value: Any) -> None:
        """Keep a JSON-ready value; it is on the disk when this returns."""
        if not self._found:
            self.clear()
            self._append({"identity": self._identity})
        self._append({"name": name, "value": value})
        self._found[name] = json.loads(json.dumps(value))

    def clear(self) -> None:
        """Everything is published elsewhere."""
        self._file.unlink(missing_ok=True)

    def _append(self, line: dict[str, Any]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
