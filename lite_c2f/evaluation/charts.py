"""Charts of the report: learning curves from metrics.jsonl, and distributions of the responses."""

from collections.abc import Mapping, Sequence
from typing import Any

from lite_c2f.runtime.svg import Panel, Series, figure, histogram

CURVES = (  # names in metrics.jsonl, and the titles of their panels
    ("reward", "reward (z-score)"),
    ("limit", "response limit (tokens)"),
    ("hit_limit", "share at the limit"),
    ("tokens", "tokens per response"),
    ("kl", "KL to the base (nats per response)"),
    ("value_loss", "critic loss"),
    ("entropy", "entropy (nats per token)"),
    ("reward_length_correlation", "correlation of reward and length"),
)
COLUMNS = 4
WIDTH, HEIGHT = 290, 170  # of a panel
CAPTION = "PPO, update by update"


def curves(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Learning curves of PPO, one color per run. runs: rows of metrics.jsonl by the name of the run."""
    panels = [
        Panel(
            [Series(run, [(row["step"], row[name]) for row in rows if name in row]) for run, rows in runs.items()],
            title,
            "update",
            whole=True,
        )
        for name, title in CURVES
    ]
    return figure(panels, COLUMNS, WIDTH, HEIGHT, CAPTION)


def distributions(rows: Sequence[Mapping[str, Any]]) -> str:
    """Histograms of the lengths and rewards of each actor's responses. rows: of evaluation/responses.jsonl."""
    actors = list(dict.fromkeys(row["actor"] for row in rows))
    panels = []
    for name, title in (("tokens", "tokens per response"), ("reward", "reward")):
        values = [row[name] for row in rows]
        low, high = min(values), max(values)
        series = [
            Series(actor, histogram([row[name] for row in rows if row["actor"] == actor], low, high), end=False)
            for actor in actors
        ]
        panels.append(Panel(series, title, y_label="responses"))
    return figure(panels, 2, 2 * WIDTH, HEIGHT + 20, "Responses to the same prompts")
