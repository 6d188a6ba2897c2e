"""Subcommand for the votes of the app, blind and open: votes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lite_c2f.cli.program import program
from lite_c2f.cli.root import LOOK_GROUP, app
from lite_c2f.errors import RunError
from lite_c2f.runs.published import check_run_folder

if TYPE_CHECKING:
    from lite_c2f.evaluation.ratings import Rating
    from lite_c2f.ui.store.votes import Tally, Vote


@app.command(rich_help_panel=LOOK_GROUP, epilog="Example: lite-c2f votes runs/toy --export preferences.jsonl")
def votes(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    export: Annotated[Path | None, typer.Option(help="A new .jsonl file of preference pairs to train on.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count the votes of the app, blind and open ones apart; with --export, also write them as preference data."""
    from lite_c2f.ui.store.preferences import export as export_pairs
    from lite_c2f.ui.store.votes import current, ratings, read, tally, votes_of

    file = votes_of(run)
    check_run_folder(run)
    all_votes = read(file)
    counted = current(all_votes)
    if not counted:
        raise RunError.because(f"no votes in '{file}'", "at least one", f"vote in `lite-c2f app {run}`")
    written = export_pairs(all_votes, export) if export else None
    kinds = [[vote for vote in counted if vote.blind is blind] for blind in (True, False)]
    if as_json:
        blind, opened = (
            {"votes": len(kind)}
            | {name: [row._asdict() for row in of(kind)] for name, of in (("pairs", tally), ("ratings", ratings))}
            for kind in kinds
        )
        result = {**blind, "open": opened}
        typer.echo(json.dumps(result | ({"exported": written._asdict()} if written else {})))
        return
    for title, kind in zip(("Blind votes", "Open votes, whose voters saw the names"), kinds, strict=True):
        if kind:
            _print(title, tally(kind), ratings(kind), kind)
    if written:
        left_out = ", ".join(f"{reason} {count}" for reason, count in written.skipped.items())
        typer.echo(f"wrote {written.pairs} pairs to {export}" + (f"; left out: {left_out}" if left_out else ""))
        typer.echo(f"\nNext:\n  {program()} train CONFIG 'data.preferences=[{export}]'")


def _print(title: str, rows: Sequence["Tally"], strengths: Sequence["Rating"], all_votes: Sequence["Vote"]) -> None:
    """Print the tally as a table, the actors' ratings, and notes on both."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(title=title, title_justify="left")
    for name in ("pair", "wins", "ties", "bad", "losses", "rate", "95%", "p"):
        table.add_column(name, justify="left" if name == "pair" else "right")
    for row in rows:
        rate = "" if row.rate is None else f"{row.rate:.2f}"
        counts = (str(count) for count in (row.wins, row.ties, row.both_bad, row.losses))
        interval = f"{row.low:.2f}–{row.high:.2f}" if rate else ""
        table.add_row(Text(f"{row.left} over {row.right}"), *counts, rate, interval, f"{row.p:.3f}" if rate else "")
    console.print(table)
    people = len({vote.voter for vote in all_votes})
    voters = "1 voter" if people == 1 else f"{people} voters"
    console.print(f"{len(all_votes)} votes, {voters}; bad: none of them was good; rate: wins among wins and losses")
    console.print("95%: Wilson's interval of the rate; p: two-sided sign test of wins against losses")
    if strengths:
        listed = ", ".join(f"{row.name} {row.points:+.0f} ({row.low:+.0f} to {row.high:+.0f})" for row in strengths)
        console.print(Text(f"rating: {listed}"), soft_wrap=True)
        console.print("rating: Bradley-Terry points with 95% intervals, 0 is the mean; 400 more are odds of 10 to 1")
    ratios = sorted({vote.ratio for vote in all_votes if vote.ratio is not None})
    if len(ratios) > 1:
        listed = ", ".join(f"{ratio:g}" for ratio in ratios)
        console.print(Text(f"note: the Fine Actor had several ratios, counted as one here: {listed}"), soft_wrap=True)
