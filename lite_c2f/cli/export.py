"""Subcommand export: the residue for other programs."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lite_c2f.cli import exit_codes
from lite_c2f.cli.root import TRAIN_GROUP, app, checked_run
from lite_c2f.errors import ConfigError


class AdapterDtype(StrEnum):
    """Dtypes of a GGUF adapter."""

    float32 = "float32"
    float16 = "float16"


def _optional_run(run: Path | None) -> Path | None:
    return None if run is None else checked_run(run)


@app.command(
    rich_help_panel=TRAIN_GROUP,
    epilog="Example: lite-c2f export runs/mistral-7b --gguf-adapter residue/residue.gguf",
)
def export(
    gguf_adapter: Annotated[
        Path, typer.Option(help="The new .gguf file; a Modelfile for Ollama and a README are put beside it.")
    ],
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A run directory.", callback=_optional_run)
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="Instead of a run: a LoRA adapter folder, and --model.")] = None,
    model: Annotated[Path | None, typer.Option(help="The model it will be added to: a folder or a .gguf file.")] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Fold this ratio in, for programs without a scale (default: none).")
    ] = None,
    layer_ratios: Annotated[
        Path | None, typer.Option(help="Fold in a YAML of name patterns and ratios, as in `merge`.")
    ] = None,
    dtype: Annotated[AdapterDtype, typer.Option(help="Dtype of the file.")] = AdapterDtype.float32,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """The residue as a GGUF LoRA adapter for llama.cpp, Ollama and programs on top of them."""
    if (run is None) != (adapter is not None and model is not None) or (run and (adapter or model)):
        got = "a run and --adapter or --model" if run is not None else "no run, and not both of --adapter and --model"
        raise ConfigError.because(got, "a run, or --adapter with --model", "give one of the two")
    exit_codes.silence_libraries()
    from lite_c2f.fine.gguf_adapter import export_adapter, export_run

    def notice(text: str) -> None:
        typer.echo(text, err=True)

    if adapter is not None and model is not None:
        plain = 1.0 if ratio is None else ratio
        written = export_adapter(
            adapter, model, gguf_adapter, ratio=plain, layer_ratios=layer_ratios, dtype=dtype.value, on_message=notice
        )
    else:
        assert run is not None  # checked above
        written = export_run(
            run, gguf_adapter, ratio=ratio, layer_ratios=layer_ratios, dtype=dtype.value, on_message=notice
        )
    if as_json:
        typer.echo(json.dumps(written._asdict() | {"file": str(written.file)}))
        return
    typer.echo(
        f"{written.file}: {written.weights} weights of {written.architecture}, rank {written.rank}, "
        f"{written.size / 2**20:.1f} MiB; beside it Modelfile and README.md"
    )
    if written.template is None:
        typer.echo("the model's chat template has no known form in Ollama: the Modelfile has no TEMPLATE")
