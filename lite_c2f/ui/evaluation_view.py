"""Evaluation tab: what the run's comparison found, and all held-out prompts with the actors' answers; the same of a
visitor's own questions.

All of it is read from the run's files, and nothing before the tab is opened. The only state is a visitor's place in
the table. What a browser sends is a number of a row or the key of a column, which is looked up and never opened, or the
numbers of an owner and a set, which are checked (`store/prompt_sets.py`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import gradio as gr
from gradio.context import Context

from lite_c2f.evaluation.prompt_table import PRESETS, TEXTS, PromptRow, Query, actors_of, select, sort_keys
from lite_c2f.ui import evaluation_html, prompt_set_view
from lite_c2f.ui.answering import QUICK
from lite_c2f.ui.evaluation_html import SHOWN
from lite_c2f.ui.prompt_choice import HELD_OUT, Prompts
from lite_c2f.ui.run_view import REFRESH

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


class TableParts(NamedTuple):
    """Components of the table of prompts, and of the answers to one of them."""

    preset: gr.Dropdown
    search: gr.Textbox
    filters: list[gr.Dropdown]
    table: gr.HTML
    turning: list[gr.Button]
    answers: gr.HTML
    stepping: list[gr.Button]
    place: gr.State

    @property
    def asked(self) -> list[Any]:
        """Inputs of `_query`."""
        return [self.preset, self.search, *self.filters, self.place]

    @property
    def drawn(self) -> list[Any]:
        """Outputs of `_draw`."""
        return [self.table, *self.turning, self.answers, *self.stepping, self.place]


def evaluation_view(prompts: Prompts, owner: gr.Textbox) -> None:
    """Build the view inside an open gr.Tab of a gr.Blocks. owner: hidden box with the visitor's number."""
    tab = Context.block
    with gr.Column(elem_classes="run-view"):
        gr.HTML(elem_classes="notice")  # page.js shows Gradio's notices here
        own = prompt_set_view.lay_out(prompts.sets.chat)
        summary = gr.HTML(elem_id="evaluation-summary")
        with gr.Column(visible=False) as column:
            parts = _table_parts()
        picked = gr.Textbox(elem_classes="unseen", label="picked")
        sort, row = (
            gr.Button(name, elem_classes="unseen", elem_id=f"evaluation-{name.lower()}") for name in ("Sort", "Row")
        )
        sent, timer = gr.State(None), gr.Timer(REFRESH, active=False)
    everything = [sent, summary, column, *parts.filters, *parts.drawn, *own.shown]

    def refresh(sent: Any, owner: str, which: Any, *asked: Any) -> list[Any]:
        """Everything, where something has changed since it was sent: the prompts shown, or the controls of sets."""
        before, controls_before, known, asked_before = sent or (None, None, "", None)
        listed = which = str(which or HELD_OUT)
        work = prompts.sets.work_of(owner)
        if not known and not which and work is not None and work.active:  # the page was reloaded
            which = work.prompt_set.id
        controls = prompts.controls(owner, which)
        state = prompts.state(owner, controls.which)
        if (state, controls, owner, asked) == sent and listed == controls.which:
            return [gr.skip()] * len(everything)
        others = controls_before is None or controls_before.which != controls.which
        if others:  # other prompts: from the beginning
            asked = (*asked[:2], *[ANY] * len(parts.filters), Place())
        shown = [gr.skip()] * (len(everything) - len(own.shown) - 1)
        if state != before or asked != asked_before:  # what was asked for meanwhile may have been drawn over
            rows = prompts.rows(state)
            drawn = _draw(rows, *asked)
            if state != before:
                visible = isinstance(state, tuple)
                about = [prompts.summary(state), gr.Column(visible=visible), *_filters(rows, asked[2:-1], others)]
            else:
                about = [gr.skip()] * (2 + len(parts.filters))
            # The place is the visitor's: a click while this was computed has set another.
            shown = [*about, *drawn[:-1], drawn[-1] if others else gr.skip()]
        sent = (state, controls, owner, asked)
        return [sent, *shown, *prompt_set_view.updates(controls, controls_before, listed)]

    def act(change: Any) -> Any:
        """The handler that moves the visitor's place by `change`, which gets the rows found, place and value."""

        def handler(value: str, owner: str, which: Any, *asked: Any) -> list[Any]:
            rows = prompts.rows(prompts.state(owner, str(which or HELD_OUT)))
            *query, place = asked
            return _draw(rows, *query, change(_found(rows, *query, place), place, value))

        return handler

    asked = [owner, own.which, *parts.asked]
    timer.tick(refresh, [sent, *asked], everything, trigger_mode="once", **QUICK)
    own.which.input(refresh, [sent, *asked], everything, **QUICK)
    moved: dict[str, Any] = {"inputs": [picked, *asked], "outputs": parts.drawn, **QUICK}
    row.click(act(_choose), js=PICKED, **moved)
    sort.click(act(_sort), js=PICKED, **moved)
    filtered = [parts.preset.input, *(each.input for each in parts.filters)]
    gr.on(filtered, act(_begin), trigger_mode="always_last", **moved)
    parts.search.change(act(_keep_order), trigger_mode="always_last", **moved)
    for step, turn, other in ((-1, parts.turning[0], parts.stepping[0]), (1, parts.turning[1], parts.stepping[1])):
        turn.click(act(_turner(step)), **moved)
        other.click(act(_stepper(step)), **moved)
    prompt_set_view.connect(prompts, own, refresh, [sent, *asked], everything)
    if isinstance(tab, gr.Tab) and isinstance(tab.parent, gr.Tabs):  # read when the tab is opened, and while it is
        label = tab.label

        def only_here(event: gr.SelectData, *values: Any) -> list[Any]:
            here = event.value == label
            return [gr.Timer(active=here), *(refresh(*values) if here else [gr.skip()] * len(everything))]

        # "once" would leave out a tab that is opened right after another; "always_last" would tell of the other
        tab.parent.select(only_here, [sent, *asked], [timer, *everything], trigger_mode="multiple", **QUICK)


def _table_parts() -> TableParts:
    gr.HTML("<h2>Prompts and answers</h2>")
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
        turning, stepping = (
            [gr.Button(f"{name} {what}", size="sm", elem_classes="step") for name in ("Previous", "Next")]
            for what in (f"{SHOWN} prompts", "prompt")
        )
    answers = gr.HTML(elem_id="evaluation-answers")
    return TableParts(preset, search, filters, table, turning, answers, stepping, gr.State(Place()))


def _filters(rows: Sequence[PromptRow], chosen: Sequence[Any], others: bool) -> list[gr.Dropdown]:
    """The choices of the filters, and of other prompts those chosen; one with nothing to choose from is not shown."""
    updates = []
    for name, value in zip(("source", "category"), chosen, strict=True):
        values = sorted({value for row in rows if (value := getattr(row, name))})
        now: dict[str, Any] = {"value": value or ANY} if others else {}
        updates.append(gr.Dropdown(choices=[("any", ANY), *values], visible=len(values) > 1, **now))
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
