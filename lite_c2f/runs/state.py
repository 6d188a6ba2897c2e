"""State of a run: whether a process works in it, and if not, how the last one left it. Imports no torch.

What is published counts first: a comparison that was made again, and failed, leaves a finished run finished.
"""

from pathlib import Path
from typing import NamedTuple

from lite_c2f.runs.published import is_finished
from lite_c2f.runtime.record import Progress, read_progress
from lite_c2f.storage import lock


class RunProgress(NamedTuple):
    """The state, and what the state was read from."""

    state: str  # running, stopping, finished, failed, killed, interrupted, unfinished, or unknown
    message: str  # of a failure
    worker: lock.LockOwner | None  # where one works in the run
    current: Progress | None  # of that process, once it has written some
    last: Progress | None  # of the last process, whether it still works or not


def progress_of(run: Path) -> RunProgress:
    """The state of a run as its files and its lock say it.

    `unfinished`: the stages that were asked for are done. `unknown`: no progress is written down, as in a new folder
    and in runs of version 0.1.0.
    """
    worker, last = lock.owner(run), read_progress(run)
    if worker is not None:
        current = last if last is not None and worker.process == last.process else None
        stopping = current is not None and current.stopping
        return RunProgress("stopping" if stopping else "running", "", worker, current, last)
    if is_finished(run):
        return RunProgress("finished", "", None, None, last)
    if last is None:
        return RunProgress("unknown", "", None, None, None)
    state = {"running": "killed", "failed": "failed"}.get(
        last.state, "interrupted" if last.interrupted else "unfinished"
    )
    return RunProgress(state, last.message or "" if state == "failed" else "", None, None, last)
