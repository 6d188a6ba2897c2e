"""Subcommands that chat with a run: chat, app, serve."""

import gc
from pathlib import Path
from typing import Annotated

import typer

from lite_c2f.cli import exit_codes
from lite_c2f.cli.root import LOOK_GROUP, Run, app
from lite_c2f.errors import ConfigError
from lite_c2f.runtime.lingering_threads import exit_if_lingering

KEY_VARIABLE = "LITE_C2F_API_KEY"


@app.command(rich_help_panel=LOOK_GROUP, epilog="Example: lite-c2f chat runs/toy")
def chat(run: Run) -> None:
    """Talk to Coarse, Fine and baseline in the terminal."""
    exit_codes.silence_libraries()
    from lite_c2f.cli.chat_terminal import run_terminal

    run_terminal(run)


@app.command("app", rich_help_panel=LOOK_GROUP, epilog="Example: lite-c2f app runs/toy --port 7860")
def web(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run directory (default: runs/toy).")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback needs --auth.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 7860,
    auth: Annotated[
        str | None,
        typer.Option(help="user:password; other users cannot see it in the variable.", envvar="LITE_C2F_AUTH"),
    ] = None,
    root_path: Annotated[
        str | None, typer.Option(help="Behind a proxy: the page's address there, or its path alone.")
    ] = None,
    merged: Annotated[
        bool, typer.Option(help="Also load the published model, and use it for the Fine Actor at the merged ratio.")
    ] = False,
    training: Annotated[
        bool | None,
        typer.Option(help="May visitors start and stop training? By default where only this machine is served."),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="A server with OpenAI's interface, such as http://host:8000/v1, whose models can answer too. "
            "Once for each server, or as URL#NAME for each model that it does not list; a key for them comes from "
            "LITE_C2F_ALSO_KEY.",
        ),
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", exists=True, file_okay=False, help="A folder of model folders, which can answer too."
        ),
    ] = None,
) -> None:
    """Coarse, Fine and baseline side by side in the browser (the same as `python app.py RUN`)."""
    from lite_c2f.runtime.chat_servers import ALSO_KEY_VARIABLE, checked_places
    from lite_c2f.ui.address import check_address, find_run, parse_auth
    from lite_c2f.ui.gradio_import import without_stubs

    checked_places(also or [], "--also", ALSO_KEY_VARIABLE)
    check_address(host, port, parse_auth(auth), root_path)  # before libraries are imported
    find_run(run)
    exit_codes.silence_libraries()
    with without_stubs():
        from lite_c2f.ui.app import serve

    serve(run, host, port, auth, root_path, merged=merged, also=also or (), models=models, training=training)
    exit_if_lingering(0)


@app.command(rich_help_panel=LOOK_GROUP, epilog="Example: lite-c2f serve runs/toy --port 8000")
def serve(
    run: Run,
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback needs --api-key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Key that clients must send; other users cannot see it in the variable.", envvar=KEY_VARIABLE
        ),
    ] = None,
    merged: Annotated[
        bool, typer.Option(help="Also load the published model, and use it for the Fine Actor at the merged ratio.")
    ] = False,
    open_to_all: Annotated[
        bool, typer.Option("--open-to-all", help="Serve other machines without a key.", show_default=False)
    ] = False,
) -> None:
    """The actors behind an OpenAI-compatible HTTP interface, for scripts and chat clients."""
    from lite_c2f.runtime.address import bound_socket, checked_key, is_loopback

    key = checked_key(api_key)
    if key is None and not open_to_all and not is_loopback(host):
        expected = f"--api-key or {KEY_VARIABLE}, or --open-to-all"
        raise ConfigError.because(f"--host {host} without a key", expected, "give one, or leave out --host")
    with bound_socket(host, port) as bound:  # held while the models are loaded
        exit_codes.silence_libraries()
        from lite_c2f.chat.server import serve as serve_run

        try:
            serve_run(run, bound, host, key, merged=merged)
        finally:
            gc.freeze()  # else the interpreter looks through all libraries at its end: 16 s on a machine with load 12
