"""Handlers of the chat page: what each of its buttons does. `compare.py` lays the buttons out and connects them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr

from lite_c2f.actors.names import BASE, FINE
from lite_c2f.chat import ALL_PANES, PANES, TITLES, ChatSettings
from lite_c2f.data.records import Turn
from lite_c2f.errors import C2FError
from lite_c2f.ui import rounds
from lite_c2f.ui.answering import Notice, Served, failure, page_settings
from lite_c2f.ui.escaping import escape
from lite_c2f.ui.page_session import PageSession, history
from lite_c2f.ui.render import conversation, insight
from lite_c2f.ui.rounds import VIEW, ShownRounds
from lite_c2f.ui.saving import visit_of
from lite_c2f.ui.store.conversations import Transcript

DRAWN = len(ALL_PANES) + 1  # the panes and the line below them
STREAMED = 2 + DRAWN  # the prompt box and the session before them


class PageInputs(NamedTuple):
    """What the page holds beside the question, in the order of `inputs` in compare.py."""

    base: bool  # is the base model's pane shown?
    marks: bool  # are repeats marked?
    ratio: float
    settings: tuple[Any, ...]  # of the settings fold
    owner: str
    session: str

    @classmethod
    def of(cls, base: bool, marks: bool, ratio: float, *others: Any) -> "PageInputs":
        """From the values that Gradio hands over."""
        *settings, owner, session = others
        return cls(base, marks, ratio, tuple(settings), owner, session)

    @property
    def panes(self) -> tuple[str, ...]:
        """The panes that answer."""
        return ALL_PANES if self.base else PANES

    @property
    def chat_settings(self) -> ChatSettings:
        """Ratio and settings, checked. Raises gradio.Error for a value out of range."""
        return page_settings(self.ratio, *self.settings)


class Handlers:
    """Two kinds of handlers. Those that ask take the question and `PageInputs`; they yield question, session, panes and
    the line below them. The others take `marks`, `ratio`, owner and session, and return the panes and that line.
    """

    def __init__(self, served: Served) -> None:
        self.served = served

    def page(self, visit: PageSession, marks: bool, ratio: float) -> list[str]:
        """Panes, and the line below them, of the conversation as it is."""
        return _draw(rounds.shown(visit), marks, ratio)

    def ask(self, request: gr.Request, text: str, *values: Any) -> Any:
        """Answer in every pane."""
        page = PageInputs.of(*values)
        visit, settings = self._session(request, page.owner, page.session), page.chat_settings
        yield from _streamed(
            visit, lambda: rounds.ask(self.served, visit, text or "", page.panes, settings), page.marks, page.ratio, ""
        )

    def ask_again(self, request: gr.Request, _: str, *values: Any) -> Any:
        """The last question once more, with what is set now."""
        page = PageInputs.of(*values)
        visit, settings = self._session(request, page.owner, page.session), page.chat_settings
        yield from _streamed(
            visit, lambda: rounds.ask_again(self.served, visit, page.panes, settings), page.marks, page.ratio
        )

    def fine_anew(self, request: gr.Request, _: str, *values: Any) -> Any:
        """The Fine Actor's last answer at another ratio, everything else as it was, the random numbers too."""
        page = PageInputs.of(*values)
        visit = self._session(request, page.owner, page.session)
        yield from _streamed(visit, lambda: rounds.only(self.served, visit, [FINE], page.ratio), page.marks, page.ratio)

    def base_too(self, request: gr.Request, _: str, *values: Any) -> Any:
        """The base's answer to the last question, when it is first shown."""
        base, marks, ratio, _settings, owner, session = PageInputs.of(*values)
        visit = self._session(request, owner, session)
        last = visit.transcript.rounds[-1] if visit.transcript and visit.transcript.rounds else None
        if VIEW in visit.asked:
            if base:
                gr.Info("The base answers from the next question on; for this one, tick it again when the others end")
            yield [gr.skip()] * STREAMED
        elif not base or last is None or BASE in last.replies:
            yield [gr.skip(), gr.skip(), *self.page(visit, marks, ratio)]
        else:
            yield from _streamed(visit, lambda: rounds.only(self.served, visit, [BASE]), marks, ratio)

    def edit_last(self, marks: bool, ratio: float, owner: str, session: str, request: gr.Request) -> list[Any]:
        """Forget the last round, and put its question into the box, the first that is returned."""
        visit = self._session(request, owner, session)
        try:
            text: Any = rounds.take_back(self.served, visit)
        except Notice as notice:
            gr.Info(str(notice))
            text = gr.skip()
        return [text, *self.page(visit, marks, ratio)]

    def undo_last(self, marks: bool, ratio: float, owner: str, session: str, request: gr.Request) -> list[Any]:
        """Forget the last round."""
        return self.edit_last(marks, ratio, owner, session, request)[1:]

    def start_over(self, marks: bool, ratio: float, owner: str, session: str, request: gr.Request) -> list[Any]:
        """Begin another conversation."""
        visit = self._session(request, owner, session)
        rounds.start_over(visit)
        return self.page(visit, marks, ratio)

    def redraw(self, marks: bool, ratio: float, owner: str, session: str, request: gr.Request) -> list[Any]:
        """Marks or ratio have changed."""
        visit = self._session(request, owner, session)
        visit.knobs = (marks, ratio)
        if VIEW in visit.asked:
            return [gr.skip()] * DRAWN  # the answers under way draw themselves
        return self.page(visit, marks, ratio)

    def read(self, request: gr.Request, text: str, *values: Any) -> str:
        """The very text each actor reads, of the question in the box or else of the last one, as HTML."""
        page = PageInputs.of(*values)
        visit, settings = self._session(request, page.owner, page.session), page.chat_settings
        transcript = visit.transcript or Transcript("", "", "", "", (), {})
        if not (text or "").strip():
            if not transcript.rounds:
                return '<p class="hint">Type a question first.</p>'
            text, transcript = transcript.rounds[-1].prompt, transcript._replace(rounds=transcript.rounds[:-1])
        parts = []
        for pane in page.panes:
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

    def _session(self, request: gr.Request, owner: str, session: str) -> PageSession:
        return visit_of(self.served, request.session_hash, owner, session)


def _draw(now: ShownRounds, marks: bool, ratio: float) -> list[str]:
    waiting = "" if now.waiting is None else f"{now.waiting} before you" if now.waiting else "reading the question"
    panes = [conversation(now.rounds, pane, marks=marks, ratio=ratio, waiting=waiting) for pane in ALL_PANES]
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
