"""Evaluation tab: what the run's comparison found, and all held-out prompts with the actors' answers.

All of it is read from the run's files, and nothing before the tab is opened. The only state is a visitor's place in
the table. What a browser sends is a number of a row or the key of a column, and is looked up, never opened.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from gradio.context import Context

from lite_c2f.errors import C2FError
from lite_c2f.evaluation.prompt_table import PRESETS, TEXTS, PromptRow, Query, actors_of, select, sort_keys
from lite_c2f.ui import evaluation_html, run_html
from lite_c2f.ui.answering import QUICK
from lite_c2f.ui.evaluation_html import SHOWN, Version, prompt_rows, version_of
from lite_c2f.ui.run_view import REFRESH
from lite_c2f.ui.runs import follow

ANY = ""  # of a filter
# The value that page.js notes before it clicks a hidden button, in place of the first input.
PICKED = "(_, ...others) => [String(window.lite_c2f.picked ?? ''), ...others]"
LONGEST_SEARCH = 500  # characters


class Place(NamedTuple):
    """A visitor's place in the table."""

    column: str = ""  # that it is sorted by; "" is the preset's own order
    descending: bool = False
    page: int = 0
    chosen: int | None = None  # number of the row whose answers are shown


def evaluation_view(run: Path) -> None:
    """Build the view inside an open gr.Tab of a gr.Blocks."""
    tab = Context.block
    with gr.Column(elem_classes="run-view"):
        summary = gr.HTML(elem_id="evaluation-summary")
        with gr.Column(visible=False) as prompts:
            gr.HTML("<h2>Held-out prompts</h2>")
            with gr.Row():
                choices = [(preset.title, name) for name, preset in PRESETS.items()]
                preset = gr.Dropdown(choices, value="all", label="Show", min_width=170)
                search = gr.Textbox(
                    label="Search",
                    placeholder="in prompts and answers",
                    max_lines=1,
                    max_length=LONGEST_SEARCH,
                    min_width=200,
                )
                filters = [
                    gr.Dropdown([("any", ANY)], value=ANY, label=label, visible=False, min_width=150)
                    for label in ("Source", "Category")
                ]
            table = gr.HTML(elem_id="evaluation-table")
            with gr.Row(elem_classes="tools"):
                turning = [gr.Button(f"{name} {SHOWN} prompts", size="sm") for name in ("Previous", "Next")]
                stepping = [gr.Button(f"{name} prompt", size="sm") for name in ("Previous", "Next")]
            answers = gr.HTML(elem_id="evaluation-answers")
        picked = gr.Textbox(visible="hidden", label="picked")
        sort, row = (
            gr.Button(name, visible="hidden", elem_id=f"evaluation-{name.lower()}") for name in ("Sort", "Row")
        )
        place, sent = gr.State(Place()), gr.State(None)
        timer = gr.Timer(REFRESH, active=False)

    asked = [preset, search, *filters, place]
    drawn = [table, *turning, answers, *stepping, place]

    def refresh(sent: Any, *asked: Any) -> list[Any]:
        """Everything, where a file has changed since it was sent."""
        now = _state_of(run)
        if now == sent:
            return [gr.skip()] * (3 + len(filters) + len(drawn))
        visible = isinstance(now, tuple)
        rows = prompt_rows(run, now) if visible else ()
        shown = evaluation_html.summary(run, now) if visible else now
        return [now, shown, gr.Column(visible=visible), *_filters(rows), *_draw(rows, *asked)]

    def act(change: Any) -> Any:
        """The handler that moves the visitor's place by `change`, which gets the rows found, place and value."""

        def handler(value: str, *asked: Any) -> list[Any]:
            rows = _rows(run)
            *query, place = asked
            return _draw(rows, *query, change(_found(rows, *query, place), place, value))

        return handler

    everything = [sent, summary, prompts, *filters, *drawn]
    timer.tick(refresh, [sent, *asked], everything, trigger_mode="once", **QUICK)
    row.click(act(_choose), [picked, *asked], drawn, js=PICKED, **QUICK)
    sort.click(act(_sort), [picked, *asked], drawn, js=PICKED, **QUICK)
    gr.on([preset.input, *(each.input for each in filters)], act(_begin), [picked, *asked], drawn, **QUICK)
    search.change(act(_keep_order), [picked, *asked], drawn, trigger_mode="always_last", **QUICK)
    for step, turn, other in ((-1, turning[0], stepping[0]), (1, turning[1], stepping[1])):
        turn.click(act(_turner(step)), [picked, *asked], drawn, **QUICK)
        other.click(act(_stepper(step)), [picked, *asked], drawn, **QUICK)
    if isinstance(tab, gr.Tab) and isinstance(tab.parent, gr.Tabs):  # read when the tab is opened, and while it is
        label = tab.label

        def only_here(event: gr.SelectData, *values: Any) -> list[Any]:
            here = event.value == label
            return [gr.Timer(active=here), *(refresh(*values) if here else [gr.skip()] * len(everything))]

        tab.parent.select(only_here, [sent, *asked], [timer, *everything], **QUICK)


def _state_of(run: Path) -> Version | str:
    """The version of a run's evaluation; HTML that says what is missing where there is none, or a file is damaged."""
    version = version_of(run)
    if version[0] is None:
        state = follow(run)
        return evaluation_html.unevaluated(state, run_html.header(state) + run_html.bars(state.stages))
    try:
        prompt_rows(run, version)
    except C2FError as error:
        return evaluation_html.damaged(error)
    return version


def _rows(run: Path) -> tuple[PromptRow, ...]:
    version = _state_of(run)
    return prompt_rows(run, version) if isinstance(version, tuple) else ()


def _filters(rows: Sequence[PromptRow]) -> list[gr.Dropdown]:
    """The choices of the filters; one that has nothing to choose from is not shown."""
    updates = []
    for name in ("source", "category"):
        values = sorted({value for row in rows if (value := getattr(row, name))})
        updates.append(gr.Dropdown(choices=[("any", ANY), *values], visible=len(values) > 1))
    return updates


def _query(rows: Sequence[PromptRow], preset: Any, search: Any, source: Any, category: Any, place: Place) -> Query:
    """What the controls ask for; what is unknown, as after a new evaluation, asks for nothing."""
    column = place.column if place.column in sort_keys(actors_of(rows)) else ""
    text = str(search or "")[:LONGEST_SEARCH]
    return Query(preset if preset in PRESETS else "all", text, source or ANY, category or ANY, column, place.descending)


def _found(rows: Sequence[PromptRow], *asked: Any) -> list[PromptRow]:
    return select(rows, _query(rows, *asked))


def _draw(rows: Sequence[PromptRow], *asked: Any) -> list[Any]:
    """Updates of the table, the answers, their buttons, and the visitor's place."""
    query, place = _query(rows, *asked), asked[-1]
    found = select(rows, query)
    last = max(0, (len(found) - 1) // SHOWN)
    place = place._replace(page=min(place.page, last))
    row = rows[place.chosen] if place.chosen is not None and place.chosen < len(rows) else None
    at = _index(found, place)
    about = f"prompt {at + 1} of {len(found)} in the table" if at is not None else "not among the prompts in the table"
    return [
        evaluation_html.table(rows, found, query, place.page) if rows else "",
        gr.Button(interactive=place.page > 0),
        gr.Button(interactive=place.page < last),
        evaluation_html.answers(row, about),
        gr.Button(interactive=bool(at)),
        gr.Button(interactive=bool(found) if at is None else at + 1 < len(found)),
        place,
    ]


def _index(found: Sequence[PromptRow], place: Place) -> int | None:
    """Where the chosen row stands among those found."""
    return next((at for at, row in enumerate(found) if row.number == place.chosen), None)


def _choose(found: Sequence[PromptRow], place: Place, value: str) -> Place:
    numbers = {str(row.number): row.number for row in found}
    return place._replace(chosen=numbers.get(value, place.chosen))


def _sort(found: Sequence[PromptRow], place: Place, value: str) -> Place:
    """A column's first click shows its highest figures, or texts from A; the next one turns the order round."""
    if value == place.column:
        return place._replace(descending=not place.descending, page=0)
    return place._replace(column=value, descending=value not in TEXTS, page=0)


def _begin(found: Sequence[PromptRow], place: Place, value: str) -> Place:
    return place._replace(column="", descending=False, page=0)


def _keep_order(found: Sequence[PromptRow], place: Place, value: str) -> Place:
    return place._replace(page=0)


def _turner(step: int) -> Any:
    def turn(found: Sequence[PromptRow], place: Place, value: str) -> Place:
        return place._replace(page=max(0, place.page + step))

    return turn


def _stepper(step: int) -> Any:
    """To the row before or after the chosen one, or to the first; the table shows the page that it is on."""

    def move(found: Sequence[PromptRow], place: Place, value: str) -> Place:
        if not found:
            return place
        at = _index(found, place)
        at = 0 if at is None else min(max(0, at + step), len(found) - 1)
        return place._replace(chosen=found[at].number, page=at // SHOWN)

    return move
