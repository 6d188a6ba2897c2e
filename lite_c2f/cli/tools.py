"""Subcommands that work without a run: doctor, schema."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lite_c2f.cli import exit_codes
from lite_c2f.cli.root import TOOLS_GROUP, app
from lite_c2f.errors import RunError


@app.command(rich_help_panel=TOOLS_GROUP, epilog="Example: lite-c2f doctor runs/toy")
def doctor(
    run_or_models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN | MODEL...]",
            help="One run: report its state. Model folders or GGUF files: are tokenizer and files sound?",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Versions, GPU, disk and whether bitsandbytes 4-bit works, for a problem report; or the state of a run."""
    from lite_c2f.cli.train import unpack
    from lite_c2f.gguf import is_packed, unpacked

    given = run_or_models or []
    unpack(*map(str, given))
    folders = [unpacked(str(path)) if is_packed(str(path)) else path for path in given]
    for folder in folders:  # before slow imports
        if not folder.is_dir():
            problem, expected = f"'{folder}' is no directory", "one with run.json or config.json in it"
            raise RunError.because(problem, expected, "check the path, or make a run with `lite-c2f demo`")
    runs = [folder for folder in folders if (folder / "run.json").is_file()]
    if runs and len(folders) > 1:
        problem = f"'{runs[0]}' is a run, among several folders"
        raise RunError.because(problem, "one run, or model folders", "run `lite-c2f doctor RUN` for each run")
    exit_codes.silence_libraries()
    from lite_c2f.cli.doctor import run_report, system_report

    is_run = len(folders) == 1 and not (folders[0] / "config.json").is_file()
    report = run_report(folders[0]) if is_run else system_report(folders)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        problems = report.pop("problems")
        typer.echo("\n".join(f"{name:<18} {value}" for name, value in report.items()))
        typer.echo("\n".join(f"{'problem':<18} {problem}" for problem in problems) or f"{'problems':<18} none")
        report["problems"] = problems
    if report["problems"]:
        raise typer.Exit(2)


@app.command(rich_help_panel=TOOLS_GROUP, epilog="Example: lite-c2f schema coarse.length")
def schema(
    key: Annotated[str, typer.Argument(metavar="[KEY]", help="Only this key, or this section.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON schema.")] = False,
) -> None:
    """Every configuration key with its default and its meaning."""
    from lite_c2f.config.loading import documented_keys
    from lite_c2f.config.loading import schema as config_schema

    if as_json:
        typer.echo(json.dumps(config_schema(), indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("key", "default", "meaning", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for setting in documented_keys(key):
        table.add_row(Text(setting.key, style="bold"), Text(setting.default), Text(setting.meaning))
    Console(highlight=False).print(table)
