"""What each visitor's page is at: his conversation and the answers under way. By Gradio's session, never by a name."""

import secrets
import threading
from collections import OrderedDict
from typing import Any

from lite_c2f.chat import AnswerStream
from lite_c2f.data.records import Turn
from lite_c2f.ui.store.conversations import Round, Transcript

MOST_VISITS = 1000  # pages that are remembered; the one not used for longest is forgotten first


class PageSession:
    """One page in one browser."""

    def __init__(self) -> None:
        self.owner = secrets.token_hex(16)  # until the browser tells the one it keeps
        self.arrived = False  # has it told?
        self.transcript: Transcript | None = None
        self.changing = threading.RLock()  # held by who looks at the transcript and then puts another in its place
        self.saved: tuple[Round, ...] = ()  # of the transcript, as this page saved them last
        self.asked: dict[str, AnswerStream] = {}  # what is being answered, by view
        self.knobs = (False, 0.0)  # marks and ratio, as the page has them
        self.extra: dict[str, Any] = {}  # what a view keeps between two requests

    def begin(self, view: str, stream: AnswerStream) -> None:
        """The one question a view has under way; an earlier one ends."""
        self.stop(view)
        self.asked[view] = stream

    def end(self, view: str, stream: AnswerStream) -> None:
        """These answers are over; nothing here waits, so that a server's event loop may call it."""
        stream.close()
        if self.asked.get(view) is stream:
            self.asked.pop(view, None)

    def is_current(self, view: str, stream: AnswerStream) -> bool:
        """Does somebody still look at these answers?"""
        return self.asked.get(view) is stream

    def stop(self, view: str | None = None, pane: str | None = None) -> None:
        """End the answers of a view, or of all; pane: only that one."""
        for name in [view] if view else list(self.asked):
            if name in self.asked:
                self.asked[name].stop(pane)

    def forget(self, view: str) -> None:
        """End the answers of a view, and let nothing of them be shown any more."""
        self.stop(view)
        self.asked.pop(view, None)


class PageSessions:
    """All visits of a server; bounded, and safe to use from several threads."""

    def __init__(self) -> None:
        self._lock, self._visits = threading.Lock(), OrderedDict[str, PageSession]()

    def of(self, session: str | None) -> PageSession:
        """The visit of a Gradio session; a call without one (a script's) has a visit for itself."""
        if session is None:
            return PageSession()
        with self._lock:
            visit = self._visits.setdefault(session, PageSession())
            self._visits.move_to_end(session)
            while len(self._visits) > MOST_VISITS:
                self._visits.popitem(last=False)[1].stop()
            return visit

    def leave(self, session: str | None) -> None:
        """The page was closed: its answers end."""
        with self._lock:
            visit = self._visits.pop(session or "", None)
        if visit is not None:
            visit.stop()

    def __len__(self) -> int:
        return len(self._visits)


def history(transcript: Transcript, pane: str) -> list[Turn]:
    """The conversation of one pane; a round it failed in, or was not shown in, is as if it had not been."""
    turns: list[Turn] = []
    for round_ in transcript.rounds:
        reply = round_.replies.get(pane)
        if reply is not None and reply.finish != "error":
            turns += [Turn("human", round_.prompt), Turn("assistant", reply.text)]
    return turns
