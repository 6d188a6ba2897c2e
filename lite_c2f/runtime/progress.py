"""Progress of a long command: what it reports to a terminal, a log or a page."""

from typing import Protocol


class ProgressSink(Protocol):
    """Receiver of a run's progress, such as the terminal. Every method may do nothing."""

    def on_stage(self, name: str, total: int, unit: str) -> None:
        """A part of the work begins, or its number of steps is known now. total: 0 if it is not known."""

    def on_step(self, done: int, values: dict[str, float]) -> None:
        """A step is done. done: steps so far; values: metrics of this step."""

    def on_tokens(self, tokens: int) -> None:
        """So many more tokens were sampled in the current step."""

    def on_message(self, text: str) -> None:
        """A message for the user."""


class SilentSink:
    """A sink that shows nothing."""

    def on_stage(self, name: str, total: int, unit: str) -> None:
        pass

    def on_step(self, done: int, values: dict[str, float]) -> None:
        pass

    def on_tokens(self, tokens: int) -> None:
        pass

    def on_message(self, text: str) -> None:
        pass
