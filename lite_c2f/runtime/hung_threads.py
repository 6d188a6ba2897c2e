"""Threads of a user's code that hang: a command ends in spite of them.

Before it exits, Python waits for threads that are no daemons, and for all of a ThreadPoolExecutor, which is that of
asyncio.to_thread too: daemons or not.
"""

import os
import sys
import threading
from collections.abc import Iterable

_hung: set[threading.Thread] = set()


def add_hung(threads: Iterable[threading.Thread]) -> None:
    """Remember the threads that would keep the process from ending."""
    _hung.update(threads)


def exit_if_hung(code: int) -> None:
    """End the process at once where such a thread still runs; its exit handlers do not run."""
    if any(thread.is_alive() for thread in _hung):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
