"""A chat with the actors in the terminal: live panels for a person, plain lines for a pipe."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from lite_c2f.actors.reply import Reply
from lite_c2f.chat import PANES, TITLES, Chat, ChatSettings, with_answers
from lite_c2f.data.records import Turn
from lite_c2f.errors import C2FError, ConfigError

REFRESH = 20  # screen updates a second
WIDE = 100  # columns of a terminal in which answers stand side by side
HELP = "/ratio 0.5   /seed 1   /tokens 256   /clear   /help   /quit"


def run_terminal(run_dir: str | Path) -> None:
    """Chat with the three actors of a run; prompts from a pipe are answered line by line, plainly.

    Commands: /ratio 0.5, /seed N, /tokens N, /clear, /quit. Raises RunError for an unfinished run.
    """
    console = Console()
    with console.status("Loading models ...") if console.is_terminal else contextlib.nullcontext():
        chat = Chat(run_dir)
    ChatTerminal(chat, console, live=sys.stdin.isatty() and console.is_terminal).loop()


class ChatTerminal:
    """A chat in the terminal: conversations and settings between prompts."""

    def __init__(self, chat: Chat, console: Console, *, live: bool) -> None:
        self.chat, self.console, self.live = chat, console, live
        self.settings = ChatSettings()
        self.histories: dict[str, list[Turn]] = {pane: [] for pane in PANES}

    def loop(self) -> None:
        """Answer until the input ends."""
        if self.live:
            self.console.print(f"[bold]Coarse, Fine and Baseline.[/] {HELP}", highlight=False)
        for line in self._lines():
            try:
                if line.startswith("/"):
                    if not self._command(*line[1:].split(maxsplit=1)):
                        return
                elif line:
                    self._ask(line)
            except C2FError as error:
                self.console.print(Text(f"error: {error}"), style="red", soft_wrap=True)

    def _lines(self) -> Iterator[str]:
        if not self.live:
            yield from (line.strip() for line in sys.stdin)
            return
        while True:
            try:
                yield self.console.input("\n[bold]> [/]").strip()
            except (EOFError, KeyboardInterrupt):
                self.console.print()
                return

    def _command(self, name: str = "", value: str = "") -> bool:
        """Carry out one command; False means leave."""
        if name == "quit":
            return False
        if name == "help":
            self.console.print(HELP, highlight=False)
            return True
        names = {"ratio": ("ratio", float), "seed": ("seed", int), "tokens": ("max_tokens", int)}
        if name == "clear":
            self.histories = {pane: [] for pane in PANES}
            return True
        if name not in names:
            raise ConfigError.because(f"command '/{name}'", HELP, "type one of these")
        key, kind = names[name]
        try:
            settings = self.settings._replace(**{key: kind(value)})
        except ValueError:
            raise ConfigError.because(f"/{name} '{value}'", "a number", f"type /{name} 1") from None
        self.chat.check(settings)
        self.settings = settings
        return True

    def _ask(self, prompt: str) -> None:
        histories = {pane: [*turns, Turn("human", prompt)] for pane, turns in self.histories.items()}
        events = {pane: Reply(pane, "", 0, 0.0, None) for pane in PANES}
        stream = self.chat.stream(histories, settings=self.settings)
        if self.live:
            events = self._watch(stream, events)
            self.console.print(_panels(events, self.console.width))
        else:
            events.update({event.pane: event for event in stream})
            for event in events.values():
                self.console.print(Text(f"{event.pane} ({event.status}): {printable(event.text)}"), soft_wrap=True)
        self.histories = with_answers(histories, events)

    def _watch(self, stream: Iterator[Reply], events: dict[str, Reply]) -> dict[str, Reply]:
        """Show the answers while they grow; Ctrl-C ends them."""
        width, drawn = self.console.width, 0.0
        with Live(_panels(events, width), console=self.console, auto_refresh=False, transient=True) as live:
            try:
                for event in stream:
                    events[event.pane] = event
                    if time.monotonic() - drawn > 1 / REFRESH:
                        drawn = time.monotonic()
                        live.update(_panels(events, width), refresh=True)
            except KeyboardInterrupt:
                return {
                    pane: event if event.finish else event._replace(finish="stopped") for pane, event in events.items()
                }
        return events


def _panels(events: Mapping[str, Reply], width: int) -> Columns | Group:
    """The answers side by side where there is room, else one below the other."""
    wide = width >= WIDE
    panels = [
        Panel(
            Group(Text(printable(event.text)), Text(event.status, style="dim")),
            title=TITLES[event.pane],
            width=width // len(events) - 1 if wide else None,
        )
        for event in events.values()
    ]
    return Columns(panels, padding=(0, 1, 0, 0)) if wide else Group(*panels)


def printable(text: str) -> str:
    """Text without control characters: a model may not steer the terminal."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")
