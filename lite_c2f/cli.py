"""The command line: a thin layer over the Python API. Heavy imports are inside the commands."""

import json
import sys
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from lite_c2f import exits
from lite_c2f.errors import ConfigError

app = typer.Typer(
    name="lite-c2f",
    help="Mistral-C2F on one GPU: reward model, PPO with Continuous Maximization, Knowledge Residue Merger.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Stage(StrEnum):
    """Stages of a run, in order."""

    reward = "reward"
    coarse = "coarse"
    fine = "fine"


class JudgeMode(StrEnum):
    """Ways to judge."""

    pairwise = "pairwise"
    single = "single"


class Sparsify(StrEnum):
    """Ways to thin a residue out."""

    none = "none"
    magnitude = "magnitude"
    dare = "dare"
    ties = "ties"


class Rounding(StrEnum):
    """Ways to round merged weights."""

    nearest = "nearest"
    stochastic = "stochastic"


class Dtype(StrEnum):
    """Types of merged weights."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


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


@app.command(epilog="Example: lite-c2f demo --out runs/toy --seed 1")
def demo(
    out: Annotated[Path, typer.Option(help="Run directory.")] = Path("runs/toy"),
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """The whole pipeline on the toy world, on a CPU or a GPU, in a few minutes."""
    _train(toy_config(), [f"run.seed={seed}"], out, list(Stage), resume=False)


@app.command(epilog="Example: lite-c2f train configs/mistral-7b-24gb.yaml coarse.updates=300 --run-dir runs/m7b")
def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/toy.yaml, or a run to go on with.")
    ],
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="Run directory (default: run.dir of the config).")] = None,
    stage: Annotated[Stage | None, typer.Option(help="Run this stage alone.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Fail where there is no run yet; one that exists goes on anyway.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Go on although data, models or settings are no longer the same.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Print configuration, stages, sizes and disk; train nothing.")] = False,
) -> None:
    """Train all stages, or one; what is already published is skipped."""
    stages = [stage] if stage else list(Stage)
    if dry_run:
        _dry_run(config, overrides or [], run_dir, stages)
    else:
        _train(config, overrides or [], run_dir, stages, resume=resume, force=force)


@app.command(epilog="Example: lite-c2f plan configs/mistral-7b-24gb.yaml --vram 24")
def plan(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    overrides: Overrides = None,
    vram: Annotated[float | None, typer.Option(help="GPU memory in GiB, also of a card you do not have.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Plan memory, batches and disk of each stage; no weights are loaded, nothing is downloaded."""
    from lite_c2f import memory
    from lite_c2f.config import load_config

    settings = load_config(config, overrides or [])
    found = memory.make_plan(settings, _card(settings) if vram is None else vram)
    typer.echo(json.dumps(memory.as_json(found), indent=2) if as_json else memory.explain(found))


@app.command(
    epilog="Example: lite-c2f merge --adapter runs/a/coarse/adapter --base B --instruct I --out fine --ratio 0.75"
)
def merge(
    adapter: Annotated[Path, typer.Option(help="LoRA adapter folder (the residue).")],
    base: Annotated[Path, typer.Option(help="Folder of the model the adapter was trained on.")],
    instruct: Annotated[Path, typer.Option(help="Folder of the full-precision model to merge into.")],
    out: Annotated[Path, typer.Option(help="New folder for the merged model.")],
    ratio: Annotated[float, typer.Option(help="Share of the residue to add.")] = 1.0,
    layer_ratios: Annotated[
        Path | None, typer.Option(help="YAML of name patterns and ratios; a list is a gradient over the layers.")
    ] = None,
    allow_negative: Annotated[bool, typer.Option(help="Allow negative ratios.")] = False,
    sparsify: Annotated[Sparsify, typer.Option(help="Thin the residue out; needs --density.")] = Sparsify.none,
    density: Annotated[float | None, typer.Option(help="Share of the residue's elements to keep, 0 to 1.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of dare and of stochastic rounding.")] = 0,
    norm_cap: Annotated[float | None, typer.Option(help="Most |change| / |W| of a weight, e.g. 0.05.")] = None,
    rounding: Annotated[Rounding, typer.Option(help="To nearest, or to bfloat16 by chance.")] = Rounding.nearest,
    qerr_ratio: Annotated[float, typer.Option(help="Share of the base's 4-bit error to add.")] = 0.0,
    dtype: Annotated[Dtype | None, typer.Option(help="Type of the weights (default: as they are).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep finished shards of an interrupted merge.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Load the result and compare its logits with the unmerged adapter's.")
    ] = False,
    prompt: Annotated[str, typer.Option(help="Text that --verify uses.")] = "Why is the sky blue?",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report's totals as JSON.")] = False,
) -> None:
    """The Knowledge Residue Merger alone: W_fine = W_instruct + ratio * dW."""
    if verify:
        exits.quiet()
    from lite_c2f.fine.merge import merge as run_merge
    from lite_c2f.fine.merge import on_view
    from lite_c2f.fine.treatment import Treatment
    from lite_c2f.terminal import Terminal, print_merge

    view = Terminal()
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
            progress=on_view(view),
            treatment=Treatment(sparsify.value, density, seed, norm_cap, rounding.value, qerr_ratio),
            resume=resume,
            verify=prompt if verify else None,
            notice=view.note,
        )
    except KeyboardInterrupt:
        view.close()
        typer.echo("interrupted; finished shards are kept. Go on with the same command and --resume.", err=True)
        raise
    finally:
        view.close()
    if as_json:
        found = {"out": str(out), "ratio": report.ratio, **report.totals, "verified": report.verified}
        typer.echo(json.dumps(found))
    else:
        print_merge(report, out)


@app.command(epilog="Example: lite-c2f sweep runs/toy --ratios 0.25,0.5,0.75,1.0,1.25")
def sweep(
    run: Run,
    ratios: Annotated[str, typer.Option(help="Ratios, with commas between.")] = "0.25,0.5,0.75,1.0",
    per_layer_groups: Annotated[
        bool, typer.Option("--per-layer-groups", help="Then search a ratio for each group of layers.")
    ] = False,
    budget: Annotated[int, typer.Option(min=4, help="Trials of that search; 15 tries every group.")] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score ratios of the residue without merging; writes RUN/fine/sweep.json and its curve sweep.png."""
    exits.quiet()
    from lite_c2f.fine.sweep import parse_ratios

    wanted = parse_ratios(ratios)
    from lite_c2f.manifest import open_run
    from lite_c2f.pipeline import sweep as run_sweep
    from lite_c2f.terminal import Terminal, ratio_table

    view = Terminal()
    with exits.going_on(view.close, "the same command"):
        found = run_sweep(run, wanted, view=view, group_budget=budget if per_layer_groups else 0)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        ratio_table(found, run, open_run(run)[1])


@app.command("eval", epilog="Example: lite-c2f eval runs/toy --tasks gsm8k,arc_challenge --limit 200")
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
        bool, typer.Option("--chat-template", help="Ask each actor in the form it was trained in.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare base, instruct, Coarse and Fine again, on held-out prompts or with --tasks on general benchmarks."""
    given = {"actors": actors and actors.split(","), "baseline": baseline, "limit": limit, "fewshot": fewshot}
    given = {
        name: value for name, value in (given | {"chat_template": chat_template or None}).items() if value is not None
    }
    if tasks is None and given:
        option = next(iter(given)).replace("_", "-")
        raise ConfigError.because(f"--{option} without --tasks", "tasks to use it on", "add --tasks, or leave it out")
    exits.quiet()
    if tasks is not None:
        _benchmark(run, tasks.split(","), overrides or [], given, as_json=as_json)
        return
    from lite_c2f.pipeline import evaluate as run_evaluate
    from lite_c2f.terminal import Terminal, print_summary

    view = Terminal()
    with exits.going_on(view.close, "the same command"):
        summary = run_evaluate(run, overrides or [], view=view)
    if as_json:
        typer.echo(json.dumps(summary["actors"]))
    else:
        print_summary(summary, run)


@app.command(
    epilog="Example: lite-c2f judge runs/a --questions question.jsonl --url http://127.0.0.1:8000/v1 --judge M"
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
    exits.quiet()
    from lite_c2f.judging.judges import Endpoint, Local
    from lite_c2f.judging.stage import judge as run_judge
    from lite_c2f.terminal import Terminal, print_judgment

    server = Endpoint(url, judge) if url else None  # an address that is none is refused before anything is loaded
    if server is None and not Path(judge).is_dir():
        raise ConfigError.because(f"--judge '{judge}': no such folder", "a model folder, or --url", "check the path")
    view = Terminal()
    with exits.going_on(view.close, "the same command"):
        found = run_judge(
            run,
            questions,
            lambda config: server or Local(judge, config),
            actors=actors.split(","),
            mode=mode.value,
            references=references,
            limit=limit,
            overrides=overrides or [],
            view=view,
        )
    typer.echo(json.dumps(found)) if as_json else print_judgment(found, run)


@app.command(epilog="Example: lite-c2f probe runs/toy --words bad-words.txt")
def probe(
    run: Run,
    words: Annotated[Path, typer.Option(help="A text file with an unwanted word or phrase a line.")],
    prompts: Annotated[Path | None, typer.Option(help="Prompts, a data file (default: held-out prompts).")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most prompts to use.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Where unwanted words begin, layer by layer, with the residue and without; and how often they are said."""
    exits.quiet()
    from lite_c2f.pipeline import probe as run_probe
    from lite_c2f.terminal import Terminal, print_probe

    view = Terminal()
    try:
        found = run_probe(run, words, prompts, limit, view=view)
    finally:
        view.close()
    typer.echo(json.dumps(found)) if as_json else print_probe(found, run)


@app.command(epilog="Example: lite-c2f report runs/toy")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN]...", help="A run directory, or several to compare.")],
    out: Annotated[Path | None, typer.Option(help="The page to write about several runs.")] = None,
) -> None:
    """Write one HTML page of a run (RUN/report/index.html), or of several next to each other; and as Markdown."""
    from lite_c2f.evaluation.report import write_comparison, write_report

    if len(runs) == 1 and out is not None:
        raise ConfigError.because("--out with one run", "several runs", "its page is RUN/report/index.html")
    page = write_report(runs[0]) if len(runs) == 1 else write_comparison(runs, out or Path("comparison.html"))
    typer.echo(f"wrote {page}")


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


@app.command(epilog="Example: lite-c2f doctor runs/toy")
def doctor(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Look at this run instead.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Versions, GPU, whether 4-bit works, disk: a block to paste into a report. Or how a run is doing."""
    exits.quiet()
    from lite_c2f.doctor import examine, examine_run

    found = examine() if run is None else examine_run(run)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        told = found.pop("problems")
        typer.echo("\n".join(f"{name:<18} {value}" for name, value in found.items()))
        typer.echo("\n".join(f"{'problem':<18} {problem}" for problem in told) or f"{'problems':<18} none")
        found["problems"] = told
    if found["problems"]:
        raise typer.Exit(2)


@app.command(epilog="Example: lite-c2f schema > schema.json")
def schema() -> None:
    """Every configuration key with its meaning, as a JSON schema."""
    from lite_c2f.config import schema as config_schema

    typer.echo(json.dumps(config_schema(), indent=2))


def _benchmark(run: Path, tasks: list[str], overrides: list[str], given: dict[str, Any], *, as_json: bool) -> None:
    from lite_c2f.harness.stage import benchmark
    from lite_c2f.harness.table import print_benchmarks
    from lite_c2f.terminal import Terminal

    view = Terminal()
    with exits.going_on(view.close, "the same command"):
        found = benchmark(run, tasks, overrides=overrides, view=view, **given)
    typer.echo(json.dumps(found)) if as_json else print_benchmarks(found, run)


def toy_config() -> Path:
    """The toy world's configuration, which is part of the package."""
    return Path(str(files("lite_c2f.toy") / "toy.yaml"))


def _train(
    config: Path, overrides: list[str], run_dir: Path | None, stages: list[Stage], *, resume: bool, force: bool = False
) -> None:
    from lite_c2f.config import load_config

    if (config / "config.yaml").is_file():  # a run directory: go on with it
        config, run_dir = config / "config.yaml", run_dir or config
    settings = load_config(config, [*overrides, *([f"run.dir={json.dumps(str(run_dir))}"] if run_dir else [])])
    run = Path(settings.run.dir)
    exits.quiet()
    from lite_c2f.pipeline import train as run_train
    from lite_c2f.terminal import Terminal, print_summary

    view, names = Terminal(), [stage.value for stage in stages]
    again = f"lite-c2f train {run / 'config.yaml'}" + (f" --stage {names[0]}" if len(names) == 1 else "")
    with exits.going_on(view.close, again, (run / "config.yaml").is_file):
        summary = run_train(settings, run, names, resume=resume, force=force, view=view)
    if summary:  # other processes than the first have none
        print_summary(summary, run)


def _card(settings: Any) -> float | None:
    """GPU memory that `train` would plan for on this machine, in GiB."""
    exits.quiet()
    from lite_c2f.backbone.load import card_gib

    return card_gib(settings)


def _dry_run(config: Path, overrides: list[str], run_dir: Path | None, stages: list[Stage]) -> None:
    from lite_c2f.config import load_config
    from lite_c2f.memory import explain, make_plan

    settings = load_config(config, [*overrides, *([f"run.dir={json.dumps(str(run_dir))}"] if run_dir else [])])
    typer.echo(settings.to_yaml())
    typer.echo(f"stages: {', '.join(stage.value for stage in stages)}, then the comparison")
    typer.echo(explain(make_plan(settings, _card(settings))))


def main(arguments: list[str] | None = None) -> None:
    """Entry point: 0 done, 2 the user can fix it, 1 a bug, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    commands = {found.name or str(getattr(found.callback, "__name__", "")) for found in app.registered_commands}
    with exits.codes(given, commands):
        code = app(args=exits.debug_first(given), standalone_mode=False)
    if code:  # typer hands back 130 for Ctrl-C
        sys.exit(code)
