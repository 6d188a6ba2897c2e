"""The command line in real processes, held and stopped where something is seen to have happened, not by the clock.

Processes are forked from a server that has the libraries loaded: a start takes a moment instead of seconds, and is
then a process like any other.
"""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

PATIENCE = 600.0  # seconds; only a process that hangs takes so long

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["lite_c2f.cli", "lite_c2f.pipeline.train", "lite_c2f.cli.terminal"])


def work(arguments, errors, patch):
    """In the new process: the command line, its messages in a file."""
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests were started with nohup, as a command would
    out = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1), os.dup2(out, 2)
    if patch is not None:
        patch()
    from lite_c2f.cli import main

    main(arguments)


def hold(file, mark, hand):
    """In the new process: wait before the file is written to again, once its text has `mark`.

    `hand` is a folder: the process puts "held" there when it waits, and goes on when there is a "go".
    """
    file, hand = Path(file), Path(hand)

    def watch(event, given):
        writes = event == "open" and "r" not in (given[1] or "r")
        written = given[0] if writes else given[1] if event == "os.rename" else None
        if str(written) != str(file):
            return
        if (hand / "go").exists() or not file.is_file() or mark not in file.read_text(encoding="utf-8"):
            return
        (hand / "held").touch()
        while not (hand / "go").exists():
            time.sleep(0.005)

    hand.mkdir(exist_ok=True)
    sys.addaudithook(watch)


class Command:
    """A command that runs. patch: a function that can be pickled, called first in the new process."""

    def __init__(self, *arguments, patch=None, log):
        self.log = Path(log)
        self.process = server.Process(target=work, args=([str(part) for part in arguments], str(log), patch))
        self.process.start()

    def wait(self):
        """Its exit code; negative for a signal."""
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"still running after {PATIENCE} s: {self.said()}")
        return self.process.exitcode

    def said(self):
        return self.log.read_text() if self.log.is_file() else ""

    def send(self, number):
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def until(self, happened):
        """Wait until something is so, or the command has ended."""
        end = time.monotonic() + PATIENCE
        while self.process.is_alive() and not happened():
            assert time.monotonic() < end, self.said()
            time.sleep(0.005)

    def until_held(self, hand):
        """Wait until it waits; it goes on after `let_go`."""
        self.until((Path(hand) / "held").exists)
        assert (Path(hand) / "held").exists(), self.said()

    @staticmethod
    def let_go(hand):
        (Path(hand) / "go").touch()
