"""The Run view as HTML. Every text of a file goes through escape."""

import math
import re
import shlex
from collections.abc import Sequence
from typing import Any

from lite_c2f.runtime.svg import number
from lite_c2f.ui.escaping import escape
from lite_c2f.ui.plots import chart
from lite_c2f.ui.runs import RunState, Sample, StageState

TITLES = {"reward": "Reward model", "coarse": "Coarse Actor", "fine": "Fine Actor", "comparison": "Comparison"}
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
STEPS = {"coarse": "update", "reward": "step"}
BLANK_LINES = re.compile(r"\n\s*\n")
PROMPTS = 6  # whose samples are shown


def header(state: RunState) -> str:
    """What the run is doing, in a line; and what a failure said."""
    about = MEANING.get(state.state, "")
    current = next((stage for stage in state.stages if stage.state == "running"), None)
    if state.state == "running":
        about = _doing(current) if current else "reading data and models"
    if state.state == "finished":
        spent = sum(stage.seconds or 0.0 for stage in state.stages)
        about = f"all stages are done, after {duration(spent)}"
    if state.state == "failed":
        about = state.message
    who = f" <small>{escape(state.working)}</small>" if state.working else ""
    return f'<p class="run-state {state.state}"><b>{STATES[state.state]}</b> <span>{escape(about)}</span>{who}</p>'


def _doing(stage: StageState) -> str:
    parts = [TITLES[stage.name]]
    if stage.done is not None and stage.total:
        parts.append(f"{stage.done} of {stage.total} {stage.unit}")
    if stage.left is not None:
        parts.append(f"about {duration(stage.left)} left in this stage")
    return ", ".join(parts)


def bars(stages: Sequence[StageState]) -> str:
    """A bar a stage: its state, steps and times."""
    parts = []
    for stage in stages:
        share = 1.0 if stage.state == "done" else (stage.done or 0) / stage.total if stage.total else 0.0
        steps = ""
        if stage.done is not None:
            steps = f"{stage.done} {stage.unit}" if stage.state == "done" else f"{stage.done} / {stage.total or '?'}"
        times = [duration(stage.seconds)] if stage.seconds else []
        times += [f"{duration(stage.left)} left"] if stage.left is not None else []
        about = ", ".join([stage.state, *([steps] if steps else []), *times])
        parts.append(
            f'<div class="stage {stage.state}"><b>{TITLES[stage.name]}</b> <span>{escape(about)}</span>'
            f'<div class="bar"><i style="width:{100 * min(share, 1.0):.1f}%"></i></div></div>'
        )
    return f'<div class="stages">{"".join(parts)}</div>'


def charts(state: RunState) -> str:
    """Small multiples of what metrics.jsonl holds, the Coarse Actor's first."""
    parts = []
    for stage in ("coarse", "reward"):
        series = state.series.get(stage, {})
        figures = [
            chart(title, unit, {label: series.get(name, ()) for label, name in curves.items()}, STEPS[stage])
            for of, title, unit, curves in CURVES
            if of == stage
        ]
        if any(figures):
            parts.append(
                f'<h3>{TITLES[stage]} <span>by {STEPS[stage]}</span></h3><div class="plots">{"".join(figures)}</div>'
            )
    return "".join(parts) or '<p class="none">Curves appear with the first step.</p>'


def comparison(state: RunState) -> str:
    """What the actors of a finished run came to, and how to talk to them."""
    actors = (state.summary or {}).get("actors")
    if not isinstance(actors, dict) or not actors:
        return ""
    rows = {name: row for name, row in actors.items() if isinstance(row, dict)}
    columns = [column for column in COMPARED if any(column in row for row in rows.values())]
    head = "".join(f"<th>{escape(COMPARED[column])}</th>" for column in columns)
    body = ""
    for name, row in rows.items():
        cells = "".join(f"<td>{_figure(column, row.get(column))}</td>" for column in columns)
        body += f"<tr><th>{escape(str(name))}</th>{cells}</tr>"
    talk = escape(shlex.join(["lite-c2f", "app", state.name]))
    hint = f"In the folder of the runs, <code>{talk}</code> talks to them; <code>lite-c2f report</code> shows all."
    return (
        '<h3>Comparison <span>on held-out prompts</span></h3><div class="figures"><table>'
        f'<tr><th></th>{head}</tr>{body}</table></div><p class="none">{hint}</p>'
    )


def _figure(column: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return ""
    if column in ("tokens", "reward"):
        return f"{value:+.2f}" if column == "reward" else f"{value:.0f}"
    return f"{value:.1%}"


def samples(found: Sequence[Sample]) -> str:
    """A row a prompt: what was answered after a few updates, the first to the newest."""
    prompts = list(dict.fromkeys(sample.prompt for sample in found))
    rows = []
    for prompt in prompts[:PROMPTS]:
        cells = [_cell(sample) for sample in sorted(found) if sample.prompt == prompt]
        question = escape(BLANK_LINES.sub("\n", prompt.strip()))
        rows.append(f'<blockquote>{question}</blockquote><div class="cells">{"".join(cells)}</div>')
    if not rows:
        return ""
    more = f'<p class="none">{len(prompts) - PROMPTS} more prompts are in coarse/samples.jsonl.</p>'
    title = "<h3>Samples <span>answers to the same held-out prompts, as the policy learns</span></h3>"
    return title + "".join(rows) + (more if len(prompts) > PROMPTS else "")


def _cell(sample: Sample) -> str:
    reward = f"{sample.reward:+.2f}" if math.isfinite(sample.reward) else "none"
    cut = ", cut at the limit" if sample.finish == "limit" else ""
    about = f"update {sample.step}, reward {reward}, {number(sample.tokens)} tokens{cut}"
    text = escape(sample.response.strip()) or "<i>(empty)</i>"
    return f'<div class="cell"><small>{escape(about)}</small><pre>{text}</pre></div>'


def said(state: RunState) -> str:
    """The last lines of the log, or of a start that has not written one."""
    return f'<pre class="said">{escape(chr(10).join(state.log)) or "no log yet"}</pre>'


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
