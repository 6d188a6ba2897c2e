"""The command line: a thin layer over the Python API. Heavy imports are inside the commands."""

import sys

from lite_c2f.cli import exit_codes
from lite_c2f.cli.root import app

# in the order of --help
# isort: off
from lite_c2f.cli import train, merge, chat, evaluate, votes, tools  # noqa: F401  they add their subcommands
# isort: on

__all__ = ["app", "main"]


def main(arguments: list[str] | None = None) -> None:
    """Entry point: 0 done, 2 the user can fix it, 1 a bug, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    commands = {command.name or str(getattr(command.callback, "__name__", "")) for command in app.registered_commands}
    with exit_codes.codes(words, commands):
        code = app(args=exit_codes.debug_first(words), standalone_mode=False)
    if code:  # typer hands back 130 for Ctrl-C
        sys.exit(code)
