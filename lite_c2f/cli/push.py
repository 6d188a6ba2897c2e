"""Subcommand push: upload of a run's results to the Hugging Face hub."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lite_c2f.cli import exit_codes
from lite_c2f.cli.root import TOOLS_GROUP, app
from lite_c2f.runs.published import check_run_folder


class What(StrEnum):
    """Parts of a run that can be uploaded."""

    adapter = "adapter"
    fine = "fine"
    gguf = "gguf"


def _checked_folder(run: Path) -> Path:
    check_run_folder(run)
    return run


@app.command(rich_help_panel=TOOLS_GROUP, epilog="Example: lite-c2f push runs/toy --to me/toy-coarse --dry-run")
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", callback=_checked_folder)],
    to: Annotated[str, typer.Option(metavar="OWNER/NAME", help="The model repo; made if it is not there.")],
    what: Annotated[
        What, typer.Option(help="The Coarse Actor's adapter, the Fine Actor's folder, or the residue as a GGUF LoRA.")
    ] = What.adapter,
    private: Annotated[bool, typer.Option("--private", help="Make the new repo private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print files and card; use no network.")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", help="Licence in the card (default: from the card of the model's base).")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the token (default: HF_TOKEN, or that of `hf auth login`).")
    ] = None,
) -> None:
    """Upload a run's adapter, merged model or GGUF adapter with a model card to the Hugging Face hub, in one commit."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if sys.stderr.isatty() else "1")
    exit_codes.silence_libraries()
    from lite_c2f.pipeline.push import hub_api, prepared, push_run

    api = None if dry_run else hub_api(token_file)
    with prepared(run, to, what.value, licence=licence, api=api) as upload:
        for name, size in upload.sizes.items():
            typer.echo(f"{size:>15,} bytes  {name}")
        for name in upload.left_out:
            typer.echo(f"left out, no part of a model: {name}", err=True)
        if api is None:
            card = upload.files["README.md"]
            assert isinstance(card, bytes)  # written just now
            typer.echo(f"\n{card.decode()}\nnothing was uploaded: --dry-run")
            return
        url = push_run(upload, to, what.value, private=private, api=api, weights_of=run.resolve().name)
    typer.echo(f"uploaded: {url}")
