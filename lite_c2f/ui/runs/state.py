"""State of a run, read from its files: every process that reads them gets the same."""

import functools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.runs.state import RunProgress, read_run_progress
from lite_c2f.storage import lock
from lite_c2f.ui.runs.curves import Point, Sample, curves, evenly_spaced, metrics_row, sample_row
from lite_c2f.ui.runs.follow import Tail
from lite_c2f.ui.runs.stages import RunFiles, StageState, read_json_object, stages_of
from lite_c2f.ui.runs.starts import FOLDER, Started, read_start

LOG_LINES = 14  # of a state that was asked for without its whole log
CACHED = 8  # runs whose files stay in memory
SILENT = "it ended without a message"


class RunState(NamedTuple):
    """All that a page shows of a run."""

    name: str
    state: str  # empty, starting, running, stopping, interrupted, unfinished, failed, killed or finished
    working: str | None  # `process N`
    message: str  # of a failure, one line
    stages: tuple[StageState, ...]
    series: Mapping[str, Mapping[str, Sequence[Point]]]  # by stage, then by the name in metrics.jsonl
    samples: tuple[Sample, ...]
    summary: Mapping[str, Any]  # {} until the run is finished
    log: tuple[str, ...]  # last lines of the log, or all of them; or of a start that has not written one yet
    started: Started | None  # from a page
    version: tuple[int, int]  # other numbers when series or samples have changed


class Files:
    """The files of a run that grow, as far as they were read."""

    def __init__(self, run: Path) -> None:
        self.lock = threading.Lock()
        self.log = Tail(run / "log.txt", lambda line: line.decode("utf-8", errors="replace").rstrip("\r"))
        self.metrics = Tail(run / "metrics.jsonl", metrics_row)
        self.samples = Tail(run / "coarse" / "samples.jsonl", sample_row)
        self.trials = Tail(run / "fine" / "trials.jsonl", lambda line: line)
        self.series: dict[str, dict[str, Sequence[Point]]] = {}
        self.shown_samples: tuple[Sample, ...] = ()
        self.version = (-1, -1)
        self._logged: list[str] = []  # rows of the log of which `_redacted` has the text
        self._redacted: list[str] = []

    def read(self) -> None:
        """Read what is new; curves and samples are computed again only where their file has changed."""
        self.log.read(), self.trials.read(), self.metrics.read(), self.samples.read()
        versions = (self.metrics.version, self.samples.version)
        if versions[0] != self.version[0]:
            self.series = curves(self.metrics.rows)
        if versions[1] != self.version[1]:
            self.shown_samples = evenly_spaced(self.samples.rows)
        self.version = versions

    def whole_log(self) -> list[str]:
        """All lines that were read of the log, without secrets: each is looked at once."""
        if self._logged is not self.log.rows:  # it was read from its beginning
            self._logged, self._redacted = self.log.rows, []
        self._redacted += [_redacted(line) for line in self.log.rows[len(self._redacted) :]]
        return self._redacted


@functools.lru_cache(maxsize=CACHED)
def files_of(run: Path) -> Files:
    """The files of a run, of which it remembers what was read."""
    return Files(run)


def follow(run: Path, *, whole_log: bool = False) -> RunState:
    """The state of a run directory, which may be empty, missing, damaged, or written to at the same time.

    What was read of a long file is not read again, and a file that has not changed is not opened.
    """
    files = files_of(run.absolute())
    with files.lock:
        progress, started = read_run_progress(run), read_start(run)
        files.read()
        trials = max(0, len(files.trials.rows) - 1)  # the first line is their header
        stages = stages_of(RunFiles(run, files.metrics.rows, progress.current, progress.last, trials))
        # a start that has written no progress yet; runs of version 0.1.0 never did
        early = started if started and (progress.last is None or started.began > progress.last.began) else None
        state, message = (progress.state, progress.message) if progress.worker else _idle_state(progress, stages, early)
        if early is None and whole_log:
            lines = files.whole_log()
        else:
            lines = [_redacted(line) for line in (early.log if early is not None else files.log.rows)[-LOG_LINES:]]
        return RunState(
            name=run.name,
            state=state,
            working=str(progress.worker) if progress.worker else None,
            message=message,
            stages=stages,
            series=files.series,
            samples=files.shown_samples,
            summary=read_json_object(run / "summary.json") if state == "finished" else {},
            log=tuple(lines),
            started=started,
            version=files.version,
        )


def _idle_state(progress: RunProgress, stages: Sequence[StageState], early: Started | None) -> tuple[str, str]:
    """(state, message of a failure) of a run that no process works in."""
    if early is not None and early.alive:
        return "starting", ""
    if progress.state == "finished":
        return "finished", ""
    if early is not None:
        return ("interrupted", "") if early.stopped else ("failed", _redacted(early.log[-1] if early.log else SILENT))
    if progress.state == "unknown":
        return ("interrupted" if any(stage.state != "waiting" for stage in stages) else "empty"), ""
    return progress.state, progress.message


def _redacted(line: str) -> str:
    from lite_c2f.runtime.log import redact  # loads torch

    return redact(line)


def names(runs: Path) -> list[str]:
    """Names of the runs directly in a folder, also of those whose start failed; newest first."""
    changed: dict[str, float] = {}
    for path in _inside(runs):
        marks = [path / name for name in ("metrics.jsonl", "run.json", "config.yaml", lock.NAME)]
        times = [time for mark in marks if (time := _changed(mark))]
        if times and _is_text(path.name) and not path.name.startswith("."):
            changed[path.name] = max(times)
    for path in _inside(runs / FOLDER):
        if path.suffix == ".json" and _is_text(path.name) and not path.name.startswith("."):
            changed[path.stem] = max(changed.get(path.stem, 0.0), _changed(path))
    return sorted(changed, key=lambda name: (-changed[name], name))


def _is_text(name: str) -> bool:
    """Can a page show it? A name on disk may be any bytes."""
    return name.isprintable()


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _changed(file: Path) -> float:
    """When a file was changed, 0 where there is none."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
