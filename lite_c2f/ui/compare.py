"""The compare view: one question, the actors' answers side by side while they are written."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from lite_c2f.chat import ALL_PANES, PANES, TITLES
from lite_c2f.data.records import Turn
from lite_c2f.errors import C2FError
from lite_c2f.transcripts import Transcript
from lite_c2f.ui import rounds
from lite_c2f.ui.answering import (
    QUICK,
    SPEAKING,
    Served,
    Told,
    ask_row,
    examples,
    failure,
    page_settings,
    ratio_slider,
    settings_fold,
)
from lite_c2f.ui.escaping import escape
from lite_c2f.ui.render import insight, talk, title
from lite_c2f.ui.rounds import VIEW, Shown
from lite_c2f.ui.saving import visit_of
from lite_c2f.ui.sessions import sessions_fold
from lite_c2f.ui.visits import Visit, history

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


def compare_view(served: Served, identity: list[Any]) -> None:
    """Add the view to the page that is being built. identity: hidden boxes, of the owner and of the session."""
    columns, views, halts = {}, {}, {}
    with gr.Row(equal_height=True):
        for pane in ALL_PANES:
            with gr.Column(min_width=250, visible=pane in PANES, elem_classes="pane") as columns[pane]:
                with gr.Row(elem_classes="bar"):
                    gr.HTML(title(TITLES[pane], ABOUT[pane]))
                    halts[pane] = gr.Button("Stop", size="sm", elem_id=f"stop-{pane}")
                views[pane] = gr.HTML(talk([], pane), elem_classes="view", elem_id=f"view-{pane}")
    tale = gr.HTML(insight(None), elem_classes="tale", elem_id="tale")
    legend = gr.HTML(LEGEND, visible=False)
    prompt, send, halt = ask_row("Ask all of them: Enter sends, Shift+Enter makes a new line", focus=True)
    with gr.Row(elem_classes="tools"):
        again = gr.Button("Regenerate", size="sm", elem_id="again")
        edit = gr.Button("Edit last", size="sm", elem_id="edit")
        undo = gr.Button("Undo", size="sm", elem_id="undo")
        clear = gr.Button("New chat", size="sm", elem_id="clear")
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

    drawn = [*views.values(), tale]
    streams = [prompt, identity[1], *drawn]

    def came(request: gr.Request, owner: str, session: str) -> Visit:
        return visit_of(served, request.session_hash, owner, session)

    def draw(now: Shown, marks: bool, ratio: float) -> list[str]:
        told = "" if now.waiting is None else f"{now.waiting} before you" if now.waiting else "reading the question"
        panes = [talk(now.rounds, pane, marks=marks, ratio=ratio, waiting=told) for pane in ALL_PANES]
        return [*panes, insight(now.rounds[-1] if now.rounds else None)]

    def page(visit: Visit, marks: bool, ratio: float) -> list[str]:
        return draw(rounds.shown(visit), marks, ratio)

    def streamed(
        visit: Visit, looks: Callable[[], Iterator[Shown]], marks: bool, ratio: float, text: Any
    ) -> Iterator[list[Any]]:
        """Updates of `streams`; text: what the first puts into the box, where more may be typed then."""
        visit.knobs = (marks, ratio)  # which may be moved while answers are written
        told: Any = gr.skip()
        try:
            for now in looks():
                session = visit.transcript.id if visit.transcript else ""  # a reload asks for it
                yield [text, gr.skip() if session == told else session, *draw(now, *visit.knobs)]
                text, told = gr.skip(), session
        except Told as reason:
            gr.Info(str(reason))
            yield [gr.skip()] * len(streams)

    def ask(request: gr.Request, text: str, base: bool, marks: bool, ratio: float, *given: Any) -> Any:
        """Answer in every pane."""
        visit, panes, settings = came(request, *given[-2:]), _panes(base), page_settings(ratio, *given[:-2])
        yield from streamed(visit, lambda: rounds.ask(served, visit, text or "", panes, settings), marks, ratio, "")

    def ask_again(request: gr.Request, _: str, base: bool, marks: bool, ratio: float, *given: Any) -> Any:
        """The last question once more, with what is set now."""
        visit, panes, settings = came(request, *given[-2:]), _panes(base), page_settings(ratio, *given[:-2])
        yield from streamed(visit, lambda: rounds.ask_again(served, visit, panes, settings), marks, ratio, gr.skip())

    def fine_anew(request: gr.Request, _: str, base: bool, marks: bool, ratio: float, *given: Any) -> Any:
        """The Fine Actor's last answer at another ratio, everything else as it was, the random numbers too."""
        visit = came(request, *given[-2:])
        yield from streamed(visit, lambda: rounds.only(served, visit, ["fine"], ratio), marks, ratio, gr.skip())

    def base_too(request: gr.Request, _: str, base: bool, marks: bool, ratio: float, *given: Any) -> Any:
        """The base's answer to the last question, when it is first shown."""
        visit = came(request, *given[-2:])
        last = visit.transcript.rounds[-1] if visit.transcript and visit.transcript.rounds else None
        if not base or last is None or "base" in last.replies or VIEW in visit.asked:
            nothing = [gr.skip()] * len(streams)
            if base and VIEW in visit.asked:
                gr.Info("The base answers from the next question on; for this one, tick it again when the others end")
            yield nothing if VIEW in visit.asked else [*nothing[:2], *page(visit, marks, ratio)]
            return
        yield from streamed(visit, lambda: rounds.only(served, visit, ["base"]), marks, ratio, gr.skip())

    def edit_last(marks: bool, ratio: float, owner: str, session: str, request: gr.Request) -> list[Any]:
        """Forget the last round, and put its question into the box."""
        visit = came(request, owner, session)
        try:
            text: Any = rounds.take_back(served, visit)
        except Told as told:
            gr.Info(str(told))
            text = gr.skip()
        return [text, *page(visit, marks, ratio)]

    def undo_last(marks: bool, ratio: float, owner: str, session: str, request: gr.Request) -> list[Any]:
        return edit_last(marks, ratio, owner, session, request)[1:]

    def start_over(marks: bool, ratio: float, owner: str, session: str, request: gr.Request) -> list[Any]:
        visit = came(request, owner, session)
        rounds.start_over(visit)
        return page(visit, marks, ratio)

    def redraw(marks: bool, ratio: float, owner: str, session: str, request: gr.Request) -> list[Any]:
        visit = came(request, owner, session)
        visit.knobs = (marks, ratio)
        if VIEW in visit.asked:
            return [gr.skip()] * len(drawn)  # the answers under way draw themselves
        return page(visit, marks, ratio)

    def read(request: gr.Request, text: str, base: bool, marks: bool, ratio: float, *given: Any) -> str:
        """The very text each actor reads, of the question in the box or else of the last one."""
        visit, settings = came(request, *given[-2:]), page_settings(ratio, *given[:-2])
        transcript = visit.transcript or Transcript("", "", "", "", (), {})
        if not (text or "").strip():
            if not transcript.rounds:
                return '<p class="hint">Type a question first.</p>'
            text, transcript = transcript.rounds[-1].prompt, transcript._replace(rounds=transcript.rounds[:-1])
        parts = []
        for pane in _panes(base):
            turns = [*history(transcript, pane), Turn("human", text.strip())]
            try:
                told = served.chat.rendered(turns, pane, settings)
            except C2FError as error:
                raise failure(error) from None
            parts.append(f"<h4>{escape(TITLES[pane])}</h4><pre>{escape(told)}</pre>")
        return "".join(parts)

    knobs = [show_base, marks, ratio, *settings, *identity]
    asking: dict[str, Any] = {
        "inputs": [prompt, *knobs],
        "outputs": streams,
        "show_progress": "hidden",
        "trigger_mode": "multiple",  # a second question is told to wait
        "concurrency_limit": None,  # the line is the chat's own
        "api_visibility": "private",
    }
    knob = [marks, ratio, *identity]
    changed = sessions_fold(served, identity, knob[:2], [show_base, ratio, *settings[:-1]], drawn, page)
    changed(gr.on([prompt.submit, send.click], ask, **asking))
    changed(again.click(ask_again, **asking))
    changed(anew.click(fine_anew, **asking))
    changed(show_base.input(base_too, **asking))
    changed(undo.click(undo_last, knob, drawn, **SPEAKING))
    changed(edit.click(edit_last, knob, [prompt, *drawn], **SPEAKING))
    changed(clear.click(start_over, knob, drawn, **QUICK))
    halt.click(_stopper(served, None), None, None, **QUICK)
    for pane, button in halts.items():
        button.click(_stopper(served, pane), None, None, **QUICK)
    ratio.change(redraw, knob, drawn, trigger_mode="always_last", **SPEAKING)
    marks.change(redraw, knob, drawn, **QUICK)
    marks.change(lambda on: gr.HTML(visible=on), marks, legend, **QUICK)
    show_base.change(lambda on: gr.Column(visible=on), show_base, columns["base"], **QUICK)
    for event in (show.click, reading.expand):
        event(read, [prompt, *knobs], rendered, **SPEAKING)


def _panes(base: bool) -> tuple[str, ...]:
    return ALL_PANES if base else PANES


def _stopper(served: Served, pane: str | None) -> Any:
    def stop(request: gr.Request) -> None:
        served.visits.of(request.session_hash).stop(VIEW, pane)

    return stop
