"""The report: one HTML page of a run, or of several next to each other, and the same as Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lite_c2f.actors.answers import unreached
from lite_c2f.data.order import short_names
from lite_c2f.errors import RunError
from lite_c2f.evaluation import charts
from lite_c2f.evaluation.extras import general, judged, part, probed
from lite_c2f.evaluation.page import Answers, Block, Chart, Code, Heading, Table, Text, as_html, as_markdown, cells
from lite_c2f.fine.chart import ratio_chart
from lite_c2f.storage.files import read_json, read_lines, write_text

PROMPTS, MOMENTS = 6, 6  # answered by all actors; of the samples over time
COLUMNS = (
    "distinct n: different n-grams over all of them, fewer with more prompts. compression ratio: higher is more alike. "
    "hit limit: share that was cut off. se: standard error. kl to base, kl to instruct: nats a token. Where the right "
    "answer is known: removable is the share of a right answer's words that could go before it is wrong, after answer "
    "the share behind the place where it is given; verbose is the share of answers longer than twice what right ones "
    "need, with the accuracy of these and of the others."
)
JUDGED = (
    "Wins are judged by the reward model that trained the policy: they say how well that one was pleased, not how good "
    "the answers are. controlled is the rate at equal length by a logistic fit, length effect what one spread of "
    "difference in length adds to the log-odds: a guess where the two sides' lengths hardly overlap."
)


def write_report(run: Path) -> Path:
    """Write RUN/report/index.html and report.md; no network is needed to read them. Returns the page's path.

    Of a run that is not finished, what there is. Raises RunError where there is nothing yet, and naming the file that
    is not as lite-c2f writes it.
    """
    if run.exists() and not run.is_dir():
        raise RunError.because(f"'{run}' is a file", "a run directory", "give one made by lite-c2f")
    if not (run / "summary.json").is_file() and not (run / "metrics.jsonl").is_file():
        got = f"'{run}' has neither summary.json nor metrics.jsonl"
        raise RunError.because(got, "a run that has begun", "run `lite-c2f train` first")
    compared = comparison(run)
    compared += [*of_sources(run), *general(run), *judged(run), *probed(run)]
    blocks = [*header(run), *compared, *learning(run), *chosen(run), *answers(run), *over_time(run), *about(run)]
    return publish(run / "report" / "index.html", run.resolve().name, blocks)


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Write one page about several runs: actors, learning curves over each other, and the settings that differ."""
    names = named(runs)
    blocks: list[Block] = []
    for actor in ("coarse", "fine"):
        rows = {name: actors_of(run).get(actor) for name, run in names.items()}
        blocks += [Heading(f"{actor.capitalize()} Actor"), cells({k: v for k, v in rows.items() if v}, "run")]
    lines = {name: coarse_lines(run) for name, run in names.items()}
    blocks += [Heading("Learning"), Chart(charts.curves(lines), "PPO, update by update")]
    blocks += [Heading("Settings that differ"), differences(names)]
    return publish(out, " · ".join(names), blocks)


def publish(page: Path, title: str, blocks: Sequence[Block]) -> Path:
    """Write the page, and beside it the same as Markdown."""
    write_text(
        page.with_name("report.md" if page.name == "index.html" else f"{page.stem}.md"), as_markdown(title, blocks)
    )
    write_text(page, as_html(title, blocks))
    return page


def header(run: Path) -> list[Block]:
    """What was trained on what, in a line."""

    def make() -> list[Block]:
        settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        pair, coarse = settings["model"], settings["coarse"]
        length = coarse["length"]
        return [
            Text(
                f"{pair['base']} and {pair['instruct']}; {coarse['updates']} updates of {coarse['rollouts']} "
                f"responses, limit {length['mode']} from {length['start']} to at most {length['max']} tokens"
            )
        ]

    return part(run / "config.yaml", make)


def comparison(run: Path) -> list[Block]:
    """The actors next to each other, who beats whom, and how their answers are spread."""

    if not (run / "summary.json").is_file():
        return [Text("This run is not finished: what follows is what there is so far.")]

    def make() -> list[Block]:
        actors = actors_of(run)
        return [Heading("Comparison on held-out prompts"), cells(actors, "actor", bold="fine")] if actors else []

    def more() -> list[Block]:
        found = read_json(run / "evaluation" / "metrics.json")
        wins = {name: {k: v for k, v in row.items() if k != "prompts"} for name, row in found["wins"].items()}
        return [cells(found["actors"], "actor", bold="fine"), Text(COLUMNS), cells(wins, "wins"), Text(JUDGED)]

    blocks = part(run / "summary.json", make)
    if blocks and (run / "evaluation" / "metrics.json").is_file():
        blocks += part(run / "evaluation" / "metrics.json", more)
    if blocks:
        rows = run / "evaluation" / "responses.jsonl"
        caption = "Answers to the same prompts"
        blocks += part(rows, lambda: [Chart(charts.distributions(read_lines(rows)), caption)])
    return blocks


def of_sources(run: Path) -> list[Block]:
    """Reward of the actors, and accuracy of the reward model, on each data source; nothing where there is one alone."""
    blocks: list[Block] = []
    compared, ranked = run / "evaluation" / "metrics.json", run / "reward" / "metrics.json"

    def of_actors() -> list[Block]:
        found = read_json(compared).get("by_source", {})
        short = short_names(found)
        rows = {
            f"{name} ({row['prompts']:d} prompts), {actor}": {key: row[key] for key in row if key != "prompts"}
            for source, name in short.items()
            for actor, row in found[source].items()
        }
        return [cells(rows, "source and actor")] if len(short) > 1 else []

    def of_reward_model() -> list[Block]:
        found = read_json(ranked)
        accuracy = found.get("accuracy_by_source", {})
        counts = {"training pairs": "pairs_by_source", "held-out pairs": "held_out_pairs_by_source"}
        rows = {
            name: [*(str(found.get(key, {}).get(source, 0)) for key in counts.values()), f"{accuracy[source]:.3f}"]
            for source, name in short_names(accuracy).items()
        }
        return [Table("reward model on", [*counts, "ranked right"], rows)] if len(rows) > 1 else []

    if compared.is_file():
        blocks += part(compared, of_actors)
    if ranked.is_file():
        blocks += part(ranked, of_reward_model)
    return [Heading("By data source"), *blocks] if blocks else []


def learning(run: Path) -> list[Block]:
    """The learning curves of the coarse stage; nothing before its first update."""
    if not (run / "metrics.jsonl").is_file():
        return []

    def make() -> list[Block]:
        lines = coarse_lines(run)
        if not lines:
            return []
        text = f"Reward {lines[0]['reward']:+.2f} to {lines[-1]['reward']:+.2f}, limit {lines[0]['limit']:.0f} to "
        text += f"{lines[-1]['limit']:.0f} tokens in {len(lines)} updates; {lines[-1].get('skipped', 0)} skipped."
        return [Heading("Coarse Actor"), Text(text), Chart(charts.curves({"run": lines}), "PPO, update by update")]

    return part(run / "metrics.jsonl", make)


def chosen(run: Path) -> list[Block]:
    """The ratios that were tried, and the chosen one."""
    file = run / "fine" / "ratios.json"
    if not file.is_file():
        return []

    def make() -> list[Block]:
        found = read_json(file)
        rows = {f"{row['ratio']:g}": {k: v for k, v in row.items() if k != "ratio"} for row in found["tried"]}
        return [
            Heading("Ratio of the residue"),
            Text(f"Chosen: {found['chosen']:g}; {found['rule']}."),
            *([Text(f"Warning: {shortfall}.")] if (shortfall := unreached(found)) else []),
            Chart(
                ratio_chart(found),
                "What each ratio gave; the dashed line is the chosen one, bars are one standard error",
            ),
            cells(rows, "ratio", bold=f"{found['chosen']:g}"),
        ]

    return part(file, make)


def answers(run: Path) -> list[Block]:
    """A few prompts answered by every actor, what an answer repeats marked."""
    file = run / "evaluation" / "responses.jsonl"
    if not file.is_file():
        return []

    def make() -> list[Block]:
        prompts: dict[str, list[tuple[str, str, str]]] = {}
        for row in read_lines(file):
            figures = f"{row['reward']:+.2f} · {row['tokens']} tokens · {row['finish']}"
            prompts.setdefault(row["prompt"], []).append((row["actor"], figures, row["response"]))
        shown = list(prompts.items())[:PROMPTS]
        text = "Repeated word sequences are marked."
        return [Heading("Answers"), Text(text), *(Answers(prompt, said) for prompt, said in shown)]

    return part(file, make)


def over_time(run: Path) -> list[Block]:
    """One prompt, answered as training went on."""
    file = run / "coarse" / "samples.jsonl"
    if not file.is_file():
        return []

    def make() -> list[Block]:
        rows = read_lines(file)
        if not rows:
            return []
        mine = [row for row in rows if row["prompt"] == rows[0]["prompt"]]
        step = max(1, (len(mine) - 1) // (MOMENTS - 1))
        shown = [*mine[:-1:step][: MOMENTS - 1], mine[-1]]
        said = [
            (
                f"update {row['step']}",
                f"{row['reward']:+.2f} · limit {row['limit']} · {row['tokens']} tokens · {row['finish']}",
                row["response"],
            )
            for row in shown
        ]
        return [Heading("The Coarse Actor while it learned"), Answers(rows[0]["prompt"], said)]

    return part(file, make)


def about(run: Path) -> list[Block]:
    """Configuration and versions."""
    file = run / "config.yaml"
    blocks = part(file, lambda: [Heading("Configuration"), Code("config.yaml", file.read_text(encoding="utf-8"))])
    if (run / "run.json").is_file():
        blocks += part(run / "run.json", lambda: [Heading("Made with"), versions(read_json(run / "run.json"))])
    return blocks


def versions(manifest: dict[str, Any]) -> Table:
    """Versions, machine and seconds, as run.json has them."""
    told = {"lite_c2f": manifest.get("lite_c2f"), "python": manifest.get("python"), "machine": manifest.get("machine")}
    told |= manifest.get("versions", {}) | {f"seconds: {k}": v for k, v in manifest.get("seconds", {}).items()}
    return Table("", ["value"], {name: [str(value)] for name, value in told.items() if value is not None})


def actors_of(run: Path) -> dict[str, dict[str, float]]:
    """Figures of the actors from RUN/summary.json; {} where they are not compared yet."""
    summary = read_json(run / "summary.json")
    if not isinstance(summary, dict):
        raise TypeError("not a summary")
    return summary.get("actors", {}) if "actors" not in summary or summary["actors"] else _nothing()


def coarse_lines(run: Path) -> list[dict[str, float]]:
    """Lines of PPO in RUN/metrics.jsonl."""
    lines = [line for line in read_lines(run / "metrics.jsonl") if line["stage"] == "coarse"]
    for line in lines:
        float(line["step"]), float(line["reward"]), float(line["limit"])
    return lines


def named(runs: Sequence[Path]) -> dict[str, Path]:
    """Short names that tell runs apart. Raises RunError for a folder that is no run, or one given twice."""
    for run in runs:
        if not (run / "summary.json").is_file():
            raise RunError.because(f"'{run}' has no summary.json", "a run directory", "train it first")
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.resolve()) for run in runs]
    if len(set(names)) < len(names):
        raise RunError.because("the same run twice", "different runs", "leave one out")
    return dict(zip(names, runs, strict=True))


def differences(names: dict[str, Path]) -> Table:
    """Settings in which runs differ, a row a key."""
    flat = {name: settings_of(run) for name, run in names.items()}
    keys = sorted({key for settings in flat.values() for key in settings})
    rows = {key: [str(settings.get(key, "")) for settings in flat.values()] for key in keys}
    return Table("setting", list(names), {key: row for key, row in rows.items() if len(set(row)) > 1})


def settings_of(run: Path) -> dict[str, Any]:
    """{"a.b": value} of a run's configuration. Raises RunError naming a file that is damaged or empty."""
    file = run / "config.yaml"
    settings: dict[str, Any] = {}
    part(file, lambda: settings.update(flattened(yaml.safe_load(file.read_text("utf-8")))) or [])
    return settings


def flattened(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of nested mappings."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _nothing() -> Any:
    raise ValueError("no actors")
