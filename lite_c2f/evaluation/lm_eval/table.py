"""Terminal table of general benchmarks."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lite_c2f.evaluation.extras import with_error
from lite_c2f.evaluation.lm_eval.stage import FILE


def print_benchmarks(result: dict[str, Any], run: Path) -> None:
    """Print a row per task and actor with its figure and its difference to the baseline, and the next command."""
    console = Console(highlight=False)
    table = Table(title="General benchmarks", title_justify="left")
    for name in ("task", "metric"):
        table.add_column(name, overflow="fold")
    table.add_column("actor", no_wrap=True)
    for name in ("figure", f"to {result['baseline']}"):
        table.add_column(name, justify="right", no_wrap=True)
    for task in result["shown"]:
        for metric, row in result["tasks"][task]["metrics"].items():
            for index, actor in enumerate(result["actors"]):
                names = (Text(task), Text(metric)) if index == 0 else (Text(), Text())
                figures = (with_error(row["actors"][actor], ""), difference_text(row["differences"].get(actor)))
                table.add_row(*names, actor, *figures, end_section=actor == result["actors"][-1])
    console.print(table)
    few = f", at most {result['limit']} documents of a task" if result["limit"] else ""
    chat = ", as conversations" if result["chat_template"] else ""
    legend = f"± one standard error, * a difference above two of them; lm-eval {result['lm_eval']}{few}{chat}"
    more = f"every figure is in {run / 'evaluation' / FILE}\n\nNext:\n  lite-c2f report {run}    with this table"
    console.print(Text(f"{legend}\n{more}"), soft_wrap=True)


def difference_text(difference: dict[str, Any] | None) -> Text:
    """A difference with its standard error, marked if it is clear."""
    if difference is None:
        return Text("")
    star = "*" if difference["clear"] else " "
    return Text(with_error(difference, "+") + star, style="bold" if difference["clear"] else "")
