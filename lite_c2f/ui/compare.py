"""The compare view: one question, the actors' answers side by side while they are written; what is where on it."""

from typing import Any, NamedTuple

import gradio as gr

from lite_c2f.chat import ALL_PANES, PANES, TITLES
from lite_c2f.ui.answering import QUICK, SPEAKING, Served, ask_row, examples, ratio_slider, settings_fold
from lite_c2f.ui.handlers import Handlers
from lite_c2f.ui.render import conversation, insight, title
from lite_c2f.ui.sessions import sessions_fold

ABOUT = {
    "coarse": "the base model after PPO",
    "fine": "instruct with the residue",
    "baseline": "the instruct model alone",
    "base": "before this run",
}
LEGEND = (
    '<div class="legend hint"><mark class="kept">four words or signs, or more, in Coarse and Fine alike</mark> '
    '<mark class="again">said before in the same answer</mark></div>'
)


class Parts(NamedTuple):
    """What is on the page."""

    columns: dict[str, gr.Column]  # by pane, as the next two
    views: dict[str, gr.HTML]
    halts: dict[str, gr.Button]
    tale: gr.HTML
    legend: gr.HTML
    prompt: gr.Textbox
    send: gr.Button
    halt: gr.Button
    again: gr.Button
    edit: gr.Button
    undo: gr.Button
    clear: gr.Button
    show_base: gr.Checkbox
    marks: gr.Checkbox
    ratio: gr.Slider
    anew: gr.Button
    settings: list[Any]
    reading: gr.Accordion
    show: gr.Button
    rendered: gr.HTML


def compare_view(served: Served, identity: list[Any]) -> None:
    """Add the view to the page that is being built. identity: hidden boxes, of the owner and of the session."""
    _connect(_lay_out(served), served, identity)


def _lay_out(served: Served) -> Parts:
    columns, views, halts = {}, {}, {}
    with gr.Row(equal_height=True):
        for pane in ALL_PANES:
            with gr.Column(min_width=250, visible=pane in PANES, elem_classes="pane") as columns[pane]:
                with gr.Row(elem_classes="bar"):
                    gr.HTML(title(TITLES[pane], ABOUT[pane]))
                    halts[pane] = gr.Button("Stop", size="sm", elem_id=f"stop-{pane}")
                views[pane] = gr.HTML(conversation([], pane), elem_classes="view", elem_id=f"view-{pane}")
    tale = gr.HTML(insight(None), elem_classes="tale", elem_id="tale")
    legend = gr.HTML(LEGEND, visible=False)
    prompt, send, halt = ask_row("Ask all of them: Enter sends, Shift+Enter makes a new line", focus=True)
    with gr.Row(elem_classes="tools"):
        again, edit, undo, clear = (
            gr.Button(label, size="sm", elem_id=name)
            for name, label in (("again", "Regenerate"), ("edit", "Edit last"), ("undo", "Undo"), ("clear", "New chat"))
        )
        show_base = gr.Checkbox(False, label="Show the base", container=False, min_width=120, elem_id="show-base")
        marks = gr.Checkbox(False, label="Mark repeats and what Fine kept", container=False, min_width=220)
    with gr.Row(elem_classes="tools"):
        ratio = ratio_slider(served.chat, "ratio")
        anew = gr.Button("Fine at this ratio", size="sm", elem_id="anew")
    gr.Examples(examples(served.chat), prompt, label="Try one of these")
    settings = settings_fold(served.chat)
    with gr.Accordion("What each actor reads", open=False) as reading:
        show = gr.Button("Show the rendered prompt", size="sm")
        rendered = gr.HTML(elem_classes="read")
    asked = (prompt, send, halt, again, edit, undo, clear, show_base, marks, ratio, anew, settings)
    return Parts(columns, views, halts, tale, legend, *asked, reading, show, rendered)


def _connect(on: Parts, served: Served, identity: list[Any]) -> None:
    handlers, drawn = Handlers(served), [*on.views.values(), on.tale]
    inputs = [on.prompt, on.show_base, on.marks, on.ratio, *on.settings, *identity]
    knobs = [on.marks, on.ratio, *identity]
    asking: dict[str, Any] = {
        "inputs": inputs,
        "outputs": [on.prompt, identity[1], *drawn],
        "trigger_mode": "multiple",  # a second question is told to wait
        **SPEAKING,
    }
    known = [on.show_base, on.ratio, *on.settings[:-1]]
    changed = sessions_fold(served, identity, knobs[:2], known, drawn, handlers.page)
    changed(gr.on([on.prompt.submit, on.send.click], handlers.ask, **asking))
    changed(on.again.click(handlers.ask_again, **asking))
    changed(on.anew.click(handlers.fine_anew, **asking))
    changed(on.show_base.input(handlers.base_too, **asking))
    changed(on.undo.click(handlers.undo_last, knobs, drawn, **SPEAKING))
    changed(on.edit.click(handlers.edit_last, knobs, [on.prompt, *drawn], **SPEAKING))
    changed(on.clear.click(handlers.start_over, knobs, drawn, **QUICK))
    for pane, button in (*on.halts.items(), (None, on.halt)):
        button.click(handlers.stopper(pane), None, None, **QUICK)
    on.ratio.change(handlers.redraw, knobs, drawn, trigger_mode="always_last", **SPEAKING)
    on.marks.change(handlers.redraw, knobs, drawn, **QUICK)
    on.marks.change(lambda shown: gr.HTML(visible=shown), on.marks, on.legend, **QUICK)
    on.show_base.change(lambda shown: gr.Column(visible=shown), on.show_base, on.columns["base"], **QUICK)
    for event in (on.show.click, on.reading.expand):
        event(handlers.read, inputs, on.rendered, **SPEAKING)
