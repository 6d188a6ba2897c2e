"""The table of general benchmarks on a terminal."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lite_c2f.evaluation.lm_eval.stage import FILE


def print_benchmarks(found: dict[str, Any], run: Path) -> None:
    """Task by task a line an actor: its figure, and how far it is from the baseline; and what to do next."""
    console = Console(highlight=False)
    table = Table(title="General benchmarks", title_justify="left")
    for name in ("task", "metric"):
        table.add_column(name, overflow="fold")
    table.add_column("actor", no_wrap=True)
    for name in ("figure", f"to {found['baseline']}"):
        table.add_column(name, justify="right", no_wrap=True)
    for task in found["shown"]:
        for metric, row in found["tasks"][task]["metrics"].items():
            for place, actor in enumerate(found["actors"]):
                what = (Text(task), Text(metric)) if place == 0 else (Text(), Text())
                figures = (figure(row["actors"][actor]), gap(row["differences"].get(actor)))
                table.add_row(*what, actor, *figures, end_section=actor == found["actors"][-1])
    console.print(table)
    few = f", at most {found['limit']} documents of a task" if found["limit"] else ""
    chat = ", asked as conversations" if found["chat_template"] else ""
    told = f"± one standard error, * a difference above two of them; lm-eval {found['lm_eval']}{few}{chat}"
    following = f"every figure is in {run / 'evaluation' / FILE}\n\nNext:\n  lite-c2f report {run}    with this table"
    console.print(Text(f"{told}\n{following}"), soft_wrap=True)


def figure(found: dict[str, Any]) -> str:
    """A figure with its standard error."""
    if found["value"] is None:
        return ""
    return f"{found['value']:.3f}" + ("" if found["se"] is None else f" ± {found['se']:.3f}")


def gap(found: dict[str, Any] | None) -> Text:
    """A difference with its standard error, marked where it is clear."""
    if found is None:
        return Text("")
    text = f"{found['value']:+.3f}" + ("" if found["se"] is None else f" ± {found['se']:.3f}")
    return Text(text + ("*" if found["clear"] else " "), style="bold" if found["clear"] else "")
