"""Progress file of a run, RUN/progress.json: the progress of the process in it, and how the last one ended.

Rewritten at most once a second. A killed process leaves `running` behind; the run's lock (storage/lock.py) shows
whether one is alive. What is published is known from its files only (runs/published.py).
"""

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.errors import C2FError
from lite_c2f.runtime import signals
from lite_c2f.runtime.log import LoggedSink, redact, written_to_log
from lite_c2f.runtime.progress import ProgressSink

FILE = "progress.json"
SCHEMA = 1
WRITE_SECONDS = 1.0  # seconds between two writes while steps are done
RECENT_STEPS = 10  # steps over which the time left is estimated
STAGE_OF_PART = {  # name passed to on_stage -> stage
    "reward model": "reward",
    "coarse actor": "coarse",
    "ratios": "fine",
    "groups": "fine",
    "merge": "fine",
    "comparison": "comparison",
}
FILE_KEYS = {"total_steps": "of"}  # fields that have another name in the file


class Progress(NamedTuple):
    """The content of RUN/progress.json. Times are seconds since the epoch."""

    state: str  # running, stopped (by itself or by a signal), failed, finished (everything is published)
    process: int
    began: float
    updated: float
    part: str | None = None  # current part of the work, such as `coarse actor` or `ratios`
    stage: str | None = None  # reward, coarse, fine or comparison, if the part belongs to one
    stage_began: float | None = None
    step: int | None = None
    total_steps: int | None = None  # `of` in the file; None if not known
    unit: str | None = None  # of the steps
    seconds_left: float | None = None  # of this part, estimated from its last steps
    stopping: bool = False  # a signal requested the end; the current step is finished first
    interrupted: bool = False  # it was stopped by a signal
    message: str | None = None  # of a failure, one line


def read_progress(run: Path) -> Progress | None:
    """The progress last written in a run; None if there is no readable file."""
    try:
        content = json.loads((run / FILE).read_text(encoding="utf-8"))
        keys = {FILE_KEYS.get(name, name): name for name in Progress._fields}
        progress = Progress(**{name: content[key] for key, name in keys.items() if key in content})
        numbers = (progress.process, progress.began, progress.updated)
        return progress if all(isinstance(number, int | float) for number in numbers) else None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


class ProgressFile:
    """A progress sink that updates RUN/progress.json and forwards every call to another sink."""

    def __init__(self, run: Path, sink: ProgressSink) -> None:
        now = time.time()
        self._file, self._sink, self._written = run / FILE, sink, 0.0
        self._steps: deque[tuple[float, int]] = deque(maxlen=RECENT_STEPS + 1)  # (time, step done at that time)
        self.progress = Progress("running", os.getpid(), now, now)
        self.on_tokens, self.on_message = sink.on_tokens, sink.on_message
        self.write()

    def on_stage(self, name: str, total: int, unit: str) -> None:
        """Record the beginning of a part of the work, or its number of steps once that is known."""
        total_steps = total or None
        if name != self.progress.part:
            stage, before = STAGE_OF_PART.get(name), self.progress
            began = before.stage_began if stage is not None and stage == before.stage else time.time()
            self._steps.clear()
            self.progress = self.progress._replace(stage_began=began, step=None, seconds_left=None)
            self.write(part=name, stage=stage, total_steps=total_steps, unit=unit)
        else:
            self.write(total_steps=total_steps, unit=unit)
        self._sink.on_stage(name, total, unit)

    def on_step(self, done: int, values: dict[str, float]) -> None:
        """Record a step; the first call of a part may report the steps done before a resume."""
        if not self._steps or done > self._steps[-1][1]:
            self._steps.append((time.time(), done))
        self.progress = self.progress._replace(step=done, seconds_left=self._left(done))
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self.write()
        self._sink.on_step(done, values)

    def on_signal(self) -> None:
        """Record that a signal requested the end."""
        self.write(stopping=True)

    def _left(self, done: int) -> float | None:
        (first_time, first), (last_time, last) = self._steps[0], self._steps[-1]
        if last == first or self.progress.total_steps is None:
            return None
        return (last_time - first_time) / (last - first) * max(0, self.progress.total_steps - done)

    def write(self, **changes: Any) -> None:
        """Write the file with these fields changed. On a full disk the file stays unchanged and nothing is raised."""
        self.progress = self.progress._replace(updated=time.time(), **changes)
        self._written = time.monotonic()
        temporary = self._file.with_name(f".{FILE}.partial-{os.getpid()}")
        try:
            content = {FILE_KEYS.get(name, name): value for name, value in self.progress._asdict().items()}
            temporary.write_text(json.dumps({"schema": SCHEMA, **content}) + "\n", encoding="utf-8")
            temporary.replace(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def recording(run: Path, sink: ProgressSink, is_finished: Callable[[Path], bool]) -> Iterator[ProgressSink]:
    """In the block, keep RUN/log.txt and RUN/progress.json through the sink that it yields.

    is_finished(run): called at the end, whether everything is published. Errors pass through.
    """
    with written_to_log(run):
        file = ProgressFile(run, sink)
        signals.listeners.append(file.on_signal)
        try:
            yield LoggedSink(file)
        except KeyboardInterrupt:
            file.write(state="stopped", stopping=False, interrupted=True, seconds_left=None)
            raise
        except BaseException as error:
            text = str(error) if isinstance(error, C2FError) else f"{type(error).__name__}: {error}"
            message = redact(" ".join(text.split())[:500])
            file.write(state="failed", stopping=False, message=message, seconds_left=None)
            raise
        else:
            file.write(state="finished" if is_finished(run) else "stopped", stopping=False, seconds_left=None)
        finally:
            signals.listeners.remove(file.on_signal)
