"""Subcommands that evaluate a run: eval, judge, probe, report."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lite_c2f.cli import exit_codes
from lite_c2f.cli.root import LOOK_GROUP, Overrides, Run, app
from lite_c2f.errors import ConfigError


class JudgeMode(StrEnum):
    """Judging modes."""

    pairwise = "pairwise"
    single = "single"


@app.command(
    "eval", rich_help_panel=LOOK_GROUP, epilog="Example: lite-c2f eval runs/toy --tasks gsm8k,arc_challenge --limit 200"
)
def evaluate(
    run: Run,
    overrides: Overrides = None,
    tasks: Annotated[
        str | None, typer.Option(help="Run lm-eval's tasks instead: names, YAML files, or general-11, commas between.")
    ] = None,
    actors: Annotated[str | None, typer.Option(help="Of fine, instruct, coarse, base, fine@RATIO (unmerged).")] = None,
    baseline: Annotated[str | None, typer.Option(help="The actor that others are compared with (instruct).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most documents of a task.")] = None,
    fewshot: Annotated[int | None, typer.Option(min=0, help="Examples in a prompt (default: each task's own).")] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Use each actor's own prompt template.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare base, instruct, Coarse and Fine again, on held-out prompts or with --tasks on general benchmarks."""
    options = {"actors": actors and actors.split(","), "baseline": baseline, "limit": limit, "fewshot": fewshot}
    options = {
        name: value for name, value in (options | {"chat_template": chat_template or None}).items() if value is not None
    }
    if tasks is None and options:
        option = next(iter(options)).replace("_", "-")
        raise ConfigError.because(f"--{option} without --tasks", "tasks to use it on", "add --tasks, or leave it out")
    exit_codes.silence_libraries()
    if tasks is not None:
        _benchmark(run, tasks.split(","), overrides or [], options, as_json=as_json)
        return
    from lite_c2f.cli.tables import print_summary
    from lite_c2f.cli.terminal import TerminalSink
    from lite_c2f.pipeline.comparison import evaluate as run_evaluate

    sink = TerminalSink()
    with exit_codes.interruption_hint(sink.close, "the same command"):
        summary = run_evaluate(run, overrides or [], sink=sink)
    if as_json:
        typer.echo(json.dumps(summary["actors"]))
    else:
        print_summary(summary, run)


@app.command(
    rich_help_panel=LOOK_GROUP,
    epilog="Example: lite-c2f judge runs/a --questions question.jsonl --url http://127.0.0.1:8000/v1 --judge M",
)
def judge(
    run: Run,
    questions: Annotated[Path, typer.Option(help="Questions in the form of MT-Bench's question.jsonl.")],
    judge: Annotated[str, typer.Option(help="The judge: a model folder, or the model's name on the server.")],
    url: Annotated[
        str | None, typer.Option(help="Server with OpenAI's chat protocol (key: LITE_C2F_JUDGE_KEY).")
    ] = None,
    references: Annotated[Path | None, typer.Option(help="Reference answers in the form of MT-Bench's.")] = None,
    actors: Annotated[str, typer.Option(help="Of fine, coarse, instruct, base; the first against the others.")] = (
        "fine,instruct"
    ),
    mode: Annotated[JudgeMode, typer.Option(help="Compare pairs in both orders, or grade single answers.")] = (
        JudgeMode.pairwise
    ),
    limit: Annotated[int | None, typer.Option(min=1, help="About so many questions, spread over the file.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, e.g. evaluation.max_tokens=512.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Let a language model judge the actors, in the way of MT-Bench; writes RUN/evaluation/judge-MODE.json."""
    exit_codes.silence_libraries()
    from lite_c2f.cli.tables import print_judgment
    from lite_c2f.cli.terminal import TerminalSink
    from lite_c2f.evaluation.llm_judge.judges import Endpoint, Local
    from lite_c2f.evaluation.llm_judge.stage import judge as run_judge

    server = Endpoint(url, judge) if url else None  # raises for an invalid address before anything is loaded
    if server is None and not Path(judge).is_dir():
        raise ConfigError.because(f"--judge '{judge}': no such folder", "a model folder, or --url", "check the path")
    sink = TerminalSink()
    with exit_codes.interruption_hint(sink.close, "the same command"):
        result = run_judge(
            run,
            questions,
            lambda config: server or Local(judge, config),
            actors=actors.split(","),
            mode=mode.value,
            references=references,
            limit=limit,
            overrides=overrides or [],
            sink=sink,
        )
    typer.echo(json.dumps(result)) if as_json else print_judgment(result, run)


@app.command(rich_help_panel=LOOK_GROUP, epilog="Example: lite-c2f probe runs/toy --words bad-words.txt")
def probe(
    run: Run,
    words: Annotated[Path, typer.Option(help="A text file with one unwanted word or phrase per line.")],
    prompts: Annotated[Path | None, typer.Option(help="Prompts, a data file (default: held-out prompts).")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most prompts to use.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Probability of unwanted words by layer, with and without the residue; and how often answers contain them."""
    exit_codes.silence_libraries()
    from lite_c2f.cli.tables import print_probe
    from lite_c2f.cli.terminal import TerminalSink
    from lite_c2f.evaluation.probe_stage import probe as run_probe

    sink = TerminalSink()
    try:
        result = run_probe(run, words, prompts, limit, sink=sink)
    finally:
        sink.close()
    typer.echo(json.dumps(result)) if as_json else print_probe(result, run)


@app.command(rich_help_panel=LOOK_GROUP, epilog="Example: lite-c2f report runs/toy")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN]...", help="A run directory, or several to compare.")],
    out: Annotated[Path | None, typer.Option(help="The page to write about several runs.")] = None,
) -> None:
    """Write an HTML and a Markdown report of a run (RUN/report/index.html), or of several for comparison."""
    from lite_c2f.evaluation.report import write_comparison, write_report

    if len(runs) == 1 and out is not None:
        raise ConfigError.because("--out with one run", "several runs", "its page is RUN/report/index.html")
    page = write_report(runs[0]) if len(runs) == 1 else write_comparison(runs, out or Path("comparison.html"))
    typer.echo(f"wrote {page}")


def _benchmark(run: Path, tasks: list[str], overrides: list[str], options: dict[str, Any], *, as_json: bool) -> None:
    from lite_c2f.cli.terminal import TerminalSink
    from lite_c2f.evaluation.lm_eval.stage import benchmark
    from lite_c2f.evaluation.lm_eval.table import print_benchmarks

    sink = TerminalSink()
    with exit_codes.interruption_hint(sink.close, "the same command"):
        result = benchmark(run, tasks, overrides=overrides, sink=sink, **options)
    typer.echo(json.dumps(result)) if as_json else print_benchmarks(result, run)
