"""Subcommands to talk to a run: chat, app."""

from pathlib import Path
from typing import Annotated

import typer

from lite_c2f import exits
from lite_c2f.cli.root import Run, app


@app.command(epilog="Example: lite-c2f chat runs/toy")
def chat(run: Run) -> None:
    """Talk to Coarse, Fine and baseline in the terminal."""
    exits.quiet()
    from lite_c2f.chat_terminal import run_terminal

    run_terminal(run)


@app.command("app", epilog="Example: lite-c2f app runs/toy --port 7860")
def web(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run directory (default: runs/toy).")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback needs --auth.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 7860,
    auth: Annotated[str | None, typer.Option(help="user:password")] = None,
    root_path: Annotated[str | None, typer.Option(help="Path prefix behind a proxy.")] = None,
) -> None:
    """Coarse, Fine and baseline side by side in the browser (the same as `python app.py RUN`)."""
    exits.quiet()
    from lite_c2f.ui.app import serve

    serve(run, host, port, auth, root_path)
