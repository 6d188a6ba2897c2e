"""Progress of a long command: what it reports to a terminal, a log or a page."""

from typing import Protocol


class ProgressSink(Protocol):
    """Receiver of a run's progress, such as the terminal. Every method may do nothing."""

    def on_stage(self, name: str, total: int, unit: str) -> None: ...
    def on_step(self, done: int, values: dict[str, float]) -> None: ...
    def on_tokens(self, tokens: int) -> None: ...
    def on_message(self, text: str) -> None: ...


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
