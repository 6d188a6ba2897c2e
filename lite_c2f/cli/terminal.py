"""Progress display of a run: a live bar on a terminal, plain lines elsewhere."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

FIGURES = ("reward", "limit", "hit_limit", "kl", "tokens_per_s", "accuracy", "loss", "ratio", "eos")
PLAIN_LINE_SECONDS = 10.0  # seconds between lines without a terminal


class TerminalSink:
    """Progress sink with a live line on a terminal; otherwise a plain line every ten seconds."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.live: Progress | None = None
        self.task: TaskID | None = None
        self.name, self.total, self.unit = "", 0, "steps"
        self.began = self.last_line = self.last_refresh = 0.0
        self.figures, self.tokens = "", 0
        self.before: int | None = None  # number of steps done by an earlier process

    def on_stage(self, name: str, total: int, unit: str) -> None:
        """Begin a stage, or update its number of steps; total 0: not known yet."""
        if self.live is not None and self.task is not None and name == self.name:
            self.total = total
            self.live.update(self.task, total=total, **self._fields(0))
            return
        if self.live is None and name == self.name:
            self.total = total
            return
        self.close()
        self.name, self.total, self.unit = name, total, unit
        self.began = self.last_line = time.monotonic()
        self.figures, self.tokens, self.before = "", 0, None
        if self.console.is_terminal:
            wide = self.console.width >= 120
            columns = [  # the last column is cut if the line is too short
                TextColumn("{task.description}", table_column=Column(no_wrap=True)),
                *([BarColumn(24)] if wide else []),
                TextColumn("{task.fields[count]}", table_column=Column(no_wrap=True)),
                *([TimeElapsedColumn(), TextColumn("gone")] if wide else []),
                TimeRemainingColumn(compact=not wide, table_column=Column(no_wrap=True)),
                TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
                TextColumn("{task.fields[figures]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            ]
            self.live = Progress(*columns, console=self.console, transient=True, expand=True)
            self.live.start()
            self.task = self.live.add_task(name, total=total or None, figures="", **self._fields(0))
        else:
            self.console.print(f"{name} ...")

    def on_step(self, done: int, values: dict[str, float]) -> None:
        """Show the number of steps done and the figures of the last one."""
        self.figures, self.tokens = format_figures(values), 0
        if self.before is None:
            self.before = max(0, done - 1) if values else done  # without figures: reported by a process that resumes
            if self.before and self.live is not None and self.task is not None:
                self.live.reset(
                    self.task, completed=self.before, total=self.total or None
                )  # for the time left, count only steps of this process
        if self.live is not None and self.task is not None:
            self.live.update(self.task, completed=done, figures=self.figures, **self._fields(done))
        elif time.monotonic() - self.last_line >= PLAIN_LINE_SECONDS:
            self.last_line = time.monotonic()
            left = (time.monotonic() - self.began) / max(done - self.before, 1) * max(self.total - done, 0)
            self.console.print(
                f"{self.name} {done}/{self.total or '?'} {self.unit}  {self.figures}  {duration(left)} left"
            )

    def _fields(self, done: int) -> dict[str, Any]:
        """Texts of the live line: steps done and in all, and what follows the time left; empty until both are known."""
        if not self.total:
            return {"count": "begins ...", "left": ""}
        unit = f" {self.unit}" if self.console.width >= 120 else ""
        return {"count": f"{done}/{self.total}{unit}", "left": "left"}

    def on_tokens(self, tokens: int) -> None:
        """Show the tokens sampled so far in this batch, which may take minutes at 7B."""
        self.tokens += tokens
        if self.live is not None and self.task is not None and time.monotonic() - self.last_refresh > 0.2:
            self.last_refresh = time.monotonic()
            self.live.update(self.task, figures=f"{self.figures}  +{self.tokens} tokens")

    def on_message(self, text: str) -> None:
        """Print a line above the live one."""
        (self.live.console if self.live else self.console).print(Text(text), soft_wrap=True)

    def close(self) -> None:
        """End the live line; printed lines stay."""
        if self.live is not None:
            self.live.stop()
            if (seconds := time.monotonic() - self.began) >= 1 or self.figures:
                self.console.print(Text(f"{self.name}: {seconds:.1f} s"))
            self.live = self.task = None


def duration(seconds: float) -> str:
    """Seconds as they are read at a glance.

    >>> duration(95), duration(3493), duration(9000)
    ('95 s', '58 min', '2 h 30 min')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def format_figures(values: dict[str, float]) -> str:
    """The most important figures in one short text."""
    parts = []
    for name in FIGURES:
        if name in values:
            value = values[name]
            text = f"{value:.0f}" if name in ("limit", "tokens_per_s") else f"{value:.2f}"
            parts.append(f"{name.replace('_per_s', '/s').replace('_', ' ')} {text}")
    return "  ".join(parts)
