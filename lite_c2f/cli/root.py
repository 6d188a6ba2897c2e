"""The command `lite-c2f` itself, and what its subcommands share."""

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

SETTING = re.compile(r"[a-z_]+(\.\w+)*=")
CONFIG = "A YAML file, such as configs/toy.yaml; a first KEY=VALUE instead changes the defaults."


def _without_zero(name: str) -> str:
    if "\0" in name:  # no file has one
        raise typer.BadParameter("embedded null byte")
    return name


def config_and_overrides(config: str, overrides: list[str] | None) -> tuple[Path | None, list[str]]:
    """The configuration file, None where the first word is a setting already, and all settings.

    >>> config_and_overrides("run.seed=1", ["lora.r=4"])
    (None, ['run.seed=1', 'lora.r=4'])
    """
    settings = list(overrides or [])
    if SETTING.match(config) and not is_file(config):
        return None, [config, *settings]
    return Path(config), settings


def is_file(name: str) -> bool:
    """Is there such a file? Not under a name that no disk takes."""
    try:
        return Path(name).is_file()
    except OSError:
        return False


def finished_run(run: Path) -> Path:
    """The run directory, refused before any library is imported where it has no actors to ask."""
    check_actors_published(run)
    return run


TRAIN, LOOK, TOOLS = "Train", "Look", "Tools"  # groups of commands in --help
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", callback=finished_run)]
Config = Annotated[str, typer.Argument(metavar="CONFIG", help=CONFIG, callback=_without_zero)]
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
