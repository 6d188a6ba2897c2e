"""Figures of answers that are known by their rows alone, as of a visitor's prompts: no tokens, no files of a run."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from lite_c2f.actors.answers import standard_error
from lite_c2f.actors.names import ACTORS
from lite_c2f.evaluation import charts
from lite_c2f.evaluation.page import Block, Chart, Text, figures_table
from lite_c2f.evaluation.sections import WINS, with_interval
from lite_c2f.evaluation.wins import PAIRS, paired_wins

FAILED = "error"  # how an answer ended that is none


def blocks_of_rows(rows: Iterable[Mapping[str, Any]]) -> list[Block]:
    """Means per actor with standard errors, win rates, and distributions; [] without an answer.

    rows: of responses.jsonl. A failed answer counts nowhere, one without a reward where none is needed.
    """
    answered = [row for row in rows if row["finish"] != FAILED]
    by_actor = {actor: of_actor for actor in ACTORS if (of_actor := [r for r in answered if r["actor"] == actor])}
    if not by_actor:
        return []
    figures = {actor: means(of_actor) for actor, of_actor in by_actor.items()}
    errors = {actor: _errors(of_actor) for actor, of_actor in by_actor.items()}
    blocks: list[Block] = [figures_table(figures, "actor", "fine", errors), Text("± one standard error.")]
    scored = [row for row in answered if row["reward"] is not None]
    if wins := win_rates(scored):
        blocks += [figures_table(wins, "wins"), Text(WINS)]
    if scored:
        blocks.append(Chart(charts.distributions(scored), "Responses to the same prompts"))
    return blocks


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The figures that `summarize` has of answers whose tokens are known; without rewards there is no mean of them."""
    rewards = _rewards(rows)
    return {
        **({"reward": fmean(rewards)} if rewards else {}),
        "tokens": fmean(row["tokens"] for row in rows),
        "repeated_4gram": fmean(row["repeated_4gram"] for row in rows),
        "eos": fmean(row["finish"] != "limit" for row in rows),
    }


def _errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    rewards = _rewards(rows)
    tokens = {"tokens": standard_error([row["tokens"] for row in rows])}
    return {**({"reward": standard_error(rewards)} if rewards else {}), **tokens}


def _rewards(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [row["reward"] for row in rows if row["reward"] is not None]


def win_rates(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Win rates with intervals, of the pairs of the comparison, over the prompts that both sides have a reward on."""
    by_actor: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_actor.setdefault(row["actor"], {})[row["prompt"]] = row
    wins = {}
    for left, right in PAIRS:
        sides = by_actor.get(left, {}), by_actor.get(right, {})
        prompts = [prompt for prompt in sides[0] if prompt in sides[1]]
        if prompts:
            rewards, tokens = ([[side[p][key] for p in prompts] for side in sides] for key in ("reward", "tokens"))
            wins[f"{left} over {right}"] = with_interval(paired_wins(*rewards, *tokens)._asdict())
    return wins
