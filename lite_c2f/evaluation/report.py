"""Report of a run, or of several for comparison: one HTML page, and the same as Markdown.

SECTIONS has the order of the page. To add a field, change its section in sections.py (of the run's own files) or in
extras.py (of `eval --tasks`, `judge` and `probe`); to add a section, write a function there and name it here.
How blocks look is in page.py and templates/report.html; charts are in charts.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lite_c2f.errors import RunError
from lite_c2f.evaluation import charts, extras, sections
from lite_c2f.evaluation.page import Block, Chart, Heading, Table, Text, as_html, as_markdown, figures_table
from lite_c2f.evaluation.sections import read_actors, read_part, read_updates
from lite_c2f.storage.files import write_text

SECTIONS = (
    sections.header,
    sections.comparison,
    sections.by_source,
    extras.general,
    extras.judgments,
    extras.unwanted_words,
    sections.learning,
    sections.held_out,
    sections.ratios,
    sections.responses,
    sections.samples_over_time,
    sections.configuration,
    sections.versions,
)


def write_report(run: Path) -> Path:
    """Write RUN/report/index.html and report.md; no network is needed to read them. Returns the page's path.

    For an unfinished run, with the results so far. Raises RunError if there are none, and for a file of another format.
    """
    if run.exists() and not run.is_dir():
        raise RunError.because(f"'{run}' is a file", "a run directory", "give one made by lite-c2f")
    if not (run / "summary.json").is_file() and not (run / "metrics.jsonl").is_file():
        got = f"'{run}' has neither summary.json nor metrics.jsonl"
        raise RunError.because(got, "a run that has begun", "run `lite-c2f train` first")
    blocks = [block for section in SECTIONS for block in section(run)]
    return publish(run / "report" / "index.html", run.resolve().name, blocks)


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Write one page about several runs: actors, learning curves over each other, and the settings that differ.

    Raises RunError for a folder that is not a finished run, a run that is given twice, and a damaged file.
    """
    names = short_run_names(runs)
    actors = {name: read_part(run / "summary.json", read_actors) for name, run in names.items()}
    blocks: list[Block] = []
    for actor in ("coarse", "fine"):
        rows = {name: figures[actor] for name, figures in actors.items() if actor in figures}
        table = figures_table(rows, "run") if rows else Text("The actors of these runs have not been compared yet.")
        blocks += [Heading(f"{actor.capitalize()} Actor"), table]
    updates = {name: read_part(run / "metrics.jsonl", read_updates) for name, run in names.items()}
    blocks += [Heading("Learning"), Chart(charts.curves(updates), charts.CAPTION)]
    blocks += [Heading("Settings that differ"), settings_table(names)]
    return publish(out, " · ".join(names), blocks)


def publish(page: Path, title: str, blocks: Sequence[Block]) -> Path:
    """Write the page, and the same as Markdown beside it."""
    markdown = page.with_name("report.md" if page.name == "index.html" else f"{page.stem}.md")
    write_text(markdown, as_markdown(title, blocks))
    write_text(page, as_html(title, blocks))
    return page


def short_run_names(runs: Sequence[Path]) -> dict[str, Path]:
    """Runs by the name of their folder, or by their path where two folders have the same name.

    Raises RunError for a folder that is not a finished run, and for a run that is given twice.
    """
    for run in runs:
        if not (run / "summary.json").is_file():
            raise RunError.because(f"'{run}' has no summary.json", "a run directory", "train it first")
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.resolve()) for run in runs]
    if len(set(names)) < len(names):
        raise RunError.because("the same run twice", "different runs", "leave one out")
    return dict(zip(names, runs, strict=True))


def settings_table(runs: dict[str, Path]) -> Table:
    """The settings in which runs differ, a row per key. Raises RunError naming a file that is damaged or empty."""
    settings = {name: read_part(run / "config.yaml", read_settings) for name, run in runs.items()}
    keys = sorted({key for values in settings.values() for key in values})
    rows = {key: [str(values.get(key, "")) for values in settings.values()] for key in keys}
    return Table("setting", list(runs), {key: row for key, row in rows.items() if len(set(row)) > 1})


def read_settings(file: Path) -> dict[str, Any]:
    """{"a.b": value} of config.yaml."""
    return flattened(yaml.safe_load(file.read_text("utf-8")))


def flattened(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of nested mappings."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
