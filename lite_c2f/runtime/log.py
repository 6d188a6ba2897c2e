"""Log of a run, RUN/log.txt: its commands, messages and how each ended, with times and without secrets."""

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
PROGRESS_SECONDS = 30.0  # seconds between lines about progress
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
    """The text with everything masked that looks like a token, a password in a URL, or the value of a secret.

    >>> redact("https://me:pw@host/x")
    'https://***@host/x'
    """
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


class LoggedSink:
    """A progress sink that also writes messages, stages and some steps to the log."""

    def __init__(self, sink: ProgressSink) -> None:
        self._sink, self._name, self._total, self._last = sink, "", 0, time.monotonic()
        self.on_tokens = sink.on_tokens

    def on_step(self, done: int, values: dict[str, float]) -> None:
        if values and time.monotonic() - self._last >= PROGRESS_SECONDS:
            self._last = time.monotonic()
            log.info("%s %d/%s  %s", self._name, done, self._total or "?", _format_values(values))
        self._sink.on_step(done, values)

    def on_stage(self, name: str, total: int, unit: str) -> None:
        if name != self._name or not self._total:  # an estimated total may change at every step
            log.info("%s%s", name, f": {total} {unit}" if total else "")
        self._name, self._total = name, total
        self._sink.on_stage(name, total, unit)

    def on_message(self, text: str) -> None:
        log.info("%s", text)
        self._sink.on_message(text)


@contextlib.contextmanager
def written_to_log(run: Path) -> Iterator[None]:
    """Append log records in the block to RUN/log.txt: our own, the libraries' warnings, and how the block ended."""
    handler = _LogFile(run / FILE, encoding="utf-8", delay=True)
    handler.setFormatter(_Redacted("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, ours = logging.getLogger(), logging.getLogger("lite_c2f")
    unpropagated = [logger for name in LIBRARIES if not (logger := logging.getLogger(name)).propagate]
    handler.addFilter(lambda record: record.name.startswith("lite_c2f") or record.levelno >= logging.WARNING)
    before = ours.level, ours.propagate
    for logger in (root, *unpropagated):
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
        for logger in (root, *unpropagated):
            logger.removeHandler(handler)
        ours.removeHandler(quiet)
        ours.setLevel(before[0])
        ours.propagate = before[1]
        handler.close()


def last_line(run: Path) -> str:
    """The last message in RUN/log.txt, without the traceback after it; "" if there is none."""
    try:
        lines = (run / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line for line in reversed(lines) if re.match(r"\d{4}-\d\d-\d\d \d\d:", line)), "")


def _format_values(values: dict[str, float]) -> str:
    shown = ("reward", "limit", "hit_limit", "kl", "loss", "accuracy", "eos")
    return "  ".join(f"{name} {values[name]:.4g}" for name in shown if name in values)


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Ignore errors: a full disk is reported by whatever else needs it."""


class _Redacted(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
