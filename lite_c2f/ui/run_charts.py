"""Charts of the Run view: what metrics.jsonl holds of one run, or of several in the same charts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lite_c2f.ui.escaping import fill
from lite_c2f.ui.plots import chart
from lite_c2f.ui.runs import Point, RunState, downsample
from lite_c2f.ui.runs.axes import ChartView, last_part, moved, positions, smoothed

TITLES = {
    "held_out": "Held-out prompts while the Coarse Actor trained",
    "coarse": "Coarse Actor",
    "reward": "Reward model",
}
# Stage, title, unit, curves of metrics.jsonl by their name in the legend; of several runs the last curve alone.
CURVES = (
    ("coarse", "Reward", "z-score", {"reward": "reward"}),
    ("coarse", "Length", "tokens", {"limit": "limit", "mean": "tokens"}),
    ("coarse", "At the limit", "share of responses", {"share": "hit_limit"}),
    ("coarse", "KL to the base", "nats per response", {"kl": "kl"}),
    ("coarse", "Policy loss", "", {"loss": "policy_loss"}),
    ("coarse", "Critic loss", "", {"loss": "value_loss"}),
    ("coarse", "Entropy", "nats per token", {"entropy": "entropy"}),
    ("coarse", "Speed", "tokens/s", {"speed": "tokens_per_s"}),
    ("coarse", "Peak memory", "MiB, GPU or else resident", {"memory": "peak_memory_mib"}),
    ("reward", "Loss", "nats per pair", {"loss": "loss"}),
    ("reward", "Accuracy", "share of a batch's pairs", {"share": "accuracy"}),
    ("reward", "Margin", "chosen over rejected", {"margin": "margin"}),
)
STEPS = {"coarse": "update", "reward": "step", "held_out": "update"}
UNSMOOTHED = ("limit", "peak_memory_mib")  # a setting, and a maximum since the start


class StageCharts(NamedTuple):
    """A stage's curves."""

    title: str
    step: str  # what its x axis counts
    charts: list[str]  # HTML
    outside: list[str]  # runs that have no point in the part of the x axis that is shown


def charts(states: Sequence[RunState], view: ChartView = ChartView()) -> str:
    """Small multiples of what metrics.jsonl holds, held-out prompts first. Of several runs, each is a line."""
    stages = []
    for stage in TITLES:
        step, places = _x_axis(stage, states, view)
        figures, drawn_of, shown_of = [], set[str](), set[str]()
        for of, title, unit, names in (*CURVES, *source_curves(stage, _names(states, stage))):
            if of == stage:
                lines = _lines(states, stage, names, places, view)
                parts = last_part(list(lines.values()), view.part)
                shown = {label: downsample(part) for label, part in zip(lines, parts, strict=True)}
                drawn_of |= {label for label, line in lines.items() if line}
                shown_of |= {label for label, part in shown.items() if part}
                figures.append(chart(title, unit, shown, step))
        if any(figures):
            drawn = [figure for figure in figures if figure]
            stages.append(StageCharts(TITLES[stage], step, drawn, sorted(drawn_of - shown_of)))
    return fill("run_charts.html", stages=stages)


def _x_axis(
    stage: str, states: Sequence[RunState], view: ChartView
) -> tuple[str, Sequence[Mapping[float, float] | None]]:
    """What a stage's x axis counts, and where each run's steps are on it; steps where a run has not recorded others."""
    places = [None if stage == "reward" else positions(state.series, view.axis) for state in states]
    drawn = [place for place, state in zip(places, states, strict=True) if state.series.get(stage)]
    if not drawn or None in drawn:
        return STEPS[stage], [None] * len(states)
    return {"tokens": "token", "minutes": "minute"}[view.axis], places


def _names(states: Sequence[RunState], stage: str) -> dict[str, Any]:
    """Names of all curves that any of the runs has of a stage, in their order."""
    return dict.fromkeys(name for state in states for name in state.series.get(stage, {}))


def _lines(
    states: Sequence[RunState],
    stage: str,
    names: Mapping[str, str],
    places: Sequence[Mapping[float, float] | None],
    view: ChartView,
) -> dict[str, Sequence[Point]]:
    """The lines of one chart by their label: curves of one run, or one curve of several runs by the runs' names."""
    if len(states) > 1:
        names = dict([list(names.items())[-1]])
    lines = {}
    for state, where in zip(states, places, strict=True):
        for label, name in names.items():
            points = state.series.get(stage, {}).get(name, ())
            smooth = points if name in UNSMOOTHED else smoothed(points, view.window)
            lines[label if len(states) == 1 else state.name] = moved(smooth, where)
    return lines


def source_curves(stage: str, series: Mapping[str, Any]) -> list[tuple[str, str, str, dict[str, str]]]:
    """A chart for each source of reward (mean score before scaling), multiplier, and figure of held-out prompts."""
    if stage == "held_out":
        return [(stage, name, "mean over prompts", {"mean": name}) for name in series]
    titles = {"reward": ("Score of", "mean, before scaling"), "multiplier": ("Multiplier of", "weight in the reward")}
    parts = [(name, *name.split("/", 1)) for name in series if name.partition("/")[0] in titles and "/" in name]
    return [(stage, f"{titles[kind][0]} {of}", titles[kind][1], {"mean": name}) for name, kind, of in parts]
