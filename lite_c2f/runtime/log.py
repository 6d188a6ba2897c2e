"""RUN/log.txt: what a run was told to do, what it said and how it ended, with times; no secrets."""

import contextlib
import logging
import platform
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lite_c2f.errors import C2FError
from lite_c2f.runtime import distributed
from lite_c2f.runtime.disk_errors import refusal
from lite_c2f.runtime.progress import ProgressSink

FILE = "log.txt"
EVERY = 30.0  # seconds between lines about progress
LIBRARIES = ("transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes", "huggingface_hub", "lm_eval")
SECRETS = (
    (re.compile(r"\b(hf|sk|gh[a-z]|github_pat|glpat|xox[a-z])([_-])[A-Za-z0-9_-]{8,}"), r"\1\2***"),
    (re.compile(r"\bAKIA[A-Z0-9]{12,}"), "AKIA***"),
    (re.compile(r"(://)[^\s\"']*@"), r"\1***@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s\"',}]+"), r"\1 ***"),
    (
        re.compile(
            r"(?i)([\w-]*(?:token|password|passwd|passphrase|secret|api[_-]?key|access[_-]?key)\b[\"']?\s*[=:]\s*)"
            r"(\"[^\"]*\"|'[^']*'|[^\s,}]+)"
        ),
        r"\1***",
    ),
    (re.compile(r"(?i)(--(?:auth|password|token|key)[= ])\S+"), r"\1***"),
)
log = logging.getLogger("lite_c2f.run")


def redact(text: str) -> str:
    """Text without what looks like a token, a password in an address, or the value of a secret.

    >>> redact("https://me:pw@host/x")
    'https://***@host/x'
    """
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    return text


class LoggedSink:
    """A sink whose notes and stages are also written to the log."""

    def __init__(self, sink: ProgressSink) -> None:
        self._sink, self._name, self._total, self._last = sink, "", 0, time.monotonic()
        self.on_tokens = sink.on_tokens

    def on_step(self, done: int, values: dict[str, float]) -> None:
        if values and time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            log.info("%s %d/%s  %s", self._name, done, self._total or "?", _short(values))
        self._sink.on_step(done, values)

    def on_stage(self, name: str, total: int, unit: str) -> None:
        if name != self._name or not self._total:  # a length that was only estimated may change at every step
            log.info("%s%s", name, f": {total} {unit}" if total else "")
        self._name, self._total = name, total
        self._sink.on_stage(name, total, unit)

    def on_message(self, text: str) -> None:
        log.info("%s", text)
        self._sink.on_message(text)


@contextlib.contextmanager
def written_to_log(run: Path) -> Iterator[None]:
    """Append what is logged inside the block to RUN/log.txt: our own lines, the libraries' warnings, how it ended."""
    handler = _File(run / FILE, encoding="utf-8", delay=True)
    handler.setFormatter(_Redacted("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, ours = logging.getLogger(), logging.getLogger("lite_c2f")
    apart = [logger for name in LIBRARIES if not (logger := logging.getLogger(name)).propagate]
    handler.addFilter(lambda record: record.name.startswith("lite_c2f") or record.levelno >= logging.WARNING)
    before = ours.level, ours.propagate
    for logger in (root, *apart):
        logger.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = True
    quiet = logging.NullHandler()  # without a handler of its own, the root would print warnings on the terminal
    ours.addHandler(quiet)
    try:
        log.info("started: %s (Python %s, %s)", " ".join(sys.argv), platform.python_version(), platform.platform())
        yield
        log.info("ended")
    except KeyboardInterrupt:
        log.info("interrupted")
        raise
    except C2FError as error:
        log.error("%s", error, exc_info=True)
        raise
    except Exception as error:
        message = refusal(error)
        if message is not None or distributed.is_lost(error):
            log.error("%s", message or "another process ended", exc_info=True)
        else:
            log.exception("a bug: please report it with this file")
        raise
    finally:
        for logger in (root, *apart):
            logger.removeHandler(handler)
        ours.removeHandler(quiet)
        ours.setLevel(before[0])
        ours.propagate = before[1]
        handler.close()


def last_line(run: Path) -> str:
    """The last message in RUN/log.txt, without the traceback below it; "" where there is none."""
    try:
        lines = (run / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line for line in reversed(lines) if re.match(r"\d{4}-\d\d-\d\d \d\d:", line)), "")


def _short(values: dict[str, float]) -> str:
    shown = ("reward", "limit", "hit_limit", "kl", "loss", "accuracy", "eos")
    return "  ".join(f"{name} {values[name]:.4g}" for name in shown if name in values)


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """A full disk is told by whoever needs it; a log that cannot be written is no reason to say more."""


class _Redacted(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
