"""Run view as HTML: the state of a run, its stages, samples, comparison and log."""

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lite_c2f.evaluation.meanings import meaning_of, title_of
from lite_c2f.runtime.svg import number
from lite_c2f.ui.escaping import fill
from lite_c2f.ui.runs import RunState, Sample, StageState
from lite_c2f.ui.runs.settings import Changed

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
COMPARED = ("reward", "tokens", "eos", "repeated_4gram", "accuracy", "analytic")
BLANK_LINES = re.compile(r"\n\s*\n")
LOG_LINES = 200  # that are shown unless all are wanted
WARNING = re.compile(r" (WARNING) lite_c2f[\w.]*: (.+)| lite_c2f[\w.]*: (warning|note): (.+)")
UPDATE = re.compile(r"update \d+: ")  # before what is said of many updates
WARNINGS = 5  # that are shown
PROMPTS = 6  # whose samples are shown


class StageBar(NamedTuple):
    """A stage of the run as a bar."""

    state: str
    title: str
    about: str
    percent: str  # of the bar's width


class SampleCell(NamedTuple):
    """What the policy answered after an update."""

    about: str
    text: str


def header(state: RunState, earlier: Mapping[str, float] | None = None) -> str:
    """What the run is doing, in one line; the message of a failure.

    earlier: seconds that stages took in an earlier run of the same settings, as far as they are known.
    """
    about = MEANING.get(state.state, "")
    current = next((stage for stage in state.stages if stage.state == "running"), None)
    if state.state == "running":
        about = _doing(current, state.stages, earlier or {}) if current else "reading data and models"
    if state.state == "finished":
        spent = sum(stage.seconds or 0.0 for stage in state.stages)
        about = f"all stages are done, after {duration(spent)}"
    if state.state == "failed":
        about = state.message
    title = STATES[state.state]
    return fill("run_header.html", name=state.name, state=state.state, title=title, about=about, process=state.working)


def _doing(stage: StageState, stages: Sequence[StageState], earlier: Mapping[str, float]) -> str:
    parts = [TITLES[stage.name]]
    if stage.done is not None and stage.total:
        parts.append(f"{stage.done} of {stage.total} {stage.unit}")
    waiting = [other.name for other in stages if other.state == "waiting"]
    if stage.seconds_left is not None:
        left = f"about {duration(stage.seconds_left)} left"
        parts.append(f"{left} in this stage" if waiting else left)
    spent = sum(other.seconds or 0.0 for other in stages)
    if spent:
        parts.append(f"{duration(spent)} so far")
    text = ", ".join(parts)
    if waiting:
        text += f"; after that: {', '.join(_ahead(name, earlier) for name in waiting)}"
    if waiting and stage.seconds_left is not None and all(name in earlier for name in waiting):
        whole = stage.seconds_left + sum(earlier[name] for name in waiting)
        text += f"; about {duration(whole)} left in all, if they take as long as in the run before"
    return text


def _ahead(name: str, earlier: Mapping[str, float]) -> str:
    """A stage that has not begun, with the time it took in an earlier run of the same settings."""
    return f"{TITLES[name]} ({duration(earlier[name])} in an earlier run)" if name in earlier else TITLES[name]


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


def warnings(state: RunState) -> str:
    """What the log warns of, each thing once with its last text. state: with its whole log."""
    matches = (match for line in state.log if (match := WARNING.search(line)))
    kinds_and_texts = (((match[1] or match[3]).capitalize(), match[2] or match[4]) for match in matches)
    found = list({UPDATE.sub("", text): (kind, text) for kind, text in kinds_and_texts}.values())
    return fill("run_warnings.html", warnings=found[-WARNINGS:], more=max(0, len(found) - WARNINGS))


def comparison(state: RunState) -> str:
    """The figures of a finished run's actors, and the command to talk to them; "" before that."""
    actors = (state.summary or {}).get("actors")
    if not isinstance(actors, dict) or not actors:
        return ""
    rows = {name: row for name, row in actors.items() if isinstance(row, dict)}
    columns = [column for column in COMPARED if any(column in row for row in rows.values())]
    return fill(
        "run_comparison.html",
        columns=[(title_of(column), meaning_of(column)) for column in columns],
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


def settings(changed: Changed | None) -> str:
    """A table of the settings that were changed: key, before, now."""
    rows = [] if changed is None else [(key, _setting(before), _setting(now)) for key, before, now in changed.rows]
    return fill("run_settings.html", parent=changed.parent if changed else "", rows=rows)


def _setting(value: Any) -> str:
    """A setting as YAML has it, or nearly, in at most 200 characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:199]}…"


def log_lines(state: RunState, search: str = "", whole: bool = False) -> str:
    """The last lines of the log, or all of it; with a search, of the lines that have its text in any case."""
    lines, about = state.log, ""
    if search:
        lines = tuple(line for line in lines if search.casefold() in line.casefold())
        about = f"{len(lines)} of {len(state.log)} lines have {search!r}"
    last = lines if whole else lines[-LOG_LINES:]
    if len(last) < len(lines):
        about = f"{about + ': the' if about else 'The'} last {len(last)}" + (
            "" if search else f" of {len(lines)} lines"
        )
    empty = "no such line" if search and state.log else "no log yet"
    return fill("run_log.html", text="\n".join(last) or empty, about=about)


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
