"""Threads that may still run when a command ends: it ends in spite of them.

Before it exits, Python waits for threads of a user's code that hang: for those that are no daemons, and for all of a
ThreadPoolExecutor, which is that of asyncio.to_thread too, daemons or not. And while a daemon thread computes in
PyTorch, Python's own end aborts the process.
"""

import os
import sys
import threading
import weakref
from collections.abc import Iterable

_lingering: weakref.WeakSet[threading.Thread] = weakref.WeakSet()  # Python itself holds those that run


def add_lingering(threads: Iterable[threading.Thread]) -> None:
    """Remember threads that may still run when the command ends."""
    _lingering.update(threads)


def exit_if_lingering(code: int) -> None:
    """End the process at once where such a thread still runs; its exit handlers do not run."""
    if any(thread.is_alive() for thread in _lingering):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
