"""When the PPO loop saves itself, and how it goes on from what it saved."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lite_c2f.checkpoints import Checkpoint, Checkpoints
from lite_c2f.coarse.progress import Standing
from lite_c2f.config import Config
from lite_c2f.errors import RunError
from lite_c2f.runs import Metrics, cut_lines

SECTIONS = ("model", "data", "lora", "reward", "coarse")


class Saves:
    """Checkpoints of a coarse stage: every so many updates and minutes, and when a signal asks for an end."""

    def __init__(self, config: Config, run: Path, standing: Standing, tell: Callable[[str], None] | None) -> None:
        self._settings, self._run, self._standing, self._tell = config.run, run, standing, tell
        self._store = Checkpoints(run / "coarse" / "checkpoints", config.run.keep_checkpoints)
        self._identity = config.identity(SECTIONS)
        del self._identity["coarse"]["updates"]  # no update depends on how many will follow
        self._last = time.monotonic()

    def resume(self, log: Metrics, samples: Path) -> None:
        """Go on from the newest checkpoint that is whole, or begin; what was logged after it is forgotten.

        Raises RunError naming the setting that is not what the checkpoint was made with.
        """
        found, damaged = self._store.newest()
        for sentence in damaged:
            self._say(sentence)
        step = 0
        if found is not None:
            self._check(found)
            step = found.step
        log.restart("coarse", after=step)
        cut_lines(samples, lambda line: line["step"] <= step)
        if found is not None:
            self._standing.restore(found, self._run)
            self._say(f"coarse: going on after update {step}, from {found.folder}")

    def after_update(self, reward: float, asked: bool) -> None:
        """Save where a checkpoint is due. Raises KeyboardInterrupt, after saving, where an end was asked for."""
        step, settings = self._standing.step, self._settings
        due = step % settings.checkpoint_every == 0
        due = due or time.monotonic() - self._last >= 60 * settings.checkpoint_minutes
        if due or asked:
            checkpoint = self._standing.checkpoint()
            checkpoint.state["identity"] = self._identity
            self._store.save(checkpoint, reward)
            self._last = time.monotonic()
        if asked:
            raise KeyboardInterrupt

    def clear(self) -> None:
        """The stage is published: nothing is left to resume."""
        self._store.clear()

    def _check(self, found: Checkpoint) -> None:
        difference = first_difference(found.state.get("identity"), self._identity)
        if difference is not None:
            key, before, after = difference
            raise RunError.because(
                f"'{found.folder}' was made with {key}={before!r}, now {after!r}",
                "the same value",
                f"set it back, or remove '{self._store.folder}' to begin the coarse stage anew",
            )

    def _say(self, text: str) -> None:
        if self._tell:
            self._tell(text)


def first_difference(before: Any, after: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """(dotted key, value before, value now) of the first difference; None where there is none."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            found = first_difference(before.get(name), after.get(name), f"{key}.{name}".lstrip("."))
            if found is not None:
                return found
        return None
    return None if before == after else (key, before, after)
