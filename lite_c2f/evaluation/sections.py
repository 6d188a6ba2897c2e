"""Report sections of a run's own files. The order of all sections is in report.py.

To add a field: name it in the function of its section below; figures in the files (such as a new one
in summary.json) get their columns automatically.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lite_c2f.actors.answers import min_eos_message
from lite_c2f.data.order import short_names
from lite_c2f.errors import RunError
from lite_c2f.evaluation import charts
from lite_c2f.evaluation.page import AnswerBlock, Block, Chart, Code, Heading, Table, Text, figures_table
from lite_c2f.evaluation.wins import wilson
from lite_c2f.fine.chart import CAPTION, ratio_chart
from lite_c2f.storage.files import read_json, read_lines

Result = TypeVar("Result")
Section = Callable[[Path], list[Block]]  # of a run's folder

ERROR = "_se"  # ends the name of a figure's standard error in metrics.json
PROMPTS, MOMENTS = 6, 6  # prompts answered by all actors; moments of training shown for one prompt
WINS = (
    "Wins are judged by the reward that trained the policy: they measure its preference, not the quality of the "
    "answers. The rate at equal length is a guess where the lengths of the two sides hardly overlap."
)
FORMAT_ERRORS = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    StopIteration,
    IndexError,
    OSError,
    yaml.YAMLError,
)  # raised by reading a file of another format


def read_part(file: Path, read: Callable[[Path], Result], remedy: str = "train that stage again") -> Result:
    """The result of `read(file)`. Raises RunError with the remedy for a missing file or one of another format."""
    try:
        return read(file)
    except FORMAT_ERRORS as error:
        why = "cannot be read" if isinstance(error, OSError) else "has another format than lite-c2f writes"
        raise RunError.because(f"'{file}' {why}", "a file of a run, unchanged", remedy) from None


def section(
    name: str, remedy: str = "train that stage again", *, required: bool = False
) -> Callable[[Section], Section]:
    """Decorator of a section of the file RUN/name, which is empty if the file does not exist, unless it is required.

    The function gets the file; the decorated one takes the run's folder, and raises RunError as `read_part` does.
    """

    def decorate(make: Section) -> Section:
        @functools.wraps(make)
        def of_run(run: Path) -> list[Block]:
            file = run / name
            return read_part(file, make, remedy) if required or file.is_file() else []

        return of_run

    return decorate


@section("config.yaml", required=True)
def header(file: Path) -> list[Block]:
    """One line on the models and the training."""
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    pair, coarse = settings["model"], settings["coarse"]
    length = coarse["length"]
    if coarse.get("algorithm") == "dpo":
        dpo = coarse["dpo"]
        text = f"{pair['base']} and {pair['instruct']}; DPO with beta {dpo['beta']:g}, learning rate {dpo['lr']:g}"
        return [Text(text)]
    text = f"{pair['base']} and {pair['instruct']}; {coarse['updates']} updates of {coarse['rollouts']} responses, "
    text += f"limit {length['mode']} from {length['start']} to at most {length['max']} tokens"
    return [Text(text)]


def comparison(run: Path) -> list[Block]:
    """The actors next to each other, the win rates, and the distributions of lengths and rewards."""
    if not (run / "summary.json").is_file():
        return [Text("This run is not finished: these are its results so far.")]
    blocks = actors(run)
    return [*blocks, *variety(run), *win_rates(run), *distributions(run)] if blocks else []


@section("summary.json")
def actors(file: Path) -> list[Block]:
    """The figures of the comparison, a row per actor, means with their standard errors."""
    rows, metrics = read_actors(file), file.parent / "evaluation" / "metrics.json"
    found = read_json(metrics)["actors"] if metrics.is_file() else {}
    errors = {
        actor: {name: row[f"{name}{ERROR}"] for name in rows.get(actor, {}) if f"{name}{ERROR}" in row}
        for actor, row in found.items()
    }
    table = figures_table(rows, "actor", "fine", errors) if rows else None
    text = [Text("± one standard error.")] if any(errors.values()) else []
    return [Heading("Comparison on held-out prompts"), table, *text] if table else []


@section("evaluation/metrics.json")
def variety(file: Path) -> list[Block]:
    """Variety and verbosity per actor."""
    rows = {
        actor: {name: value for name, value in row.items() if not name.endswith(ERROR)}
        for actor, row in read_json(file)["actors"].items()
    }
    return [figures_table(rows, "actor", bold="fine")]


@section("evaluation/metrics.json")
def win_rates(file: Path) -> list[Block]:
    """Win rates with their intervals, raw and at equal length."""
    wins = {name: with_interval(row) for name, row in read_json(file)["wins"].items()}
    return [figures_table(wins, "wins"), Text(WINS)]


def with_interval(row: Mapping[str, Any]) -> dict[str, Any]:
    """A win rate with its 95% interval, without the number of prompts."""
    low, high = wilson(row["rate"] * row["prompts"], row["prompts"])
    return {"rate": row["rate"], "low": low, "high": high} | {key: row[key] for key in row if key != "prompts"}


@section("evaluation/responses.jsonl", required=True)
def distributions(file: Path) -> list[Block]:
    """Histograms of lengths and rewards."""
    return [Chart(charts.distributions(read_lines(file)), "Responses to the same prompts")]


def by_source(run: Path) -> list[Block]:
    """Figures of the actors, and accuracy of the reward model, on each data source; empty for a single source."""
    blocks = [*actors_by_source(run), *reward_model_by_source(run)]
    return [Heading("By data source"), *blocks] if blocks else []


@section("evaluation/metrics.json")
def actors_by_source(file: Path) -> list[Block]:
    """The figures of each actor on each source."""
    sources = read_json(file).get("by_source", {})
    short = short_names(sources)
    rows = {
        f"{name} ({row['prompts']:d} prompts), {actor}": {key: row[key] for key in row if key != "prompts"}
        for source, name in short.items()
        for actor, row in sources[source].items()
    }
    return [figures_table(rows, "source and actor")] if len(short) > 1 else []


@section("reward/metrics.json")
def reward_model_by_source(file: Path) -> list[Block]:
    """Number of pairs of each source, and the share of held-out pairs ranked right."""
    metrics = read_json(file)
    accuracy = metrics.get("accuracy_by_source", {})
    counts = {"training pairs": "pairs_by_source", "held-out pairs": "held_out_pairs_by_source"}
    rows = {
        name: [*(str(metrics.get(key, {}).get(source, 0)) for key in counts.values()), f"{accuracy[source]:.3f}"]
        for source, name in short_names(accuracy).items()
    }
    return [Table("reward model on", [*counts, "ranked right"], rows)] if len(rows) > 1 else []


@section("metrics.jsonl")
def learning(file: Path) -> list[Block]:
    """Learning curves of the coarse stage; empty before its first update."""
    if pairs := [row for row in read_lines(file) if row["stage"] == "coarse" and "margin" in row]:  # of DPO
        text = (
            f"DPO, {len(pairs)} steps: loss {pairs[0]['loss']:.3f} to {pairs[-1]['loss']:.3f}, margin of the implicit "
        )
        text += f"rewards {pairs[0]['margin']:+.2f} to {pairs[-1]['margin']:+.2f}."
        return [Heading("Coarse Actor"), Text(text)]
    rows = read_updates(file)
    if not rows:
        return []
    first, last = rows[0], rows[-1]
    text = f"Reward {first['reward']:+.2f} to {last['reward']:+.2f}, limit {first['limit']:.0f} to {last['limit']:.0f} "
    text += f"tokens in {len(rows)} updates; {last.get('skipped', 0)} skipped."
    return [Heading("Coarse Actor"), Text(text), Chart(charts.curves({"run": rows}), charts.CAPTION), *sources(rows)]


def sources(rows: Sequence[Mapping[str, float]]) -> list[Block]:
    """The sources of reward, a row each: mean score before scaling, multiplier, share it applies to; [] for one alone.

    rows: of the coarse stage in metrics.jsonl.
    """
    keys = [key for row in rows for key in row if key.startswith(("reward/", "applies/"))]
    names = list(dict.fromkeys(key.partition("/")[2] for key in keys))
    if not names:
        return []
    first, last = rows[0], rows[-1]
    cells = {
        name: [
            _cell(first.get(f"reward/{name}")),
            _cell(last.get(f"reward/{name}")),
            _cell(last.get(f"multiplier/{name}")),
            f"{last.get(f'applies/{name}', 1.0):.0%}",
        ]
        for name in names
    }
    columns = ["mean score, first update", "last update", "multiplier", "has a score"]
    share = sum(row.get("function_seconds", 0.0) for row in rows) / max(
        sum(row.get("seconds", 0.0) for row in rows), 1e-9
    )
    text = "Scores before scaling; multiplier and share of responses with a score in the last update. Reward functions "
    return [Table("source of reward", columns, cells), Text(f"{text}took {share:.1%} of the time of all updates.")]


@section("metrics.jsonl")
def held_out(file: Path) -> list[Block]:
    """The policy on held-out prompts while it trained, an evaluation a row."""
    rows = [row for row in read_lines(file) if row["stage"] == "held_out"]
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("stage", "step")))
    cells = {f"after update {row['step']}": [_cell(row.get(name)) for name in names] for row in rows}
    text = (
        "Means over the same prompts. reward is the weighted sum of what was trained on, on the scale of the first "
        "evaluation; a reward that rises while another figure falls was learned for its own sake."
    )
    return [Heading("Held-out judgement while training"), Table("", names, cells), Text(text)] if rows else []


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


@section("fine/ratios.json")
def ratios(file: Path) -> list[Block]:
    """The ratios that were tried, and the chosen one."""
    sweep = read_json(file)
    rows = {f"{row['ratio']:g}": {key: row[key] for key in row if key != "ratio"} for row in sweep["tried"]}
    shortfall = min_eos_message(sweep)
    return [
        Heading("Ratio of the residue"),
        Text(f"Chosen: {sweep['chosen']:g}; {sweep['rule']}."),
        *([Text(f"Warning: {shortfall}.")] if shortfall else []),
        Chart(ratio_chart(sweep), CAPTION),
        figures_table(rows, "ratio", bold=f"{sweep['chosen']:g}"),
    ]


@section("evaluation/responses.jsonl")
def responses(file: Path) -> list[Block]:
    """A few prompts answered by every actor, with repetition marked."""
    prompts: dict[str, list[tuple[str, str, str]]] = {}
    for row in read_lines(file):
        figures = f"{row['reward']:+.2f} · {row['tokens']} tokens · {row['finish']}"
        prompts.setdefault(row["prompt"], []).append((row["actor"], figures, row["response"]))
    shown = [AnswerBlock(prompt, rows) for prompt, rows in list(prompts.items())[:PROMPTS]]
    return [Heading("Answers"), Text("Repeated word sequences are marked."), *shown]


@section("coarse/samples.jsonl")
def samples_over_time(file: Path) -> list[Block]:
    """Responses to one prompt at several moments of the training."""
    samples = read_lines(file)
    if not samples:
        return []
    prompt = samples[0]["prompt"]
    of_prompt = [row for row in samples if row["prompt"] == prompt]
    step = max(1, (len(of_prompt) - 1) // (MOMENTS - 1))
    rows = [
        (
            f"update {row['step']}",
            f"{row['reward']:+.2f} · limit {row['limit']} · {row['tokens']} tokens · {row['finish']}",
            row["response"],
        )
        for row in [*of_prompt[:-1:step][: MOMENTS - 1], of_prompt[-1]]
    ]
    return [Heading("The Coarse Actor while it learned"), AnswerBlock(prompt, rows)]


@section("config.yaml", required=True)
def configuration(file: Path) -> list[Block]:
    """The configuration file."""
    return [Heading("Configuration"), Code("config.yaml", file.read_text(encoding="utf-8"))]


@section("run.json")
def versions(file: Path) -> list[Block]:
    """Versions, machine and seconds."""
    manifest = read_json(file)
    values: dict[str, Any] = {name: manifest.get(name) for name in ("lite_c2f", "python", "machine")}
    values |= manifest.get("versions", {}) | {f"seconds: {k}": v for k, v in manifest.get("seconds", {}).items()}
    rows = {name: [str(value)] for name, value in values.items() if value is not None}
    return [Heading("Made with"), Table("", ["value"], rows)]


def read_actors(file: Path) -> dict[str, dict[str, float]]:
    """Figures of the actors from summary.json; {} if they are not compared yet. Raises TypeError or ValueError."""
    summary = read_json(file)
    if not isinstance(summary, dict):
        raise TypeError("not a summary")
    if "actors" in summary and not summary["actors"]:
        raise ValueError("no actors")
    return summary.get("actors", {})


def read_updates(file: Path) -> list[dict[str, float]]:
    """Rows of PPO in metrics.jsonl. Raises KeyError, TypeError or ValueError for a row without its figures."""
    rows = [row for row in read_lines(file) if row["stage"] == "coarse"]
    for row in rows:
        float(row["step"]), float(row["reward"]), float(row["limit"])
    return rows
