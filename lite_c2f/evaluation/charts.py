"""Charts for the report: matplotlib's SVG with the page's own ink, so that they follow light and dark."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's text colour
PALETTE = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#14b8a6")  # readable on white and on near-black
CURVES = (
    ("reward", "reward (spreads)"),
    ("limit", "response limit (tokens)"),
    ("hit_limit", "share at the limit"),
    ("tokens", "tokens a response"),
    ("kl", "KL to the base (nats a response)"),
    ("value_loss", "critic loss"),
    ("entropy", "entropy (nats a token)"),
    ("reward_length_correlation", "correlation of reward and length"),
)
TRIED = (
    ("reward", "reward (spreads)"),
    ("tokens", "tokens a response"),
    ("eos", "share that ended"),
    ("repeated_4gram", "repeated 4-grams"),
    ("kl", "KL to instruct (nats a token)"),
)
Lines = Sequence[Mapping[str, float]]


def curves(runs: Mapping[str, Lines]) -> str:
    """Learning curves of PPO, a colour a run. runs: lines of metrics.jsonl by the run's name."""
    figure, axes = _grid(2, 4)
    for place, (name, label) in zip(axes, CURVES, strict=True):
        for color, (run, lines) in zip(PALETTE * len(runs), runs.items(), strict=False):
            points = [(line["step"], line[name]) for line in lines if name in line]
            place.plot([x for x, _ in points], [y for _, y in points], color=color, lw=1.6, label=run)
        _label(place, label, "update")
    if len(runs) > 1:
        axes[0].legend(fontsize=8, frameon=False, labelcolor=INK)
    return _svg(figure)


def distributions(rows: Sequence[Mapping[str, Any]]) -> str:
    """How lengths and rewards of the actors' answers are spread. rows: of evaluation/responses.jsonl."""
    figure, axes = _grid(1, 2, height=2.6)
    actors = list(dict.fromkeys(row["actor"] for row in rows))
    for place, (name, label) in zip(axes, (("tokens", "tokens a response"), ("reward", "reward")), strict=True):
        values = [[row[name] for row in rows if row["actor"] == actor] for actor in actors]
        low, high = min(map(min, values)), max(map(max, values))
        edges = [low + (high - low or 1) * step / 30 for step in range(31)]
        for color, actor, found in zip(PALETTE, actors, values, strict=False):
            place.hist(found, bins=edges, histtype="step", color=color, lw=1.6, label=actor)
        _label(place, label, "")
        place.set_ylabel("answers", fontsize=8, color=INK)
    axes[0].legend(fontsize=8, frameon=False, labelcolor=INK)
    return _svg(figure)


def ratios(found: Mapping[str, Any]) -> str:
    """What each ratio of the residue gave, the chosen one marked. found: fine/ratios.json."""
    figure, axes = _grid(1, len(TRIED), height=2.3)
    tried = found["tried"]
    for place, (name, label) in zip(axes, TRIED, strict=True):
        values = [row.get(name, math.nan) for row in tried]
        errors = ratio_errors(tried) if name == "reward" else None
        place.errorbar([row["ratio"] for row in tried], values, errors, color=PALETTE[0], marker="o", ms=4, lw=1.6)
        place.axvline(found["chosen"], color=PALETTE[1], linestyle="--", lw=1.2)
        _label(place, label, "ratio")
    return _svg(figure)


def ratio_errors(tried: Sequence[Mapping[str, float]]) -> list[float]:
    """Error bars of rewards by ratio: of the paired difference to the best, by which the ratio is chosen.

    Of files of earlier versions, which lack it, the standard error of each mean.
    """
    return [row.get("behind_se", row["reward_se"]) for row in tried]


def _grid(rows: int, columns: int, height: float = 2.1) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(12, height * rows), layout="constrained")
    figure.patch.set_alpha(0)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for place in axes:
        place.patch.set_alpha(0)
        place.grid(alpha=0.2, color=INK)
        place.tick_params(colors=INK, labelsize=8)
        for spine in place.spines.values():
            spine.set_color(INK)
            spine.set_alpha(0.3)
    return figure, axes


def _label(place: Any, title: str, below: str) -> None:
    place.set_title(title, fontsize=9, color=INK)
    if below:
        place.set_xlabel(below, fontsize=8, color=INK)


def _svg(figure: Figure) -> str:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lite_c2f", "font.family": "sans-serif"}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor").strip()
