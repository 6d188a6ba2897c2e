"""The compare view: one question, the actors' answers side by side while they are written."""

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from lite_c2f.chat import ALL_PANES, PANES, TITLES, ChatSettings
from lite_c2f.data.records import Turn
from lite_c2f.errors import C2FError
from lite_c2f.transcripts import Round, Transcript
from lite_c2f.ui.answering import Served, answers, examples, failure, ratio_slider, settings_fold, settings_of
from lite_c2f.ui.render import escape, talk, title
from lite_c2f.ui.sessions import keep, new_transcript, sessions_fold
from lite_c2f.ui.visits import Visit, history, replaced, with_round, without_last

VIEW = "compare"
ABOUT = {
    "coarse": "rich in analysis, long",
    "fine": "instruct plus some residue",
    "baseline": "the instruct model alone",
    "base": "before this run",
}
LEGEND = (
    '<div class="legend hint"><mark class="kept">in Coarse and Fine alike</mark> '
    '<mark class="again">said before in the same answer</mark></div>'
)
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def compare_view(served: Served) -> None:
    """Add the view to the page that is being built."""
    chat = served.chat
    columns, views, halts = {}, {}, {}
    with gr.Row(equal_height=True):
        for pane in ALL_PANES:
            with gr.Column(min_width=250, visible=pane in PANES, elem_classes="pane") as columns[pane]:
                with gr.Row(elem_classes="bar"):
                    gr.HTML(title(TITLES[pane], ABOUT[pane]))
                    halts[pane] = gr.Button("Stop", size="sm", elem_id=f"stop-{pane}")
                views[pane] = gr.HTML(talk([], pane), elem_classes="view", elem_id=f"view-{pane}")
    with gr.Row(elem_id="ask"):
        prompt = gr.Textbox(
            placeholder="Ask all of them: Enter sends, Shift+Enter makes a new line",
            show_label=False,
            container=False,
            scale=8,
            max_lines=6,
            elem_classes="prompt",
            elem_id="prompt",
            autofocus=True,
        )
        send = gr.Button("Send", variant="primary", scale=1, min_width=70, elem_id="send")
        halt = gr.Button("Stop all", scale=1, min_width=70, elem_classes="stop-all", elem_id="stop-all")
    with gr.Row(elem_classes="tools"):
        again = gr.Button("Regenerate", size="sm", elem_id="again")
        edit = gr.Button("Edit last", size="sm", elem_id="edit")
        undo = gr.Button("Undo", size="sm", elem_id="undo")
        clear = gr.Button("Clear", size="sm", elem_id="clear")
        show_base = gr.Checkbox(False, label="Show the base", container=False, min_width=120, elem_id="show-base")
        marks = gr.Checkbox(False, label="Mark repeats and what Fine kept", container=False, min_width=220)
    with gr.Row(elem_classes="tools"):
        ratio = ratio_slider(chat, "ratio")
        anew = gr.Button("Fine at this ratio", size="sm", elem_id="anew")
    legend = gr.HTML(LEGEND, visible=False)
    gr.Examples(examples(chat), prompt, label="Try one of these")
    settings = settings_fold(chat)
    with gr.Accordion("What each actor reads", open=False):
        show = gr.Button("Show the rendered prompt", size="sm")
        rendered = gr.HTML(elem_classes="read")

    shown = list(views.values())
    knobs = [show_base, marks, ratio, *settings]

    def page(visit: Visit, marks: bool, ratio: float, extra: Round | None = None, waiting: int = 0) -> list[str]:
        rounds = (*(visit.transcript.rounds if visit.transcript else ()), *((extra,) if extra else ()))
        told = "" if extra is None else f"{waiting} before you" if waiting else "reading the question"
        return [talk(rounds, pane, marks=marks, ratio=ratio, waiting=told) for pane in ALL_PANES]

    def run(
        visit: Visit, text: str, panes: Sequence[str], settings: ChatSettings, marks: bool, before: Round | None = None
    ) -> Iterator[list[Any]]:
        """Updates of [prompt, views]; before: the round whose other answers stay as they are."""
        transcript = visit.transcript or new_transcript(served, visit)
        visit.transcript = transcript
        question = Turn("human", text.strip())
        round_ = before or Round(text.strip(), settings._asdict(), {})
        turns = {pane: [*history(transcript, pane), question] for pane in panes}
        box: Any = ""  # the first update empties it; what is typed meanwhile stays
        for look in answers(served, visit, VIEW, turns, panes, settings):
            round_ = replaced(round_, look.replies)
            yield [box, *page(visit, marks, settings.ratio or 0.0, round_, look.waiting)]
            box = gr.skip()
        if visit.transcript is transcript and any(reply.finish for reply in round_.replies.values()):
            keep(served, visit, with_round(transcript, round_))
        # Shown last whatever happened meanwhile: Gradio sends an event's last update once more when it ends.
        yield [gr.skip(), *page(visit, marks, settings.ratio or 0.0)]

    def ask(request: gr.Request, text: str, base: bool, marks: bool, ratio: float, *given: Any) -> Iterator[list[Any]]:
        """Answer in every pane."""
        panes = ALL_PANES if base else PANES
        visit = served.visits.of(request.session_hash)
        yield from run(visit, text or "", panes, settings_of(ratio, *given), marks)

    def last(visit: Visit) -> Round:
        if visit.transcript is None or not visit.transcript.rounds:
            raise gr.Error("Nothing has been asked yet", print_exception=False)
        visit.forget(VIEW)
        return visit.transcript.rounds[-1]

    def ask_again(request: gr.Request, _: str, base: bool, marks: bool, ratio: float, *given: Any) -> Any:
        """The last question once more, with what is set now."""
        visit = served.visits.of(request.session_hash)
        round_ = last(visit)
        assert visit.transcript is not None
        visit.transcript = without_last(visit.transcript)
        yield from run(visit, round_.prompt, ALL_PANES if base else PANES, settings_of(ratio, *given), marks)

    def fine_anew(request: gr.Request, _: str, base: bool, marks: bool, ratio: float, *given: Any) -> Any:
        """The Fine Actor's last answer at another ratio, everything else as it was, the random numbers too."""
        visit = served.visits.of(request.session_hash)
        round_ = last(visit)
        assert visit.transcript is not None
        visit.transcript = without_last(visit.transcript)
        was = ChatSettings(**round_.settings)._replace(ratio=ratio)
        yield from run(visit, round_.prompt, ["fine"], was, marks, round_)

    def edit_last(marks: bool, ratio: float, request: gr.Request) -> list[Any]:
        """Forget the last round, and put its question into the box."""
        visit = served.visits.of(request.session_hash)
        visit.forget(VIEW)
        text: Any = gr.skip()
        if visit.transcript is not None and visit.transcript.rounds:
            text = visit.transcript.rounds[-1].prompt
            keep(served, visit, without_last(visit.transcript))
        return [text, *page(visit, marks, ratio)]

    def undo_last(marks: bool, ratio: float, request: gr.Request) -> list[Any]:
        return edit_last(marks, ratio, request)[1:]

    def start_over(marks: bool, ratio: float, request: gr.Request) -> list[Any]:
        visit = served.visits.of(request.session_hash)
        visit.forget(VIEW)
        visit.transcript = None
        return page(visit, marks, ratio)

    def redraw(marks: bool, ratio: float, request: gr.Request) -> list[Any]:
        visit = served.visits.of(request.session_hash)
        if VIEW in visit.asked:
            return [gr.skip()] * len(shown)  # the answers under way draw themselves
        return page(visit, marks, ratio)

    def read(request: gr.Request, text: str, base: bool, marks: bool, ratio: float, *given: Any) -> str:
        """The very text each actor reads, of the question in the box or else of the last one."""
        visit, settings = served.visits.of(request.session_hash), settings_of(ratio, *given)
        transcript = visit.transcript or Transcript("", "", "", "", (), {})
        if not (text or "").strip():
            if not transcript.rounds:
                raise gr.Error("Type a question first", print_exception=False)
            text, transcript = transcript.rounds[-1].prompt, without_last(transcript)
        parts = []
        for pane in ALL_PANES if base else PANES:
            try:
                turns = [*history(transcript, pane), Turn("human", text.strip())]
                parts.append(
                    f"<h4>{escape(TITLES[pane])}</h4><pre>{escape(chat.rendered(turns, pane, settings))}</pre>"
                )
            except C2FError as error:
                raise failure(error) from None
        return "".join(parts)

    asking: dict[str, Any] = {
        "inputs": [prompt, *knobs],
        "outputs": [prompt, *shown],
        "show_progress": "hidden",
        "trigger_mode": "once",
        "concurrency_limit": None,  # the line is the chat's own
        "api_visibility": "private",
    }
    knob = [marks, ratio]
    changed = sessions_fold(served, knob, shown, page)
    changed(gr.on([prompt.submit, send.click], ask, **asking))
    changed(again.click(ask_again, **asking))
    changed(anew.click(fine_anew, **asking))
    changed(undo.click(undo_last, knob, shown, **QUICK))
    changed(edit.click(edit_last, knob, [prompt, *shown], **QUICK))
    changed(clear.click(start_over, knob, shown, **QUICK))
    halt.click(_stopper(served, None), None, None, **QUICK)
    for pane, button in halts.items():
        button.click(_stopper(served, pane), None, None, **QUICK)
    ratio.change(redraw, knob, shown, trigger_mode="always_last", **QUICK)
    marks.change(redraw, knob, shown, **QUICK)
    marks.change(lambda on: gr.HTML(visible=on), marks, legend, **QUICK)
    show_base.change(lambda on: gr.Column(visible=on), show_base, columns["base"], **QUICK)
    show.click(read, [prompt, *knobs], rendered, **QUICK)


def _stopper(served: Served, pane: str | None) -> Any:
    def stop(request: gr.Request) -> None:
        served.visits.of(request.session_hash).stop(VIEW, pane)

    return stop
