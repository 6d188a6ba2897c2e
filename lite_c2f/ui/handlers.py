"""What the buttons of the compare view do. Every method is an event of a page: it is given what the page holds."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from lite_c2f.chat import ALL_PANES, PANES, TITLES
from lite_c2f.data.records import Turn
from lite_c2f.errors import C2FError
from lite_c2f.ui import rounds
from lite_c2f.ui.answering import Notice, Served, failure, page_settings
from lite_c2f.ui.escaping import escape
from lite_c2f.ui.page_session import PageSession, history
from lite_c2f.ui.render import insight, talk
from lite_c2f.ui.rounds import VIEW, ShownRounds
from lite_c2f.ui.saving import visit_of
from lite_c2f.ui.store.conversations import Transcript

DRAWN = len(ALL_PANES) + 1  # the panes and the line below them
STREAMED = 2 + DRAWN  # the prompt box and the session before them


class Handlers:
    """Two kinds of events. Those that ask are given the prompt, `base` (is it shown?), `marks`, `ratio`, the inputs of
    the settings fold, owner and session; they yield prompt, session, panes, tale. The others are given `marks`,
    `ratio`, owner and session, and return panes and tale.
    """

    def __init__(self, served: Served) -> None:
        self.served = served

    def page(self, visit: PageSession, marks: bool, ratio: float) -> list[str]:
        """Panes and tale of the conversation as it is."""
        return _draw(rounds.shown(visit), marks, ratio)

    def ask(self, request: gr.Request, text: str, base: bool, marks: bool, ratio: float, *given: Any) -> Any:
        """Answer in every pane."""
        visit, panes, settings = self._came(request, *given[-2:]), _panes(base), page_settings(ratio, *given[:-2])
        yield from _streamed(
            visit, lambda: rounds.ask(self.served, visit, text or "", panes, settings), marks, ratio, ""
        )

    def ask_again(self, request: gr.Request, _: str, base: bool, marks: bool, ratio: float, *given: Any) -> Any:
        """The last question once more, with what is set now."""
        visit, panes, settings = self._came(request, *given[-2:]), _panes(base), page_settings(ratio, *given[:-2])
        yield from _streamed(visit, lambda: rounds.ask_again(self.served, visit, panes, settings), marks, ratio)

    def fine_anew(self, request: gr.Request, _: str, base: bool, marks: bool, ratio: float, *given: Any) -> Any:
        """The Fine Actor's last answer at another ratio, everything else as it was, the random numbers too."""
        visit = self._came(request, *given[-2:])
        yield from _streamed(visit, lambda: rounds.only(self.served, visit, ["fine"], ratio), marks, ratio)

    def base_too(self, request: gr.Request, _: str, base: bool, marks: bool, ratio: float, *given: Any) -> Any:
        """The base's answer to the last question, when it is first shown."""
        visit = self._came(request, *given[-2:])
        last = visit.transcript.rounds[-1] if visit.transcript and visit.transcript.rounds else None
        if VIEW in visit.asked:
            if base:
                gr.Info("The base answers from the next question on; for this one, tick it again when the others end")
            yield [gr.skip()] * STREAMED
        elif not base or last is None or "base" in last.replies:
            yield [gr.skip(), gr.skip(), *self.page(visit, marks, ratio)]
        else:
            yield from _streamed(visit, lambda: rounds.only(self.served, visit, ["base"]), marks, ratio)

    def edit_last(self, marks: bool, ratio: float, owner: str, session: str, request: gr.Request) -> list[Any]:
        """Forget the last round, and put its question into the box, the first that is returned."""
        visit = self._came(request, owner, session)
        try:
            text: Any = rounds.take_back(self.served, visit)
        except Notice as told:
            gr.Info(str(told))
            text = gr.skip()
        return [text, *self.page(visit, marks, ratio)]

    def undo_last(self, marks: bool, ratio: float, owner: str, session: str, request: gr.Request) -> list[Any]:
        """Forget the last round."""
        return self.edit_last(marks, ratio, owner, session, request)[1:]

    def start_over(self, marks: bool, ratio: float, owner: str, session: str, request: gr.Request) -> list[Any]:
        """Begin another conversation."""
        visit = self._came(request, owner, session)
        rounds.start_over(visit)
        return self.page(visit, marks, ratio)

    def redraw(self, marks: bool, ratio: float, owner: str, session: str, request: gr.Request) -> list[Any]:
        """Marks or ratio have changed."""
        visit = self._came(request, owner, session)
        visit.knobs = (marks, ratio)
        if VIEW in visit.asked:
            return [gr.skip()] * DRAWN  # the answers under way draw themselves
        return self.page(visit, marks, ratio)

    def read(self, request: gr.Request, text: str, base: bool, marks: bool, ratio: float, *given: Any) -> str:
        """The very text each actor reads, of the question in the box or else of the last one, as HTML."""
        visit, settings = self._came(request, *given[-2:]), page_settings(ratio, *given[:-2])
        transcript = visit.transcript or Transcript("", "", "", "", (), {})
        if not (text or "").strip():
            if not transcript.rounds:
                return '<p class="hint">Type a question first.</p>'
            text, transcript = transcript.rounds[-1].prompt, transcript._replace(rounds=transcript.rounds[:-1])
        parts = []
        for pane in _panes(base):
            turns = [*history(transcript, pane), Turn("human", text.strip())]
            try:
                prompt = self.served.chat.rendered(turns, pane, settings)
            except C2FError as error:
                raise failure(error) from None
            parts.append(f"<h4>{escape(TITLES[pane])}</h4><pre>{escape(prompt)}</pre>")
        return "".join(parts)

    def stopper(self, pane: str | None) -> Callable[[gr.Request], None]:
        """What ends the answer of a pane, or all of them."""

        def stop(request: gr.Request) -> None:
            self.served.visits.of(request.session_hash).stop(VIEW, pane)

        return stop

    def _came(self, request: gr.Request, owner: str, session: str) -> PageSession:
        return visit_of(self.served, request.session_hash, owner, session)


def _panes(base: bool) -> tuple[str, ...]:
    return ALL_PANES if base else PANES


def _draw(now: ShownRounds, marks: bool, ratio: float) -> list[str]:
    waiting = "" if now.waiting is None else f"{now.waiting} before you" if now.waiting else "reading the question"
    panes = [talk(now.rounds, pane, marks=marks, ratio=ratio, waiting=waiting) for pane in ALL_PANES]
    return [*panes, insight(now.rounds[-1] if now.rounds else None)]


def _streamed(
    visit: PageSession, looks: Callable[[], Iterator[ShownRounds]], marks: bool, ratio: float, text: Any = None
) -> Iterator[list[Any]]:
    """Updates while answers are written. text: what the first puts into the box, where more may be typed then."""
    visit.knobs = (marks, ratio)  # which may be moved meanwhile
    box, notice = gr.skip() if text is None else text, None
    try:
        for now in looks():
            session = visit.transcript.id if visit.transcript else ""  # a reload asks for it
            yield [box, gr.skip() if session == notice else session, *_draw(now, *visit.knobs)]
            box, notice = gr.skip(), session
    except Notice as reason:
        gr.Info(str(reason))
        yield [gr.skip()] * STREAMED
