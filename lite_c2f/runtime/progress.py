"""What follows a run, and is told of its progress."""

from typing import Protocol


class View(Protocol):
    """What follows a run, such as the terminal. Every method may do nothing."""

    def stage(self, name: str, total: int, unit: str) -> None: ...
    def step(self, done: int, values: dict[str, float]) -> None: ...
    def tick(self, tokens: int) -> None: ...
    def note(self, text: str) -> None: ...


class Silent:
    """A view that shows nothing."""

    def stage(self, name: str, total: int, unit: str) -> None:
        pass

    def step(self, done: int, values: dict[str, float]) -> None:
        pass

    def tick(self, tokens: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass
