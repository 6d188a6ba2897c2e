"""Page sessions: the conversation and the running answers of each open page, by Gradio's session, never by a name."""

import re
import secrets
import threading
from collections import OrderedDict
from copy import copy
from typing import Any, NamedTuple

from lite_c2f.chat import AnswerStream
from lite_c2f.data.records import Turn
from lite_c2f.ui.store.conversations import Round, Transcript

MAX_PAGES = 1000  # pages that are remembered; the one not used for longest is forgotten first
MAX_LEFT = 100  # of those whose connection has ended: closed ones, and those that come back, as when a laptop wakes up


class Display(NamedTuple):
    """What a page shows of its answers beside their text, as set there."""

    marks: bool = False  # are repeats marked, and what Fine kept?
    against: str = ""  # the pane beside whose answer the Fine Actor's changes are shown; "" shows none
    ratio: float | None = None  # of the slider
    other: str = ""  # the key of the other pane; "": none is open


class PageSession:
    """One page in one browser."""

    def __init__(self) -> None:
        self.owner = secrets.token_hex(16)  # until the browser sends the one in its local storage
        self.identified = False  # has it been sent?
        self.transcript: Transcript | None = None
        self.lock = threading.RLock()  # held while the transcript is read and then replaced
        self.saved_rounds: tuple[Round, ...] = ()  # of the transcript, as this page saved them last
        self.streams: dict[str, AnswerStream] = {}  # answers being written, by view
        self.scoring: dict[str, AnswerStream] = {}  # answers that have ended and are being scored, likewise
        self.display = Display()
        self.drawn: Any = None  # the earlier rounds, marks and changes that the page was sent
        self.view_state: dict[str, Any] = {}  # of a view, between two requests; a reload continues with a copy
        self.tab: str | None = None  # whose it is

    def begin(self, view: str, stream: AnswerStream) -> None:
        """Make this the one stream of a view; an earlier one ends."""
        self.stop(view)
        self.streams[view] = stream

    def end(self, view: str, stream: AnswerStream) -> None:
        """Close a stream. Nothing here waits, so that a server's event loop may call it."""
        stream.close()
        for streams in (self.streams, self.scoring):
            if streams.get(view) is stream:
                streams.pop(view, None)

    def written(self, view: str, stream: AnswerStream) -> None:
        """The answers have ended: while they are scored, another question may be asked."""
        if self.is_current(view, stream):
            self.scoring[view] = self.streams.pop(view)

    def is_current(self, view: str, stream: AnswerStream) -> bool:
        """Does the page still show these answers?"""
        return self.streams.get(view) is stream

    def stop(self, view: str | None = None, pane: str | None = None) -> None:
        """End the answers of a view, or of all; pane: only that one."""
        for name in [view] if view else list(self.streams):
            if name in self.streams:
                self.streams[name].stop(pane)

    def forget(self, view: str) -> None:
        """End the answers of a view; what still comes of them is not shown."""
        self.stop(view)
        self.streams.pop(view, None)


class PageSessions:
    """All pages of a server; bounded, and safe to use from several threads."""

    def __init__(self) -> None:
        self._lock, self._pages = threading.Lock(), OrderedDict[str, PageSession]()
        self._left = OrderedDict[str, PageSession]()  # whose connection has ended, the first one first
        self._view_states = OrderedDict[str, dict[str, Any]]()  # by the secret number that a tab has stored

    def of(self, session_hash: str | None) -> PageSession:
        """The page of a Gradio session; a call without one (a script's) gets a page of its own."""
        if session_hash is None:
            return PageSession()
        with self._lock:
            page = self._left.pop(session_hash, None) or self._pages.get(session_hash) or PageSession()
            self._pages[session_hash] = page
            self._pages.move_to_end(session_hash)
            while len(self._pages) > MAX_PAGES:
                self._pages.popitem(last=False)[1].stop()
            return page

    def continued(self, session_hash: str | None, tab: str) -> PageSession:
        """The page of a Gradio session, with the views as the same tab of the browser had them before it was reloaded.

        tab: 32 hex digits that only this tab knows; anything else begins anew. A tab that was duplicated has the same:
        its page begins with the same views, and each goes on with its own.
        """
        page = self.of(session_hash)
        if re.fullmatch("[0-9a-f]{32}", tab or ""):
            with self._lock:
                if page.tab != tab:  # not what another view of this page has asked for already
                    state = self._view_states.get(tab, page.view_state)
                    page.tab = tab
                    page.view_state = {key: copy(value) for key, value in state.items()}
                self._view_states[tab] = page.view_state
                self._view_states.move_to_end(tab)
                while len(self._view_states) > MAX_PAGES:
                    self._view_states.popitem(last=False)
        return page

    def close(self, session_hash: str | None) -> None:
        """The page's connection has ended: its answers end. It may come back, and is then as it was."""
        with self._lock:
            page = self._pages.pop(session_hash or "", None)
            if page is not None:
                self._left[session_hash or ""] = page
                if len(self._left) > MAX_LEFT:
                    self._left.popitem(last=False)
        if page is not None:
            page.stop()


def history(transcript: Transcript, pane: str) -> list[Turn]:
    """The conversation of one pane, without the rounds in which it failed, was not shown, or was stopped at once."""
    turns: list[Turn] = []
    for round_ in transcript.rounds:
        reply = round_.replies.get(pane)
        if reply is not None and reply.finish != "error" and (reply.text or reply.finish != "stopped"):
            turns += [Turn("human", round_.prompt), Turn("assistant", reply.text)]
    return turns
