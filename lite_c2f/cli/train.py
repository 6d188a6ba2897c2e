"""Subcommands that train or plan: demo, train, plan."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lite_c2f.cli import exit_codes
from lite_c2f.cli.program import program
from lite_c2f.cli.root import TRAIN_GROUP, Config, Overrides, app, config_and_overrides
from lite_c2f.errors import ConfigError
from lite_c2f.smollm import CONFIG as SMOLLM_CONFIG
from lite_c2f.smollm import SMOLLM
from lite_c2f.toy import CONFIG as TOY_CONFIG


class Stage(StrEnum):
    """Stages of a run, in order."""

    reward = "reward"
    coarse = "coarse"
    fine = "fine"


class DemoModel(StrEnum):
    """Embedded worlds."""

    toy = "toy"
    smollm2 = "smollm2"


@app.command(rich_help_panel=TRAIN_GROUP, epilog="Example: lite-c2f demo --model smollm2 --seed 1")
def demo(
    out: Annotated[Path | None, typer.Option(help="Run directory (default: runs/MODEL).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    model: Annotated[DemoModel, typer.Option(help="The toy world, or a real small language model.")] = DemoModel.toy,
    fresh_pairs: Annotated[
        bool, typer.Option("--fresh-pairs", help="smollm2: sample its answers anew, an hour on two cores.")
    ] = False,
) -> None:
    """The whole pipeline on an embedded model, on a CPU or a GPU: the toy world in a few minutes.

    smollm2 is SmolLM2-135M-Instruct, in about half an hour on two cores; it answers in real English.
    """
    out = out or Path("runs") / model.value
    settings = [f"run.seed={seed}"]
    if fresh_pairs:
        if model is not DemoModel.smollm2:
            raise ConfigError.because("--fresh-pairs with the toy world", "--model smollm2", "leave one of them out")
        settings.append(f"data.preferences={json.dumps([str(_fresh_pairs(out))])}")
    _train(TOY_CONFIG if model is DemoModel.toy else SMOLLM_CONFIG, settings, out, list(Stage), resume=False)


def _fresh_pairs(out: Path) -> Path:
    unpack(SMOLLM)
    exit_codes.silence_libraries()
    from lite_c2f.cli.terminal import TerminalSink
    from lite_c2f.pipeline.own_answers import fresh_pairs as run_fresh_pairs

    sink = TerminalSink()
    with exit_codes.interruption_hint(sink.close, "the same command"):
        whole = out.resolve()  # `.` has no name to put a word behind
        return run_fresh_pairs(whole.with_name(f"{whole.name}-pairs"), sink)


def unpack(*models: str) -> None:
    """Unpack the GGUF models among these, where that was not done before, with a line that says so."""
    from lite_c2f.gguf import is_packed, unpacked

    for model in dict.fromkeys(models):
        if is_packed(model):
            exit_codes.silence_libraries()
            unpacked(model, lambda text: typer.echo(text, err=True))


@app.command(
    rich_help_panel=TRAIN_GROUP,
    epilog="Example: lite-c2f train configs/mistral-7b-24gb.yaml coarse.updates=300 --run-dir runs/m7b",
)
def train(
    config: Config,
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="Run directory (default: run.dir of the config).")] = None,
    stage: Annotated[Stage | None, typer.Option(help="Run this stage alone.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Fail if there is no run yet; an existing one continues in any case.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Continue although data, models or settings have changed.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the plan, try reward functions; train nothing.")] = False,
) -> None:
    """Train all stages, or one; what is already published is skipped. CONFIG may be a run, to continue it.

    If a run's models were moved, `lite-c2f train RUN model.base=NEW` records their new folder.
    """
    stages = [stage] if stage else list(Stage)
    file, settings = config_and_overrides(config, overrides)
    if dry_run:
        _dry_run(file, settings, run_dir, stages)
    else:
        _train(file, settings, run_dir, stages, resume=resume, force=force)


@app.command(rich_help_panel=TRAIN_GROUP, epilog="Example: lite-c2f plan configs/mistral-7b-24gb.yaml --vram 24")
def plan(
    config: Config,
    overrides: Overrides = None,
    vram: Annotated[float | None, typer.Option(help="GPU memory in GiB, also of a card you do not have.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Plan memory, batches and disk of each stage; no weights are loaded, nothing is downloaded."""
    from lite_c2f import memory
    from lite_c2f.backbone.model_kind import check_lineage, check_named, is_like_llama, local_folders
    from lite_c2f.config.loading import load_config

    settings = load_config(*config_and_overrides(config, overrides))
    names = settings.model.base, settings.model.instruct
    unpack(*names)
    check_named(*names)
    if not all(is_like_llama(folder) for folder in local_folders(*names)):
        exit_codes.silence_libraries()
        from lite_c2f.runs.models import check_kinds

        check_kinds(settings)
    result = _plan(settings) if vram is None else memory.make_plan(settings, vram)
    check_lineage(*names)
    typer.echo(json.dumps(memory.as_json(result), indent=2) if as_json else memory.explain(result))


def _train(
    config: Path | None,
    overrides: list[str],
    run_dir: Path | None,
    stages: list[Stage],
    *,
    resume: bool,
    force: bool = False,
) -> None:
    from lite_c2f.backbone.model_kind import check_named

    settings = _settings(config, overrides, run_dir)
    check_named(settings.model.base, settings.model.instruct)
    run = Path(settings.run.dir)
    exit_codes.silence_libraries()
    from lite_c2f.cli.tables import print_summary
    from lite_c2f.cli.terminal import TerminalSink
    from lite_c2f.pipeline.train import train as run_train

    sink, names = TerminalSink(), [stage.value for stage in stages]
    resume_command = f"{program()} train {run / 'config.yaml'}" + (f" --stage {names[0]}" if len(names) == 1 else "")
    with exit_codes.interruption_hint(sink.close, resume_command, (run / "config.yaml").is_file):
        summary = run_train(settings, run, names, resume=resume, force=force, sink=sink)
    if summary:  # None in all processes but the first
        print_summary(summary, run)


def _settings(config: Path | None, overrides: list[str], run_dir: Path | None) -> Any:
    """The configuration of `train`, with GGUF models unpacked. config: a file, or a run directory, to continue it."""
    from lite_c2f.config.loading import load_config

    if config is not None and (config / "config.yaml").is_file():
        config, run_dir = config / "config.yaml", run_dir or config
    settings = load_config(config, [*overrides, *([f"run.dir={json.dumps(str(run_dir))}"] if run_dir else [])])
    unpack(settings.model.base, settings.model.instruct)
    return settings


def _plan(settings: Any) -> Any:
    """The plan for this machine's GPU, or for the memory size in the configuration."""
    from lite_c2f.backbone.machine import plan_named

    return plan_named(settings)


def _dry_run(config: Path | None, overrides: list[str], run_dir: Path | None, stages: list[Stage]) -> None:
    from lite_c2f.backbone.model_kind import check_lineage, check_named
    from lite_c2f.memory import explain

    settings = _settings(config, overrides, run_dir)
    check_named(settings.model.base, settings.model.instruct)
    exit_codes.silence_libraries()
    from lite_c2f.reward.checks import check_judges
    from lite_c2f.runs.corpus import check_sources
    from lite_c2f.runs.models import absolute, check_kinds

    check_sources(settings)
    check_judges(absolute(settings))
    check_kinds(settings)
    check_lineage(settings.model.base, settings.model.instruct)
    typer.echo(explain(_plan(settings)))
    if any(source.function is not None for source in settings.coarse.judges):
        from lite_c2f.reward.trial import try_functions
        from lite_c2f.runs.corpus import load_corpus

        lines = try_functions(settings, load_corpus(settings).train_prompts)
        typer.echo("\n".join(["\nreward functions on two rows of the data:", *lines]))
    skipped = () if settings.coarse.needs_reward_model else (Stage.reward,)
    named = [
        f"{stage.value} (skipped: no reward model is needed)" if stage in skipped else stage.value for stage in stages
    ]
    typer.echo(f"\nstages: {', '.join(named)}, then the comparison\n\n{settings.to_yaml()}")
