"""Processes in which a reward function runs: ended at a time limit, and missed at once where one dies.

The standard pools are not used: `multiprocessing.Pool` replaces a process that died and waits for its result for ever,
and that of `concurrent.futures` cannot end a process that hangs.
"""

import multiprocessing
import queue
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from lite_c2f.errors import C2FError

END_SECONDS = 5.0  # for the system to end a killed process


class WorkerDiedError(Exception):
    """A process ended before it gave its result; the text says how."""


class Workers:
    """Processes that call `function(argument)`, a module's own function, each with one argument at a time.

    Spawned: a forked process would inherit torch's threads. They end with `close`, or when this object is deleted.
    """

    def __init__(self, count: int, function: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections: list[Any] = []
        self._processes: list[Any] = []
        self.close = weakref.finalize(self, _end, self._processes, self._connections)
        for _ in range(count):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there, function), daemon=True)
            process.start()
            there.close()  # else its end would not be seen here
            self._connections.append(here)
            self._processes.append(process)

    def map(self, arguments: Sequence[Any], timeout: float) -> list[Any]:
        """The results, in order; all calls together have `timeout` seconds.

        Raises TimeoutError, WorkerDiedError, or what the first call that failed raised: C2FError, or the error of
        sending its argument or result.
        """
        waiting, results = deque(enumerate(arguments)), queue.SimpleQueue[tuple[int, Any, BaseException | None]]()
        for process, connection in zip(self._processes, self._connections, strict=True):
            threading.Thread(target=_ask, args=(process, connection, waiting, results), daemon=True).start()
        by_number: dict[int, Any] = {}
        deadline = time.monotonic() + timeout
        while len(by_number) < len(arguments):
            try:
                number, result, error = results.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError from None
            if error is not None:
                raise error
            by_number[number] = result
        return [by_number[number] for number in range(len(arguments))]


def _ask(process: Any, connection: Any, waiting: deque, results: queue.SimpleQueue) -> None:
    """In a thread, since sending waits for a process that does not read: calls of one process, as long as some wait."""
    while True:
        try:
            number, argument = waiting.popleft()
        except IndexError:
            return
        try:
            connection.send(argument)
            result, error = connection.recv()
        except (EOFError, ConnectionError):
            process.join(END_SECONDS)
            results.put((number, None, WorkerDiedError(_ending(process.exitcode))))
            return
        except Exception as problem:  # any: an argument that cannot be pickled
            result, error = None, problem
        results.put((number, result, error))


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _work(connection: Any, function: Callable[[Any], Any]) -> None:
    """Body of a process: until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it, which ends its update
    while True:
        try:
            argument = connection.recv()
        except EOFError:
            return
        try:
            reply: tuple[Any, Exception | None] = function(argument), None
        except C2FError as error:
            reply = None, error
        connection.send(reply)


def _end(processes: Sequence[Any], connections: Sequence[Any]) -> None:
    for process in processes:
        process.kill()  # a function may ignore SIGTERM
    for process in processes:
        process.join(END_SECONDS)
    for connection in connections:
        connection.close()
