"""Subcommands of the Knowledge Residue Merger: merge, sweep."""

import json
import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lite_c2f.cli import exit_codes
from lite_c2f.cli.root import TRAIN_GROUP, Run, app
from lite_c2f.errors import ConfigError
from lite_c2f.fine.sparsify import NONE, SPARSIFY, Treatment


class Rounding(StrEnum):
    """Rounding modes of merged weights."""

    nearest = "nearest"
    stochastic = "stochastic"


class Dtype(StrEnum):
    """Dtypes of merged weights."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


@app.command(
    rich_help_panel=TRAIN_GROUP,
    epilog="Example: lite-c2f merge --adapter runs/a/coarse/adapter --base B --instruct I --out fine --ratio 0.75",
)
def merge(
    adapter: Annotated[Path, typer.Option(help="LoRA adapter folder, whose weight change (the residue) is added.")],
    base: Annotated[Path, typer.Option(help="The model the adapter was trained on: a folder or a .gguf file.")],
    instruct: Annotated[Path, typer.Option(help="The model to merge into: a folder or a .gguf file.")],
    out: Annotated[Path, typer.Option(help="New folder for the merged model.")],
    ratio: Annotated[float, typer.Option(help="Multiple of the residue to add.")] = 1.0,
    layer_ratios: Annotated[
        Path | None,
        typer.Option(help="YAML of name patterns and ratios; a list of numbers is interpolated over the layers."),
    ] = None,
    allow_negative: Annotated[bool, typer.Option(help="Allow negative ratios.")] = False,
    sparsify: Annotated[
        str, typer.Option(metavar="|".join(SPARSIFY), help="Sparsify the residue; needs --density.")
    ] = NONE,
    density: Annotated[float | None, typer.Option(help="Share of the residue's elements to keep, 0 to 1.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of dare and of stochastic rounding.")] = 0,
    norm_cap: Annotated[
        float | None, typer.Option(help="Most |change| / |W| of a weight, Frobenius norms, e.g. 0.05.")
    ] = None,
    rounding: Annotated[Rounding, typer.Option(help="nearest, or stochastic (bfloat16 only).")] = Rounding.nearest,
    dtype: Annotated[Dtype | None, typer.Option(help="Dtype of the result (default: the instruct model's).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep finished shards of an interrupted merge.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Load the result and compare its logits with the unmerged adapter's.")
    ] = False,
    prompt: Annotated[str, typer.Option(help="Text that --verify uses.")] = "Why is the sky blue?",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report's totals as JSON.")] = False,
) -> None:
    """The Knowledge Residue Merger alone: W_fine = W_instruct + ratio * dW."""
    verify_prompt = prompt if verify else None
    if verify:
        exit_codes.silence_libraries()
    from lite_c2f.cli.tables import print_merge
    from lite_c2f.cli.terminal import TerminalSink
    from lite_c2f.fine.merge import merge as run_merge
    from lite_c2f.fine.merge import to_sink

    sink = TerminalSink()
    try:
        report = run_merge(
            adapter,
            base,
            instruct,
            out,
            ratio,
            layer_ratios,
            dtype.value if dtype else None,
            allow_negative,
            progress=to_sink(sink),
            treatment=Treatment(sparsify, density, seed, norm_cap, rounding.value),
            resume=resume,
            verify=verify_prompt,
            notice=sink.on_message,
        )
    except KeyboardInterrupt:
        sink.close()
        typer.echo("interrupted; finished shards are kept. Continue with: the same command and --resume", err=True)
        raise
    finally:
        sink.close()
    if as_json:
        totals = {"out": str(out), "ratio": report.ratio, **report.totals, "verified": report.verified}
        typer.echo(json.dumps(totals))
    else:
        print_merge(report, out)


def parse_ratios(text: str) -> list[float]:
    """Ratios of a comma-separated text. Raises ConfigError for anything but finite numbers above 0.

    >>> parse_ratios("0.5,1")
    [0.5, 1.0]
    """
    try:
        ratios = [float(part) for part in text.split(",")]
    except ValueError:
        ratios = []
    if not ratios or not all(math.isfinite(ratio) and ratio > 0 for ratio in ratios):
        raise ConfigError.because(f"--ratios '{text}'", "numbers above 0 with commas between", "write e.g. 0.5,0.75,1")
    return ratios


def _checked_ratios(text: str) -> str:
    parse_ratios(text)  # fails before the slow imports
    return text


@app.command(rich_help_panel=TRAIN_GROUP, epilog="Example: lite-c2f sweep runs/toy --ratios 0.25,0.5,0.75,1.0,1.25")
def sweep(
    run: Run,
    ratios: Annotated[
        str, typer.Option(help="Ratios, with commas between.", callback=_checked_ratios, is_eager=True)
    ] = "0.25,0.5,0.75,1.0",
    per_layer_groups: Annotated[
        bool, typer.Option("--per-layer-groups", help="Then search a ratio for each group of layers.")
    ] = False,
    budget: Annotated[int, typer.Option(min=4, help="Trials of --per-layer-groups; 15 covers all groups.")] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score ratios of the residue without merging; writes RUN/fine/sweep.json and its curve sweep.svg."""
    exit_codes.silence_libraries()
    parsed_ratios = parse_ratios(ratios)
    from lite_c2f.cli.tables import ratio_table
    from lite_c2f.cli.terminal import TerminalSink
    from lite_c2f.pipeline.comparison import sweep as run_sweep
    from lite_c2f.runs.manifest import open_run

    sink = TerminalSink()
    with exit_codes.interruption_hint(sink.close, "the same command"):
        result = run_sweep(run, parsed_ratios, sink=sink, group_budget=budget if per_layer_groups else 0)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        ratio_table(result, run, open_run(run)[1])
