"""RUN/log.txt as it is read back: which part of which stage began when, and how the run was left."""

import re
import time
from collections.abc import Sequence
from typing import NamedTuple

STAGE_OF = {  # what the log calls the parts of a stage
    "reward model": "reward",
    "coarse actor": "coarse",
    "ratios": "fine",
    "groups": "fine",
    "merge": "fine",
    "comparison": "comparison",
}
PARTS = "|".join(STAGE_OF)
BEGINS = re.compile(rf"({PARTS})(?:: (\d+) \w+)?")
ADVANCES = re.compile(rf"({PARTS}) \d+/(\d+)  .*")
GOES_ON = re.compile(r"reward model: going on after step (\d+), .*")
ENTRY = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) (\w+) ([\w.]+): (.*)")
STARTED, ASKED = "started: ", "finishing this step and saving; once more stops at once"


class LogEntry(NamedTuple):
    """A line of the log; the lines of a traceback have only their text."""

    text: str
    when: float = 0.0  # seconds since the epoch
    level: str = ""
    message: str = ""


class Part(NamedTuple):
    """A part of a stage that was begun."""

    name: str  # as the log calls it
    stage: str
    when: float
    total: int | None  # of its steps, None where that was not known yet


def entry(line: bytes) -> LogEntry:
    """A line of the log, whatever it holds."""
    text = line.decode("utf-8", errors="replace").rstrip("\r")
    found = ENTRY.fullmatch(text)
    try:
        if found is None:
            return LogEntry(text)
        when = time.mktime(time.strptime(found[1], "%Y-%m-%d %H:%M:%S")) + int(found[2]) / 1000
    except (ValueError, OverflowError):
        return LogEntry(text)
    return LogEntry(text, when, found[3], found[5])


def last_session(log: Sequence[LogEntry], since: float | None = None) -> Sequence[LogEntry]:
    """What was logged from the last start on. since: nothing, where that start was before this time."""
    for place in reversed(range(len(log))):
        if log[place].message.startswith(STARTED):
            return [] if since is not None and log[place].when < since else log[place:]
    return []


def parts(session: Sequence[LogEntry]) -> list[Part]:
    """The parts of stages in the order in which they began; one that is told twice is there twice."""
    found = []
    for line in session:
        if told := BEGINS.fullmatch(line.message):
            found.append(Part(told[1], STAGE_OF[told[1]], line.when, int(told[2]) if told[2] else None))
        elif told := ADVANCES.fullmatch(line.message):
            found.append(Part(told[1], STAGE_OF[told[1]], line.when, int(told[2])))
    return found


def first_step(session: Sequence[LogEntry]) -> int:
    """The step of the reward model that this start did first."""
    steps = [int(found[1]) for line in session if (found := GOES_ON.fullmatch(line.message))]
    return steps[-1] + 1 if steps else 1


def was_asked(session: Sequence[LogEntry]) -> bool:
    """Has this start been asked to end?"""
    return any(line.message.endswith(ASKED) for line in session)


def last_entry(log: Sequence[LogEntry]) -> LogEntry | None:
    """The last line with a time; a traceback follows the line of its error."""
    return next((line for line in reversed(log) if line.when), None)
