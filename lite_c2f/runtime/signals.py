"""Signals (Ctrl-C, SIGTERM, a closed terminal) that stop a run after its current step, which is saved first.

The same signal again stops at once; another one does not, because a launcher sends SIGTERM to processes that Ctrl-C
has reached already.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

HANGUP = getattr(signal, "SIGHUP", None)  # a closed terminal; not on Windows
AT_ONCE = "at once"  # what a KeyboardInterrupt carries that did not wait for the step to be saved
listeners: list[Callable[[], None]] = []  # called at the first signal
SIGNALS = [number for number in (signal.SIGINT, signal.SIGTERM, HANGUP) if number is not None]


def discard_output() -> None:
    """Discard stdout and stderr from now on: writing to a closed terminal would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


class Interruption:
    """Handler that records whether a signal requested the end."""

    def __init__(self, on_message: Callable[[str], None] | None = None) -> None:
        self.requested = False
        self._on_message, self._seen = on_message, set[int]()

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. The same signal again raises KeyboardInterrupt at once."""
        if number in self._seen:
            raise KeyboardInterrupt(AT_ONCE)
        first, self.requested = not self.requested, True
        self._seen.add(number)
        if number == HANGUP:
            discard_output()
        if first:
            for listener in listeners:
                listener()
        if self._on_message and first:
            self._on_message(f"{signal.Signals(number).name}: finishing this step and saving; once more stops at once")


@contextlib.contextmanager
def graceful(on_message: Callable[[str], None] | None = None) -> Iterator[Interruption]:
    """In the block, SIGINT, SIGTERM and SIGHUP only set `requested`; the previous handlers are restored afterwards.

    After a signal, KeyboardInterrupt is raised at the latest when the block ends. Outside the main
    thread, where Python allows no handlers, nothing changes. on_message: called with one line at the first signal.
    """
    interruption = Interruption(on_message)
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}  # nohup
    try:
        for number in before:
            signal.signal(number, interruption.ask)
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interruption.requested:  # too late for the work in the block to see it
        raise KeyboardInterrupt
