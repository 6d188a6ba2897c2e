"""Ctrl-C, SIGTERM and a closed terminal, at a boundary: the work under way is finished and saved first.

The same signal again stops at once.
A launcher sends SIGTERM to processes that Ctrl-C has reached already: only the same signal twice is impatience.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

HANGUP = getattr(signal, "SIGHUP", None)  # the terminal is gone; Windows has none
listeners: list[Callable[[], None]] = []  # called when a signal first asks for an end
ENDINGS = [number for number in (signal.SIGINT, signal.SIGTERM, HANGUP) if number is not None]


def fall_silent() -> None:
    """Send what is printed from now on nowhere: to a terminal that is gone it would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


class Interruption:
    """Whether a signal has asked for an end."""

    def __init__(self, on_message: Callable[[str], None] | None = None) -> None:
        self.asked = False
        self._on_message, self._seen = on_message, set[int]()

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. The same one again raises KeyboardInterrupt where the work stands."""
        if number in self._seen:
            raise KeyboardInterrupt
        first, self.asked = not self.asked, True
        self._seen.add(number)
        if number == HANGUP:
            fall_silent()
        if first:
            for listener in listeners:
                listener()
        if self._on_message and first:
            self._on_message(f"{signal.Signals(number).name}: finishing this step and saving; once more stops at once")


@contextlib.contextmanager
def graceful(on_message: Callable[[str], None] | None = None) -> Iterator[Interruption]:
    """Inside the block SIGINT, SIGTERM and SIGHUP only set `asked`; the handlers that were there come back
    afterwards. What was asked for is not forgotten: KeyboardInterrupt follows at the latest when the block ends.

    Outside the main thread, where Python allows no handlers, nothing changes. on_message: called with one line at the
    signal.
    """
    interruption = Interruption(on_message)
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.getsignal(number) for number in ENDINGS}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}  # nohup
    try:
        for number in before:
            signal.signal(number, interruption.ask)
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interruption.asked:  # too late for the work in the block to see it
        raise KeyboardInterrupt
