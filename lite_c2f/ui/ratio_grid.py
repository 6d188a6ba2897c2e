"""Ratio view: one question answered at several ratios at once, and the curve by which the ratio was chosen."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import gradio as gr
from gradio.context import Context

from lite_c2f.actors.answers import min_eos_message
from lite_c2f.chat import Pane
from lite_c2f.data.records import Turn
from lite_c2f.errors import C2FError
from lite_c2f.fine.chart import ratio_chart
from lite_c2f.storage.files import read_json
from lite_c2f.ui.answering import (
    QUICK,
    TAB_NUMBER,
    Notice,
    Served,
    answers,
    ask_row,
    example_row,
    page_settings,
    question_of,
    refuse_while_answering,
    restored,
    settings_fold,
)
from lite_c2f.ui.escaping import fill
from lite_c2f.ui.figures import figure_table
from lite_c2f.ui.render import AnswerView, answer_view
from lite_c2f.ui.store.conversations import Reply

VIEW = "grid"
MOST = 8  # ratios at once


class Grid(NamedTuple):
    """A question and its answers at several ratios."""

    prompt: str
    ratios: list[float]
    replies: dict[str, Reply]  # by ratio


class Column(NamedTuple):
    """One ratio of the grid."""

    ratio: str
    names: str  # of the models that this ratio gives
    answer: AnswerView | None


def ratio_grid_view(served: Served) -> None:
    """Add the view to the page that is being built."""
    chat = served.chat
    offered = sorted({0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, chat.ratio})
    start = [ratio for ratio in offered if ratio in (0.0, 0.5, 1.0, chat.ratio)]
    grid = gr.HTML(_grid({}, start, chat.ratio), elem_id="strip")
    prompt, send, halt = ask_row("Ask the Fine Actor at every ratio", "strip-")
    example_row(chat, prompt)
    ratios = gr.CheckboxGroup([(f"{ratio:g}", ratio) for ratio in offered], value=start, label="Ratios")
    settings = settings_fold(chat)
    with gr.Accordion("The curve the ratio was chosen by", open=True):
        gr.HTML(curve(served))

    def ask(request: gr.Request, text: str, checked: list[float], *inputs: Any) -> Iterator[list[Any]]:
        """One answer per ratio."""
        page, selected = served.pages.of(request.session_hash), sorted(checked or [])
        try:
            refuse_while_answering(page, VIEW)
            text = question_of(text)
            if not 1 <= len(selected) <= MOST:
                raise Notice(f"Choose 1 to {MOST} ratios")
        except Notice as notice:
            gr.Info(str(notice))
            yield [gr.skip()] * 4
            return
        panes = [Pane(f"{ratio:g}", "fine", ratio) for ratio in selected]
        settings = page_settings(None, *inputs)
        question = [Turn("human", text)]
        state, before = page.view_state, page.view_state.get(VIEW)
        for snapshot in answers(served, page, VIEW, {pane.key: question for pane in panes}, panes, settings):
            if state.get(VIEW) is not before:  # of a reloaded page, or another question's
                yield [gr.skip()] * 4  # Gradio sends an event's last update once more when it ends
                return
            before = state[VIEW] = Grid(text, selected, snapshot.replies)
            can = [gr.Button(interactive=snapshot.ended), gr.Button(interactive=not snapshot.ended)]
            yield [gr.skip(), _grid(snapshot.replies, selected, chat.ratio, text, snapshot.waits_for), *can]

    def reopen(tab: str, request: gr.Request) -> list[Any]:
        """The answers that the tab had before it was reloaded, and the ratios asked at."""
        state = served.pages.continued(request.session_hash, tab).view_state
        if VIEW not in state:
            return [gr.skip(), gr.skip()]
        saved = state[VIEW] = state[VIEW]._replace(replies=restored(state[VIEW].replies))
        return [_grid(saved.replies, saved.ratios, chat.ratio, saved.prompt), saved.ratios]

    def stop(request: gr.Request) -> None:
        served.pages.of(request.session_hash).stop(VIEW)

    gr.on(
        [prompt.submit, send.click],
        ask,
        [prompt, ratios, *settings],
        [prompt, grid, send, halt],
        show_progress="hidden",
        trigger_mode="multiple",  # a second question gets a notice
        concurrency_limit=None,
        api_visibility="private",
    )
    halt.click(stop, None, None, **QUICK)
    if Context.root_block is not None:
        Context.root_block.load(reopen, prompt, [grid, ratios], js=TAB_NUMBER, **QUICK)


def _grid(
    replies: Mapping[str, Reply], ratios: list[float], merged: float, prompt: str = "", waits_for: str = ""
) -> str:
    """A column for each ratio. replies: by ratio; merged: the merged model's ratio; prompt: "" before the first.

    waits_for: what is told where an answer has not begun.
    """
    columns = []
    for ratio in ratios:
        reply = replies.get(f"{ratio:g}")
        names = [name for name, applies in (("baseline", ratio == 0), ("merged", ratio == merged)) if applies]
        columns.append(Column(f"{ratio:g}", ", ".join(names), answer_view(reply) if reply else None))
    table = figure_table({f"ratio {ratio:g}": replies[f"{ratio:g}"] for ratio in ratios if f"{ratio:g}" in replies})
    return fill("ratio_grid.html", prompt=prompt, columns=columns, table=table, waits_for=waits_for)


def curve(served: Served) -> str:
    """The newest sweep as a chart; a sentence where none was made."""
    for name in ("sweep.json", "ratios.json"):
        with contextlib.suppress(C2FError, KeyError, TypeError, ValueError):
            result = read_json(served.chat.run / "fine" / name)
            return fill("ratio_curve.html", svg=ratio_chart(result), shortfall=min_eos_message(result))
    return fill("ratio_curve.html", svg="", run=str(served.chat.run))
