"""Terminal chat with the actors: live panels on a terminal, plain lines for a pipe."""

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
WIDE = 100  # terminal width from which answers are shown side by side
HELP = "/ratio 0.5   /seed 1   /tokens 256   /clear   /help   /quit"
MEANING = {
    "/ratio 0.5": "how much of the residue Fine has: 0 is Baseline, 1 all of it",
    "/seed 1": "another seed, another answer; the same seed, the same answer",
    "/tokens 256": "the longest answer, in tokens",
    "/clear": "forget the questions and answers so far",
    "/quit": "end the chat, as Ctrl-D does",
}


def run_terminal(run_dir: str | Path) -> None:
    """Chat with the three actors of a run; prompts from a pipe are answered one per line as plain text.

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
        """Run one command; returns False for /quit."""
        if name == "quit":
            return False
        if name == "help":
            for command, meaning in MEANING.items():
                self.console.print(f"{command:<13}{meaning}", highlight=False)
            return True
        names = {"ratio": ("ratio", float), "seed": ("seed", int), "tokens": ("max_tokens", int)}
        if name == "clear":
            self.histories = {pane: [] for pane in PANES}
            return self._said("a new conversation")
        if name not in names:
            raise ConfigError.because(f"command '/{name}'", HELP, "type one of these")
        key, kind = names[name]
        try:
            settings = self.settings._replace(**{key: kind(value)})
        except ValueError:
            raise ConfigError.because(f"/{name} '{value}'", "a number", f"type /{name} 1") from None
        self.chat.check(settings)
        self.settings = settings
        ratio = "ratio as merged" if settings.ratio is None else f"ratio {settings.ratio:g}"
        return self._said(f"{ratio}, seed {settings.seed}, up to {settings.max_tokens} tokens")

    def _said(self, text: str) -> bool:
        """What a command did, to a person; a pipe holds answers alone."""
        if self.live:
            self.console.print(text, style="dim", highlight=False)
        return True

    def _ask(self, prompt: str) -> None:
        histories = {pane: [*turns, Turn("human", prompt)] for pane, turns in self.histories.items()}
        replies = {pane: Reply(pane, "", 0, 0.0, None) for pane in PANES}
        stream = self.chat.stream(histories, settings=self.settings)
        if self.live:
            replies = self._show_live(stream, replies)
            self.console.print(_panels(replies, self.console.width))
        else:
            replies.update({reply.pane: reply for reply in stream})
            for reply in replies.values():
                self.console.print(Text(f"{reply.pane} ({reply.status}): {printable(reply.text)}"), soft_wrap=True)
        self.histories = with_answers(histories, replies)

    def _show_live(self, stream: Iterator[Reply], replies: dict[str, Reply]) -> dict[str, Reply]:
        """Show the answers while they are generated; Ctrl-C stops them."""
        width, drawn = self.console.width, 0.0
        with Live(_panels(replies, width), console=self.console, auto_refresh=False, transient=True) as live:
            try:
                for reply in stream:
                    replies[reply.pane] = reply
                    if time.monotonic() - drawn > 1 / REFRESH:
                        drawn = time.monotonic()
                        live.update(_panels(replies, width), refresh=True)
            except KeyboardInterrupt:
                return {
                    pane: reply if reply.finish else reply._replace(finish="stopped") for pane, reply in replies.items()
                }
        return replies


def _panels(replies: Mapping[str, Reply], width: int) -> Columns | Group:
    """The answers side by side if the terminal is wide enough, else one below the other."""
    wide = width >= WIDE
    panels = [
        Panel(
            Group(Text(printable(reply.text)), Text(reply.status, style="dim")),
            title=TITLES[reply.pane],
            width=width // len(replies) - 1 if wide else None,
        )
        for reply in replies.values()
    ]
    return Columns(panels, padding=(0, 1, 0, 0)) if wide else Group(*panels)


def printable(text: str) -> str:
    """Text without control characters, with which a model could control the terminal."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")
