"""State of a run: whether a process works in it, and otherwise how the last one ended. Imports no torch.

Published results take precedence: a failed second comparison leaves a finished run finished.
"""

from pathlib import Path
from typing import NamedTuple

from lite_c2f.runs.published import is_finished
from lite_c2f.runtime.record import Progress, read_progress
from lite_c2f.storage import lock


class RunProgress(NamedTuple):
    """State of a run, and the progress files it was derived from."""

    state: str  # running, stopping, finished, failed, killed, interrupted, unfinished, or unknown
    message: str  # of a failure
    worker: lock.LockOwner | None  # where one works in the run
    current: Progress | None  # of that process, once it has written some
    last: Progress | None  # of the last process, whether it still works or not


def read_run_progress(run: Path) -> RunProgress:
    """The state of a run from its files and its lock.

    `unfinished`: the requested stages are done. `unknown`: there is no progress file, as in a new folder and in runs of
    version 0.1.0.
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
