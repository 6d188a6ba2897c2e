"""Handlers of the chat page: what each of its buttons does. `compare.py` lays the buttons out and connects them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr

from lite_c2f.actors.names import BASE, FINE
from lite_c2f.chat import ALL_PANES, PANES, ChatSettings
from lite_c2f.chat.panes import title_of
from lite_c2f.data.records import Turn
from lite_c2f.errors import C2FError
from lite_c2f.ui import open_vote, rounds
from lite_c2f.ui.answering import Notice, Served, failure, page_settings, waits_for
from lite_c2f.ui.buttons import BUTTONS, can_act, can_ask_again
from lite_c2f.ui.continuing import continue_answer
from lite_c2f.ui.escaping import escape
from lite_c2f.ui.other_pane import OTHER, SLOTS, chosen_pane, key_in, known, opening, slot_of
from lite_c2f.ui.page_session import Display, PageSession, history
from lite_c2f.ui.render import BestVote, conversation, round_figures, variant_count
from lite_c2f.ui.round_stream import VIEW, ShownRounds, shown
from lite_c2f.ui.saving import page_of
from lite_c2f.ui.store.conversations import Transcript

CHUNK = 8  # rounds; so many more are drawn anew with every update at most
# Outputs of `draw`: the panes' earlier and last rounds, the count of variants and the summary below them, the buttons.
DRAWN = 2 * len(SLOTS) + 2 + len(BUTTONS)
STREAMED = 2 + DRAWN  # outputs of a handler that streams answers: the prompt box and the session id before those


class PageInputs(NamedTuple):
    """Values of the page's inputs beside the question, in the order of `inputs` in compare.py."""

    base: bool  # is the base model's pane shown?
    display: Display
    settings: tuple[Any, ...]  # of the settings fold
    owner: str
    session: str

    @classmethod
    def of(cls, base: bool, marks: bool, against: str, ratio: float, other: str, *others: Any) -> "PageInputs":
        """From the values that Gradio hands over."""
        *settings, owner, session = others
        return cls(base, Display(marks, against, ratio, known(other)), tuple(settings), owner, session)

    @property
    def panes(self) -> tuple[str, ...]:
        """The panes that answer."""
        other = (self.display.other,) if self.display.other else ()
        return (*(ALL_PANES if self.base else PANES), *other)

    @property
    def chat_settings(self) -> ChatSettings:
        """Ratio and settings, checked. Raises gradio.Error for a value out of range."""
        return page_settings(self.display.ratio, *self.settings)


class Handlers:
    """Two kinds of handlers. Those that stream answers take the question and `PageInputs`, and yield prompt box,
    session id, panes, summary and buttons. The others take marks, ratio, owner and session id, and return the last
    three of these.
    """

    def __init__(self, served: Served) -> None:
        self.served = served

    def draw(self, page: PageSession, display: Display) -> list[Any]:
        """Panes, summary and buttons of the conversation as it is."""
        page.display = display  # what is drawn later, such as rewards, is drawn so too
        return _draw(page, shown(page), display, open_vote.best_vote(self.served, page))

    def ask(self, request: gr.Request, text: str, *values: Any) -> Any:
        """Answer in every pane."""
        inputs, page = self._read(request, values)
        settings = inputs.chat_settings
        yield from self._stream(
            page, inputs, lambda: rounds.ask(self.served, page, text or "", inputs.panes, settings), prompt=""
        )

    def regenerate(self, request: gr.Request, _: str, *values: Any) -> Any:
        """The last question again, with the settings as they are now."""
        inputs, page = self._read(request, values)
        settings = inputs.chat_settings
        yield from self._stream(page, inputs, lambda: rounds.regenerate(self.served, page, inputs.panes, settings))

    def regenerate_fine(self, request: gr.Request, _: str, *values: Any) -> Any:
        """The Fine Actor's last answer at another ratio, with the same settings and random numbers."""
        inputs, page = self._read(request, values)
        yield from self._stream(
            page, inputs, lambda: rounds.regenerate_panes(self.served, page, [FINE], inputs.display.ratio)
        )

    def again(self, slot: str) -> Callable[..., Any]:
        """The handler that asks one pane alone again, with the settings as they are now."""

        def again(request: gr.Request, _: str, *values: Any) -> Any:
            inputs, page = self._read(request, values)
            settings, pane = inputs.chat_settings, key_in(slot, inputs.display)
            yield from self._stream(page, inputs, lambda: rounds.ask_again(self.served, page, pane, settings))

        return again

    def go_on(self, slot: str) -> Callable[..., Any]:
        """The handler that continues a pane's answer that was cut off, by as many tokens as an answer may have now."""

        def go_on(request: gr.Request, _: str, *values: Any) -> Any:
            inputs, page = self._read(request, values)
            more, pane = inputs.chat_settings.max_tokens, key_in(slot, inputs.display)
            yield from self._stream(page, inputs, lambda: continue_answer(self.served, page, pane, more))

        return go_on

    def best(self, pane: str) -> Callable[..., list[Any]]:
        """The handler that votes a pane's last answer the best, or takes that vote back."""

        def best(request: gr.Request, *values: Any) -> list[Any]:
            try:
                return self._change(lambda served, page: open_vote.toggle(served, page, pane), request, values)
            except (C2FError, OSError) as error:
                raise failure(error) from None

        return best

    def show_base(self, request: gr.Request, _: str, *values: Any) -> Any:
        """The base's answer to the last question, when its pane is first shown."""
        inputs, page = self._read(request, values)
        again = "The base answers from the next question on; for this one, tick it again when the others end"
        yield from self._join(page, inputs, BASE if inputs.base else "", again)

    def open_other(self, request: gr.Request, choice: str | None, ratio: float | None, now: str) -> Iterator[Any]:
        """The key of the pane to be opened; the page then shows it, by `show_other`. now: of the one that is open."""
        try:
            key = chosen_pane(choice, ratio, self.served.chat.listed_others() if choice else [])
        except Notice as notice:
            gr.Info(str(notice))
            yield gr.skip()
            return
        yield from opening(key, now, self.served.pages.of(request.session_hash).transcript)

    def show_other(self, request: gr.Request, _: str, *values: Any) -> Any:
        """The other pane was opened or removed: its answer to the last question, where it has none yet."""
        inputs, page = self._read(request, values)
        later = "The other pane answers from the next question on; for this one, open it again when the others end"
        yield from self._join(page, inputs, inputs.display.other, later)

    def _join(self, page: PageSession, inputs: PageInputs, pane: str, later: str) -> Iterator[list[Any]]:
        """Let a pane answer the last question too. pane: "" only draws; later: said while answers are written."""
        last = page.transcript.rounds[-1] if page.transcript and page.transcript.rounds else None
        if VIEW in page.streams:
            page.display = inputs.display  # the answers being written draw themselves
            if pane and pane not in page.streams[VIEW].unfinished:
                gr.Info(later)
            yield [gr.skip()] * STREAMED
        elif not pane or last is None or pane in last.replies:
            yield [gr.skip(), gr.skip(), *self.draw(page, inputs.display)]
        else:
            yield from self._stream(page, inputs, lambda: rounds.regenerate_panes(self.served, page, [pane]))

    def turn(self, step: int) -> Callable[..., list[Any]]:
        """The handler that shows the answers so many places further, of those that the last question got."""

        def turn(request: gr.Request, *values: Any) -> list[Any]:
            return self._change(lambda served, page: rounds.turn(served, page, step), request, values)

        return turn

    def edit_last(self, request: gr.Request, *values: Any) -> list[Any]:
        """Take the last round off the page, and put its question into the prompt box, the first value returned."""
        page, display = self._read_display(request, values)
        try:
            text: Any = rounds.edit(page)
        except Notice as notice:
            gr.Info(str(notice))
            text = gr.skip()
        return [text, *self.draw(page, display)]

    def remove_last(self, request: gr.Request, *values: Any) -> list[Any]:
        """Remove the last round."""
        return self._change(rounds.remove_last, request, values)

    def redo(self, request: gr.Request, text: str | None, *values: Any) -> list[Any]:
        """Bring back a round that was removed, or taken off to be edited; its question leaves the box, if unchanged."""
        page, display = self._read_display(request, values)
        box: Any = gr.skip()
        try:
            if (question := rounds.redo(self.served, page)) and question == (text or "").strip():
                box = ""
        except Notice as notice:
            gr.Info(str(notice))
        return [box, *self.draw(page, display)]

    def _change(
        self, change: Callable[[Served, PageSession], None], request: gr.Request, values: tuple[Any, ...]
    ) -> list[Any]:
        page, display = self._read_display(request, values)
        try:
            change(self.served, page)
        except Notice as notice:
            gr.Info(str(notice))
        return self.draw(page, display)

    def start_over(self, request: gr.Request, *values: Any) -> list[Any]:
        """Begin a new conversation."""
        page, display = self._read_display(request, values)
        rounds.start_over(page)
        return self.draw(page, display)

    def redraw(self, request: gr.Request, *values: Any) -> list[Any]:
        """Marks or ratio have changed."""
        page, display = self._read_display(request, values)
        page.display = display
        if VIEW in page.streams:
            return [gr.skip()] * DRAWN  # the answers being written draw themselves
        return self.draw(page, display)

    def rendered_prompts(self, request: gr.Request, text: str, *values: Any) -> str:
        """The exact text each actor reads, for the question in the box or else the last one, as HTML."""
        if loading := self.served.chat.loading:  # with their tokenizers
            return f'<p class="hint">Wait: {escape(loading)}.</p>'
        inputs, page = self._read(request, values)
        settings, transcript = inputs.chat_settings, page.transcript or Transcript("", "", "", "", (), {})
        if not (text or "").strip():
            if not transcript.rounds:
                return '<p class="hint">Type a question first.</p>'
            text, transcript = transcript.rounds[-1].prompt, transcript._replace(rounds=transcript.rounds[:-1])
        parts = []
        for pane in inputs.panes:
            turns = [*history(transcript, pane), Turn("human", text.strip())]
            try:
                prompt = self.served.chat.rendered(turns, pane, settings)
            except C2FError as error:
                raise failure(error) from None
            parts.append(f"<h3>{escape(title_of(pane))}</h3><pre>{escape(prompt)}</pre>")
        return "".join(parts)

    def stop(self, slot: str | None) -> Callable[[gr.Request], None]:
        """The handler that ends the answer of a pane, or all of them."""

        def stop(request: gr.Request) -> None:
            page = self.served.pages.of(request.session_hash)
            stream = page.streams.get(VIEW)
            others = [key for key in stream.unfinished if slot_of(key) == OTHER] if stream and slot == OTHER else []
            for pane in others if slot == OTHER else [slot]:
                page.stop(VIEW, pane)

        return stop

    def _page(self, request: gr.Request, owner: str, session: str) -> PageSession:
        return page_of(self.served, request.session_hash, owner, session)

    def _read_display(self, request: gr.Request, values: tuple[Any, ...]) -> tuple[PageSession, Display]:
        marks, against, ratio, other, owner, session = values
        return self._page(request, owner, session), Display(marks, against, ratio, known(other))

    def _read(self, request: gr.Request, values: tuple[Any, ...]) -> tuple[PageInputs, PageSession]:
        inputs = PageInputs.of(*values)
        return inputs, self._page(request, inputs.owner, inputs.session)

    def _stream(
        self,
        page: PageSession,
        inputs: PageInputs,
        begin: Callable[[], Iterator[ShownRounds | None]],
        prompt: str | None = None,
    ) -> Iterator[list[Any]]:
        """Updates while answers are written. prompt: what the first update puts into the box; None leaves it alone."""
        page.display = inputs.display  # which may change meanwhile
        box, sent = gr.skip() if prompt is None else prompt, None
        try:
            for state in begin():
                if state is None:
                    yield [gr.skip()] * STREAMED
                    continue
                session = page.transcript.id if page.transcript else ""  # with which a reload reopens it
                drawn = _draw(page, state, page.display, open_vote.best_vote(self.served, page))
                yield [box, gr.skip() if session == sent else session, *drawn]
                box, sent = gr.skip(), session
        except Notice as notice:
            gr.Info(str(notice))
            yield [gr.skip()] * STREAMED


def _draw(page: PageSession, state: ShownRounds, display: Display, best: BestVote | None = None) -> list[Any]:
    waiting = waits_for(state.awaited, state.queued)
    split = _split(len(state.rounds), state.queued is not None)
    shown_keys = [key_in(slot, display) for slot in SLOTS]
    drawn = (state.rounds[:split], display.marks, display.against, shown_keys)
    if page.drawn == drawn:  # sent before: 60 long rounds are a megabyte, which takes a browser half a second
        earlier: list[Any] = [gr.skip()] * len(SLOTS)
    else:
        page.drawn = drawn
        earlier = [conversation(state.rounds, pane, display, end=split) if split else "" for pane in shown_keys]
    stream, acts = page.streams.get(VIEW), can_ask_again(page)
    unfinished = stream.unfinished if stream else ()
    panes = [
        conversation(
            state.rounds,
            pane,
            display,
            begin=split,
            waiting=waiting if pane in unfinished and state.queued is not None else "",
            acts=acts,
            best=best,
        )
        for pane in shown_keys
    ]
    last = state.rounds[-1] if state.rounds else None
    below = [variant_count(last), round_figures(last)]
    return [*earlier, *panes, *below, *(gr.Button(interactive=can) for can in can_act(page, display.ratio).values())]


def _split(count: int, writing: bool) -> int:
    """How many of `count` rounds are earlier ones: all but the last 1 to CHUNK, or one more while it is written.

    The number changes when a round ends, not when one is asked: the question is then shown at once.
    """
    return CHUNK * max(0, (count - writing - 1) // CHUNK)
