"""Cache of a stage's partial results, one line each, so that an interrupted stage does not repeat them."""

import json
import os
from pathlib import Path
from typing import Any

from lite_c2f.config.settings_diff import in_recorded_format, without_locations
from lite_c2f.storage.files import filter_lines, read_lines


class ResultCache:
    """Results by name in a .jsonl file; results of other inputs or settings are ignored.

    identity: settings and fingerprints that all results depend on, in JSON's types; models' locations are not compared.
    """

    def __init__(self, file: Path, identity: Any) -> None:
        self._file, self._identity = file, without_locations(json.loads(json.dumps(identity)))
        self._results: dict[str, Any] = {}
        filter_lines(file, lambda _: True)  # removes a truncated line
        lines = read_lines(file)
        recorded = without_locations(lines[0].get("identity")) if lines else None
        if lines and recorded == in_recorded_format(recorded, self._identity):
            self._results = {line["name"]: line["value"] for line in lines[1:] if "name" in line}

    def get(self, name: str) -> Any:
        """The value of a name; None if there is none."""
        return self._results.get(name)

    def put(self, name: str, value: Any) -> None:
        """Store a JSON-ready value; it is on the disk when this returns."""
        if not self._results:
            self.clear()
            self._append({"identity": self._identity})
        self._append({"name": name, "value": value})
        self._results[name] = json.loads(json.dumps(value))

    def clear(self) -> None:
        """Remove the file, whose results are published elsewhere."""
        self._file.unlink(missing_ok=True)

    def _append(self, line: dict[str, Any]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
