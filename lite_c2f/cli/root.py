"""Root of the command `lite-c2f`, and the arguments that its subcommands share."""

import re
from pathlib import Path
from typing import Annotated

import typer

from lite_c2f.runs.published import check_actors_published

app = typer.Typer(
    name="lite-c2f",
    help="Mistral-C2F on one GPU: reward model, PPO with Continuous Maximization, Knowledge Residue Merger.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

OVERRIDE = re.compile(r"[a-z_]+(\.\w+)*=")
CONFIG_HELP = "A YAML file, such as configs/toy.yaml; a first KEY=VALUE instead changes the defaults."


def _without_null(name: str) -> str:
    if "\0" in name:  # not allowed in file names
        raise typer.BadParameter("embedded null byte")
    return name


def config_and_overrides(config: str, overrides: list[str] | None) -> tuple[Path | None, list[str]]:
    """(configuration file, overrides); the file is None if the first word is an override already.

    >>> config_and_overrides("run.seed=1", ["lora.r=4"])
    (None, ['run.seed=1', 'lora.r=4'])
    """
    settings = list(overrides or [])
    if OVERRIDE.match(config) and not is_file(config):
        return None, [config, *settings]
    return Path(config), settings


def is_file(name: str) -> bool:
    """Whether the file exists; False for names that the system refuses."""
    try:
        return Path(name).is_file()
    except OSError:
        return False


def checked_run(run: Path) -> Path:
    """The run directory. Raises RunError before slow imports if its Coarse or Fine Actor is not published."""
    check_actors_published(run)
    return run


TRAIN_GROUP, LOOK_GROUP, TOOLS_GROUP = "Train", "Look", "Tools"  # groups of commands in --help
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", callback=checked_run)]
Config = Annotated[str, typer.Argument(metavar="CONFIG", help=CONFIG_HELP, callback=_without_null)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")]


def _print_version(version: bool) -> None:
    if version:
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
    """The options that all commands share, which are read by `exit_codes` and by the callback."""
