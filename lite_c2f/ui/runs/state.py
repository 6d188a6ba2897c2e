"""A run as it stands at this moment. Nothing is kept but what was read: every process that looks sees the same."""

import functools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.runs.state import RunProgress, read_run_progress
from lite_c2f.storage import lock
from lite_c2f.ui.runs.curves import Point, Sample, curves, metrics_line, sample_line, spread
from lite_c2f.ui.runs.follow import Tail
from lite_c2f.ui.runs.stages import RunFiles, StageState, mapping, stages_of
from lite_c2f.ui.runs.starts import FOLDER, Started, read_start

LINES = 14  # last lines of what was said
KEPT = 8  # runs whose files stay in memory
SILENT = "it ended without a message"


class RunState(NamedTuple):
    """All that a page shows of a run."""

    name: str
    state: str  # empty, starting, running, stopping, interrupted, unfinished, failed, killed or finished
    working: str | None  # `process N`
    why: str  # what a failure said, in a line
    stages: tuple[StageState, ...]
    series: Mapping[str, Mapping[str, Sequence[Point]]]  # by stage, then by the name in metrics.jsonl
    samples: tuple[Sample, ...]
    summary: Mapping[str, Any]  # {} until the run is finished
    said: tuple[str, ...]  # last lines of the log, or of a start that has not come to write one
    started: Started | None  # from a page
    version: tuple[int, int]  # other numbers when series or samples have changed


class Files:
    """What was read of a run so far."""

    def __init__(self, run: Path) -> None:
        self.lock = threading.Lock()
        self.log = Tail(run / "log.txt", lambda line: line.decode("utf-8", errors="replace").rstrip("\r"))
        self.metrics = Tail(run / "metrics.jsonl", metrics_line)
        self.samples = Tail(run / "coarse" / "samples.jsonl", sample_line)
        self.trials = Tail(run / "fine" / "trials.jsonl", lambda line: line)
        self.series: dict[str, dict[str, Sequence[Point]]] = {}
        self.chosen: tuple[Sample, ...] = ()
        self.version = (-1, -1)

    def read(self) -> None:
        """Read what is new; curves and samples are made again only where there is something."""
        self.log.read(), self.trials.read(), self.metrics.read(), self.samples.read()
        now = (self.metrics.version, self.samples.version)
        if now[0] != self.version[0]:
            self.series = curves(self.metrics.lines)
        if now[1] != self.version[1]:
            self.chosen = spread(self.samples.lines)
        self.version = now


@functools.lru_cache(maxsize=KEPT)
def files_of(run: Path) -> Files:
    return Files(run)


def follow(run: Path) -> RunState:
    """Look at a run directory; it may be empty, missing, damaged, or be written to at the same time.

    What was read of a long file is not read again, and a file that has not changed is not opened.
    """
    files = files_of(run.absolute())
    with files.lock:
        progress, started = read_run_progress(run), read_start(run)
        files.read()
        trials = max(0, len(files.trials.lines) - 1)  # the first line says what they are of
        stages = stages_of(RunFiles(run, files.metrics.lines, progress.current, progress.last, trials))
        # a start that has not come to write any progress; one of version 0.1.0 never did
        early = (
            started if started is not None and (progress.last is None or started.began > progress.last.began) else None
        )
        state, why = (progress.state, progress.message) if progress.worker else _left(progress, stages, early)
        lines = early.said if early is not None else files.log.lines[-LINES:]
        return RunState(
            name=run.name,
            state=state,
            working=progress.worker,
            why=why,
            stages=stages,
            series=files.series,
            samples=files.chosen,
            summary=mapping(run / "summary.json") if state == "finished" else {},
            said=tuple(_redacted(line) for line in lines[-LINES:]),
            started=started,
            version=files.version,
        )


def _left(progress: RunProgress, stages: Sequence[StageState], early: Started | None) -> tuple[str, str]:
    """How a run was left that nobody works in, and what a failure said."""
    if early is not None and early.alive:
        return "starting", ""
    if progress.state == "finished":
        return "finished", ""
    if early is not None:
        return ("interrupted", "") if early.stopped else ("failed", _redacted(early.said[-1] if early.said else SILENT))
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
    """Can a page show it? A name on the disk may be any bytes."""
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
