"""Compare view: one question, the actors' answers side by side while they are written. Its layout and its events."""

from typing import Any, NamedTuple

import gradio as gr

from lite_c2f.actors.names import BASE, BASELINE, COARSE, FINE
from lite_c2f.chat import PANES, TITLES
from lite_c2f.ui.answering import NOTIFYING, QUICK, Served, ask_row, example_row, ratio_slider, settings_fold
from lite_c2f.ui.buttons import BUTTONS, TURNS
from lite_c2f.ui.escaping import fill
from lite_c2f.ui.handlers import Handlers
from lite_c2f.ui.other_pane import OTHER, SLOTS
from lite_c2f.ui.other_row import OtherRow, connect_other, other_row
from lite_c2f.ui.render import conversation, title
from lite_c2f.ui.sessions import sessions_fold

ABOUT = {
    "coarse": "Base model after RL: thorough, may be too long",
    "fine": "Instruct model + what RL learned",
    "baseline": "Instruct model as it was",
    "base": "Base model before this run",
}
# In a narrow window one of these is shown at a time; page.js has its buttons, page.css says what they show.
SHORT = {
    COARSE: "Coarse",
    FINE: "Fine",
    BASELINE: "Baseline",
    BASE: "Base",
    OTHER: "Other",
    "figures": "Figures, ratio",
}
AGAINST = [
    ("Show no changes", ""),
    ("What Fine changed of Coarse", COARSE),
    ("What Fine changed of Baseline", BASELINE),
]


class PaneParts(NamedTuple):
    """Components of one pane."""

    column: gr.Column
    head: gr.HTML
    view: gr.HTML  # the last rounds
    earlier: gr.HTML  # those before, which stay as they are while answers are written
    stop: gr.Button
    again: gr.Button  # out of sight, as the next one: the buttons under an answer, which are HTML, click these
    go_on: gr.Button
    best: gr.Button | None  # the base and the other pane take no part in votes


class Parts(NamedTuple):
    """Components of the view."""

    panes: dict[str, PaneParts]
    variants: gr.HTML  # which of the answers that the last question got are shown, where it got several
    turns: dict[str, gr.Button]  # to the ones before and after those, by the names in `TURNS`
    summary: gr.HTML  # figures of the last answers
    legend: gr.HTML
    prompt: gr.Textbox
    send: gr.Button
    stop_all: gr.Button
    regenerate: gr.Button
    edit: gr.Button
    remove_last: gr.Button
    redo: gr.Button
    clear: gr.Button
    show_base: gr.Checkbox
    marks: gr.Checkbox
    against: gr.Dropdown  # the pane beside whose answer Fine's changes are shown
    together: gr.Checkbox  # do the panes scroll together?
    fully: gr.Checkbox  # are they as high as their text?
    ratio: gr.Slider
    regenerate_fine: gr.Button
    other: OtherRow
    settings: list[Any]
    prompts_fold: gr.Accordion
    show_prompts: gr.Button
    prompts: gr.HTML  # as each actor reads them


def legend(marks: bool, against: str) -> gr.HTML:
    """What the marks in answers mean, where there are some."""
    return gr.HTML(fill("legend.html", marks=marks, against=TITLES.get(against)), visible=bool(marks or against))


def compare_view(served: Served, identity: list[Any]) -> None:
    """Add the view to the page that is being built. identity: hidden boxes, of the owner and of the session."""
    _connect(_lay_out(served), served, identity)


def _lay_out(served: Served) -> Parts:
    gr.HTML(fill("pane_choice.html", panes=SHORT), elem_id="pane-choice", padding=False)
    with gr.Row(equal_height=True, elem_id="panes"):
        panes = {slot: _pane(slot) for slot in SLOTS}
    variants, turns = _variants_row()
    meaning = gr.HTML(visible=False)
    prompt, send, stop_all = ask_row("Ask all of them: Enter sends, Shift+Enter makes a new line", focus=True)
    example_row(served.chat, prompt)
    summary = gr.HTML(elem_id="summary-line")
    with gr.Row(elem_classes="tools"):
        regenerate, edit, remove_last, redo, clear = (
            gr.Button(label, size="sm", interactive=False, elem_id=name)
            for name, label in (
                ("regenerate", "Regenerate"),
                ("edit", "Edit last"),
                ("remove-last", "Remove last"),
                ("redo", "Redo"),
                ("clear", "New chat"),
            )
        )
        show_base = gr.Checkbox(False, label="Show the base", container=False, min_width=120, elem_id="show-base")
        marks = gr.Checkbox(False, label="Mark repeats and what Fine kept", container=False, min_width=220)
        against = gr.Dropdown(
            AGAINST,
            value="",
            label="What Fine changed",
            show_label=False,
            container=False,
            min_width=230,
            elem_id="against",
        )
        together = gr.Checkbox(True, label="Scroll together", container=False, min_width=130, elem_id="together")
        fully = gr.Checkbox(False, label="Open fully", container=False, min_width=100, elem_id="fully")
    with gr.Row(elem_classes="tools", elem_id="ratio-row"):
        ratio = ratio_slider(served.chat, "ratio")
        regenerate_fine = gr.Button("Fine at this ratio", size="sm", interactive=False, elem_id="regenerate-fine")
    other = other_row(served)
    settings = settings_fold(served.chat)
    with gr.Accordion("What each actor reads", open=False) as prompts_fold:
        show_prompts = gr.Button("Show the rendered prompt", size="sm")
        prompts = gr.HTML(elem_classes="read")
    return Parts(
        panes=panes,
        variants=variants,
        turns=turns,
        summary=summary,
        legend=meaning,
        prompt=prompt,
        send=send,
        stop_all=stop_all,
        regenerate=regenerate,
        edit=edit,
        remove_last=remove_last,
        redo=redo,
        clear=clear,
        show_base=show_base,
        marks=marks,
        against=against,
        together=together,
        fully=fully,
        ratio=ratio,
        regenerate_fine=regenerate_fine,
        other=other,
        settings=settings,
        prompts_fold=prompts_fold,
        show_prompts=show_prompts,
        prompts=prompts,
    )


def _pane(pane: str) -> PaneParts:
    column = gr.Column(min_width=250, visible=pane in PANES, elem_classes="pane", elem_id=f"pane-{pane}")
    with column:
        with gr.Row(elem_classes="bar"):
            head = gr.HTML(title(TITLES[pane], ABOUT[pane]) if pane in TITLES else "")
            stop = gr.Button("Stop", size="sm", interactive=False, elem_id=f"stop-{pane}")
        again = gr.Button("Ask again", elem_classes="unseen", elem_id=f"again-{pane}")
        go_on = gr.Button("Continue", elem_classes="unseen", elem_id=f"continue-{pane}")
        best = gr.Button("Best", elem_classes="unseen", elem_id=f"best-{pane}") if pane in PANES else None
        with gr.Column(elem_classes="view", elem_id=f"view-{pane}"):
            earlier = gr.HTML(padding=False)
            view = gr.HTML(conversation([], pane), elem_classes="recent", padding=False)
    return PaneParts(column, head, view, earlier, stop, again, go_on, best)


def _variants_row() -> tuple[gr.HTML, dict[str, gr.Button]]:
    """Which of the answers that the last question got are shown, between the buttons to those before and after."""
    before, after = TURNS
    with gr.Row(elem_classes="tools", elem_id="variants"):
        previous = gr.Button("‹ Previous", size="sm", interactive=False, elem_id=before)
        count = gr.HTML(padding=False)
        following = gr.Button("Next ›", size="sm", interactive=False, elem_id=after)
    return count, {before: previous, after: following}


def _connect(parts: Parts, served: Served, identity: list[Any]) -> None:
    buttons = {str(button.elem_id): button for button in parts if isinstance(button, gr.Button)}
    buttons |= parts.turns | {f"stop-{name}": pane.stop for name, pane in parts.panes.items()}
    handlers = Handlers(served)
    panes = parts.panes.values()
    drawn: list[Any] = [pane.earlier for pane in panes] + [pane.view for pane in panes]
    drawn += [parts.variants, parts.summary]
    drawn += [buttons[name] for name in BUTTONS]
    _, session = identity
    display = [parts.marks, parts.against, parts.ratio, parts.other.key]  # in the order of `Display`
    inputs = [parts.prompt, parts.show_base, *display, *parts.settings, *identity]
    streaming: dict[str, Any] = {
        "inputs": inputs,
        "outputs": [parts.prompt, session, *drawn],
        "trigger_mode": "multiple",  # a second question gets a notice
        **NOTIFYING,
    }
    drawing: dict[str, Any] = {"inputs": [*display, *identity], "outputs": drawn}
    restored = [parts.show_base, parts.ratio, parts.other.key, *parts.settings[:-1]]
    views = [parts.marks, parts.against, parts.together, parts.fully]
    changes_session = sessions_fold(served, identity, display, restored, views, drawn, handlers.draw)
    changes_session(gr.on([parts.prompt.submit, parts.send.click], handlers.ask, **streaming))
    changes_session(parts.regenerate.click(handlers.regenerate, **streaming))
    changes_session(parts.regenerate_fine.click(handlers.regenerate_fine, **streaming))
    changes_session(parts.show_base.input(handlers.show_base, **streaming))
    changes_session(parts.remove_last.click(handlers.remove_last, **drawing, **NOTIFYING))
    for name, pane in parts.panes.items():
        changes_session(pane.again.click(handlers.again(name), **streaming))
        changes_session(pane.go_on.click(handlers.go_on(name), **streaming))
        if pane.best is not None:
            pane.best.click(handlers.best(name), **drawing, **NOTIFYING)
        pane.stop.click(handlers.stop(name), None, None, **QUICK)
    for name, step in TURNS.items():
        changes_session(parts.turns[name].click(handlers.turn(step), **drawing, **NOTIFYING))
    with_box = [parts.prompt, *drawn]
    changes_session(parts.edit.click(handlers.edit_last, drawing["inputs"], with_box, **NOTIFYING))
    changes_session(parts.redo.click(handlers.redo, [parts.prompt, *drawing["inputs"]], with_box, **NOTIFYING))
    changes_session(parts.clear.click(handlers.start_over, **drawing, **QUICK))
    parts.stop_all.click(handlers.stop(None), None, None, **QUICK)
    # One event: each drawing begins when the one before has ended, or an older one might be the last to be shown.
    redraws = [parts.ratio.change, parts.marks.change, parts.against.change]
    gr.on(redraws, handlers.redraw, **drawing, trigger_mode="always_last", **NOTIFYING)
    for shown in (parts.marks, parts.against):
        shown.change(legend, [parts.marks, parts.against], parts.legend, **QUICK)
    for name, switch in (("together", parts.together), ("fully", parts.fully)):
        switch.change(None, switch, None, js=f"(on) => {{ window.lite_c2f?.panes('{name}', on) }}")
    parts.show_base.change(lambda shown: gr.Column(visible=shown), parts.show_base, parts.panes[BASE].column, **QUICK)
    pane = parts.panes[OTHER]
    connect_other(served, parts.other, handlers.open_other, [pane.column, pane.head])
    changes_session(parts.other.key.change(handlers.show_other, **streaming))
    for event in (parts.show_prompts.click, parts.prompts_fold.expand):
        event(handlers.rendered_prompts, inputs, parts.prompts, **NOTIFYING)
