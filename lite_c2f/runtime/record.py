"""RUN/progress.json: how far the process that works in a run is, and how the last one ended.

Written whole each time, at most once a second while steps are made. A killed process leaves `running` behind; the
run's lock (storage/lock.py) shows whether one is alive. What is published is known by its files alone.
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
EVERY = 1.0  # seconds between two writings while steps are made
RECENT = 10  # steps whose mean duration tells the time left
STAGE_OF = {  # the stage that a part of the work, as it is announced, belongs to
    "reward model": "reward",
    "coarse actor": "coarse",
    "ratios": "fine",
    "groups": "fine",
    "merge": "fine",
    "comparison": "comparison",
}


class Progress(NamedTuple):
    """The content of RUN/progress.json. Times are seconds since the epoch."""

    state: str  # running, stopped (by itself or by a signal), failed, finished (everything is published)
    process: int
    began: float
    updated: float
    part: str | None = None  # what is done now, such as `coarse actor` or `ratios`
    stage: str | None = None  # reward, coarse, fine or comparison, where the part belongs to one
    stage_began: float | None = None
    step: int | None = None
    of: int | None = None  # steps, where their number is known
    unit: str | None = None  # of the steps
    seconds_left: float | None = None  # of this part, at the pace of its last steps
    stopping: bool = False  # it was asked to end, and finishes its step
    interrupted: bool = False  # it was stopped by a signal
    message: str | None = None  # of a failure, in a line


def read_progress(run: Path) -> Progress | None:
    """What the process that worked in a run last wrote down; None where there is nothing that can be read."""
    try:
        content = json.loads((run / FILE).read_text(encoding="utf-8"))
        known = {name: content[name] for name in Progress._fields if name in content}
        progress = Progress(**known)
        numbers = (progress.process, progress.began, progress.updated)
        return progress if all(isinstance(number, int | float) for number in numbers) else None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


class ProgressFile:
    """A progress sink that keeps RUN/progress.json up to date, and passes everything on."""

    def __init__(self, run: Path, sink: ProgressSink) -> None:
        now = time.time()
        self._file, self._sink, self._written = run / FILE, sink, 0.0
        self._steps: deque[tuple[float, int]] = deque(maxlen=RECENT + 1)  # when, and which step was done then
        self.progress = Progress("running", os.getpid(), now, now)
        self.on_tokens, self.on_message = sink.on_tokens, sink.on_message
        self.write()

    def on_stage(self, name: str, total: int, unit: str) -> None:
        """A part of the work begins, or the number of its steps is known now."""
        of = total or None
        if name != self.progress.part:
            stage, before = STAGE_OF.get(name), self.progress
            began = before.stage_began if stage is not None and stage == before.stage else time.time()
            self._steps.clear()
            self.write(part=name, stage=stage, stage_began=began, step=None, of=of, unit=unit, seconds_left=None)
        else:
            self.write(of=of, unit=unit)
        self._sink.on_stage(name, total, unit)

    def on_step(self, done: int, values: dict[str, float]) -> None:
        """A step is done; the first call of a part may report steps that were done before a resume."""
        if not self._steps or done > self._steps[-1][1]:
            self._steps.append((time.time(), done))
        self.progress = self.progress._replace(step=done, seconds_left=self._left(done))
        if time.monotonic() - self._written >= EVERY:
            self.write()
        self._sink.on_step(done, values)

    def on_signal(self) -> None:
        """A signal has asked for an end."""
        self.write(stopping=True)

    def _left(self, done: int) -> float | None:
        (first_time, first), (last_time, last) = self._steps[0], self._steps[-1]
        if last == first or self.progress.of is None:
            return None
        return (last_time - first_time) / (last - first) * max(0, self.progress.of - done)

    def write(self, **changes: Any) -> None:
        """Write the file with these fields changed. On a full disk it stays as it was; the error is reported then."""
        self.progress = self.progress._replace(updated=time.time(), **changes)
        self._written = time.monotonic()
        beside = self._file.with_name(f".{FILE}.partial-{os.getpid()}")
        try:
            beside.write_text(json.dumps({"schema": SCHEMA, **self.progress._asdict()}) + "\n", encoding="utf-8")
            beside.replace(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()


@contextlib.contextmanager
def recording(run: Path, sink: ProgressSink, is_finished: Callable[[Path], bool]) -> Iterator[ProgressSink]:
    """Keep RUN/log.txt and RUN/progress.json of what is done inside the block, through the sink that it gives.

    is_finished(run): asked at the end, whether everything of it is published. Any error passes through.
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
