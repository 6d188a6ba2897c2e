"""The command line: a thin layer over the Python API. Heavy imports are inside the commands."""

import sys

from lite_c2f.cli import exit_codes
from lite_c2f.cli.root import app
from lite_c2f.runtime.lingering_threads import exit_if_lingering

# in the order of --help
# isort: off
from lite_c2f.cli import train, merge, export, chat, evaluate, votes, push, tools  # noqa: F401  imported to register their subcommands
# isort: on

__all__ = ["app", "main"]


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 2 an error that the user can fix, 1 a bug, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    commands = {command.name or str(getattr(command.callback, "__name__", "")) for command in app.registered_commands}
    try:
        with exit_codes.handled_errors(words, commands):
            code = app(args=exit_codes.move_debug_first(words), standalone_mode=False)
        if code:  # typer returns 130 for Ctrl-C
            sys.exit(code)
    except SystemExit as ended:
        exit_if_lingering(ended.code if isinstance(ended.code, int) else 1)
        raise
