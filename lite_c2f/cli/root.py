"""The command `lite-c2f` itself, and what its subcommands share."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="lite-c2f",
    help="Mistral-C2F on one GPU: reward model, PPO with Continuous Maximization, Knowledge Residue Merger.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from lite_c2f import __version__

        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' messages.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    pass
