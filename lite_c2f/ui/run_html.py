"""Run view as HTML: the state of a run, its stages, curves, samples, comparison and log."""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lite_c2f.runtime.svg import number
from lite_c2f.ui.escaping import fill
from lite_c2f.ui.plots import chart
from lite_c2f.ui.runs import RunState, Sample, StageState

TITLES = {"reward": "Reward model", "coarse": "Coarse Actor", "fine": "Fine Actor", "comparison": "Comparison"}
CHART_TITLES = TITLES | {"held_out": "Held-out prompts while the Coarse Actor trained"}
STATES = {
    "empty": "Nothing yet",
    "starting": "Starting",
    "running": "Running",
    "stopping": "Stopping",
    "interrupted": "Interrupted",
    "unfinished": "Not finished",
    "failed": "Failed",
    "killed": "Killed",
    "finished": "Finished",
}
MEANING = {
    "empty": "there is nothing in this folder; start a run below",
    "starting": "libraries are loaded, settings and data are checked",
    "stopping": "it finishes its step, saves and ends",
    "interrupted": "what was done is saved; Resume continues",
    "unfinished": "the stages that were asked for are done; Resume continues with the others",
    "killed": "it ended without a message: killed, or the machine went down; Resume continues from the last checkpoint",
}
CURVES = (  # stage, title, unit, curves of metrics.jsonl by their name in the legend
    ("coarse", "Reward", "z-score", {"reward": "reward"}),
    ("coarse", "Length", "tokens", {"limit": "limit", "mean": "tokens"}),
    ("coarse", "At the limit", "share of responses", {"share": "hit_limit"}),
    ("coarse", "KL to the base", "nats per response", {"kl": "kl"}),
    ("coarse", "Policy loss", "", {"loss": "policy_loss"}),
    ("coarse", "Critic loss", "", {"loss": "value_loss"}),
    ("coarse", "Entropy", "nats per token", {"entropy": "entropy"}),
    ("coarse", "Speed", "tokens/s", {"speed": "tokens_per_s"}),
    ("reward", "Loss", "nats per pair", {"loss": "loss"}),
    ("reward", "Ranked right", "share of a batch", {"share": "accuracy"}),
    ("reward", "Margin", "chosen over rejected", {"margin": "margin"}),
)
COMPARED = {
    "reward": "reward (z-score)",
    "tokens": "tokens",
    "eos": "ended by itself",
    "repeated_4gram": "repeated",
    "accuracy": "right",
    "analytic": "analytic",
}
STEPS = {"coarse": "update", "reward": "step", "held_out": "update"}
BLANK_LINES = re.compile(r"\n\s*\n")
PROMPTS = 6  # whose samples are shown


class StageBar(NamedTuple):
    """A stage of the run as a bar."""

    state: str
    title: str
    about: str
    percent: str  # of the bar's width


class StageCharts(NamedTuple):
    """A stage's curves."""

    title: str
    step: str  # what its x axis counts
    charts: list[str]  # HTML


class SampleCell(NamedTuple):
    """What the policy answered after an update."""

    about: str
    text: str


def header(state: RunState) -> str:
    """What the run is doing, in one line; the message of a failure."""
    about = MEANING.get(state.state, "")
    current = next((stage for stage in state.stages if stage.state == "running"), None)
    if state.state == "running":
        about = _doing(current) if current else "reading data and models"
    if state.state == "finished":
        spent = sum(stage.seconds or 0.0 for stage in state.stages)
        about = f"all stages are done, after {duration(spent)}"
    if state.state == "failed":
        about = state.message
    title = STATES[state.state]
    return fill("run_header.html", state=state.state, title=title, about=about, process=state.working)


def _doing(stage: StageState) -> str:
    parts = [TITLES[stage.name]]
    if stage.done is not None and stage.total:
        parts.append(f"{stage.done} of {stage.total} {stage.unit}")
    if stage.seconds_left is not None:
        parts.append(f"about {duration(stage.seconds_left)} left in this stage")
    return ", ".join(parts)


def bars(stages: Sequence[StageState]) -> str:
    """A bar for each stage: its state, steps and times."""
    rows = []
    for stage in stages:
        share = 1.0 if stage.state == "done" else (stage.done or 0) / stage.total if stage.total else 0.0
        parts: list[str] = [stage.state]
        if stage.done is not None:
            total = f"{stage.done} / {stage.total or '?'}"
            parts.append(f"{stage.done} {stage.unit}" if stage.state == "done" else total)
        parts += [duration(stage.seconds)] if stage.seconds else []
        parts += [f"{duration(stage.seconds_left)} left"] if stage.seconds_left is not None else []
        rows.append(StageBar(stage.state, TITLES[stage.name], ", ".join(parts), f"{100 * min(share, 1.0):.1f}"))
    return fill("run_stages.html", stages=rows)


def charts(state: RunState) -> str:
    """Small multiples of what metrics.jsonl holds, the Coarse Actor's first."""
    stages = []
    for stage in ("held_out", "coarse", "reward"):
        series = state.series.get(stage, {})
        figures = [
            chart(title, unit, {label: series.get(name, ()) for label, name in curves.items()}, STEPS[stage])
            for of, title, unit, curves in (*CURVES, *source_curves(stage, series))
            if of == stage
        ]
        if any(figures):
            stages.append(StageCharts(CHART_TITLES[stage], STEPS[stage], figures))
    return fill("run_charts.html", stages=stages)


def source_curves(stage: str, series: Mapping[str, Any]) -> list[tuple[str, str, str, dict[str, str]]]:
    """A chart for each source of reward (mean score before scaling), multiplier, and figure of held-out prompts."""
    if stage == "held_out":
        return [(stage, name, "mean over prompts", {"mean": name}) for name in series]
    titles = {"reward": ("Score of", "mean, before scaling"), "multiplier": ("Multiplier of", "weight in the reward")}
    parts = [(name, *name.split("/", 1)) for name in series if name.partition("/")[0] in titles and "/" in name]
    return [(stage, f"{titles[kind][0]} {of}", titles[kind][1], {"mean": name}) for name, kind, of in parts]


def comparison(state: RunState) -> str:
    """The figures of a finished run's actors, and the command to talk to them; "" before that."""
    actors = (state.summary or {}).get("actors")
    if not isinstance(actors, dict) or not actors:
        return ""
    rows = {name: row for name, row in actors.items() if isinstance(row, dict)}
    columns = [column for column in COMPARED if any(column in row for row in rows.values())]
    return fill(
        "run_comparison.html",
        columns=[COMPARED[column] for column in columns],
        rows={name: [_figure(column, row.get(column)) for column in columns] for name, row in rows.items()},
        command=shlex.join(["lite-c2f", "app", state.name]),
    )


def _figure(column: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return ""
    if column in ("tokens", "reward"):
        return f"{value:+.2f}" if column == "reward" else f"{value:.0f}"
    return f"{value:.1%}"


def samples(samples: Sequence[Sample]) -> str:
    """A row for each prompt: what was answered after a few updates, the first to the newest."""
    prompts = list(dict.fromkeys(sample.prompt for sample in samples))
    if not prompts:
        return ""
    ordered = sorted(samples)
    rows = [
        (BLANK_LINES.sub("\n", prompt.strip()), [_cell(sample) for sample in ordered if sample.prompt == prompt])
        for prompt in prompts[:PROMPTS]
    ]
    return fill("run_samples.html", rows=rows, more=len(prompts) - PROMPTS)


def _cell(sample: Sample) -> SampleCell:
    reward = f"{sample.reward:+.2f}" if math.isfinite(sample.reward) else "none"
    cut = ", cut at the limit" if sample.finish == "limit" else ""
    about = f"update {sample.step}, reward {reward}, {number(sample.tokens)} tokens{cut}"
    return SampleCell(about, sample.response.strip())


def log_lines(state: RunState) -> str:
    """The last lines of the log, or of a start that has not written one."""
    return fill("run_log.html", text="\n".join(state.log))


def duration(seconds: float) -> str:
    """A time in its two largest units.

    >>> duration(3725)
    '1 h 2 min'
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    hours = whole // 3600
    return f"{hours} h {whole % 3600 // 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
