"""A question between the one who asked it and the thread that answers."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lite_c2f.actors.reply import Reply
from lite_c2f.chat.panes import ChatSettings, Pane
from lite_c2f.chat.prompts import History, ReadPrompt
from lite_c2f.chat.rows import AnswerRow


class PendingQuestion:
    """What was asked, and how far it is; between the one who asked and the thread that answers."""

    def __init__(
        self,
        number: int,
        panes: Sequence[Pane],
        histories: Mapping[str, History],
        settings: ChatSettings,
        asker: str | None = None,
    ) -> None:
        self.number, self.panes, self.histories, self.settings = number, panes, histories, settings
        self.asker = asker
        self.turn = 0  # those of a lower one are begun first
        self.asked = time.perf_counter()
        self.scored = True  # nothing is waited for once the last row has ended
        self.rows: dict[str, AnswerRow] = {}  # by pane, from when they are begun
        self.read: dict[str, ReadPrompt] = {}  # likewise
        self.unbegun: dict[str, tuple[str, str]] = {}  # panes that never began: their finish, and why
        self.rewards: dict[str, float] = {}
        self.stopped: set[str] = set()  # panes that shall end
        self.abandoned = False  # nobody looks any more
        self.changed = threading.Event()

    @property
    def ended(self) -> bool:
        """Has every pane its last word?"""
        known = len(self.rows) + len(self.unbegun) == len(self.panes)
        return known and self.scored and all(row.finish is not None for row in self.rows.values())

    @property
    def unwanted(self) -> bool:
        """Shall every pane end?"""
        return self.stopped >= {pane.key for pane in self.panes}

    def give_up(self, finish: str, message: str = "") -> None:
        """End every pane that has not ended."""
        for pane in self.panes:
            row = self.rows.get(pane.key)
            if row is None:
                self.unbegun.setdefault(pane.key, (finish, message))
            elif row.finish is None:
                row.end(finish, message)
        self.scored = True
        self.changed.set()


class AnswerStream:
    """The answers to a question, as they grow: iterate over it for events; a pane's last one has its finish.

    Between two events of a pane it may have said several tokens. Dropped or closed, the answers end.
    """

    # Nothing here may hold the object itself, as a generator's frame would: it would be dropped at the next collection.

    def __init__(
        self,
        question: PendingQuestion,
        event_of: Callable[[PendingQuestion, Pane], Reply | None],
        place_of: Callable[[PendingQuestion], int],
        pause: float,
    ) -> None:
        self._question, self._event_of, self._place_of, self._pause = question, event_of, place_of, pause
        self._told: dict[str, tuple[Any, ...]] = {}
        self._queue: deque[Reply] = deque()
        self._looked = self._over = False

    def __iter__(self) -> Iterator[Reply]:
        return self

    def __next__(self) -> Reply:
        while not self._queue:
            if self._over:
                raise StopIteration
            self._queue.extend(self._look(None))
        return self._queue.popleft()

    def batches(self, patience: float | None = None) -> Iterator[list[Reply]]:
        """Events as they come, all panes' at once; an empty list after `patience` seconds without any."""
        while not self._over:
            news = self._look(patience)
            if news or not self._over:
                yield news

    def _look(self, patience: float | None) -> list[Reply]:
        """What is new, once there is something; nothing after `patience` seconds, or when all is told."""
        question = self._question
        while True:
            if self._looked:
                if not question.changed.wait(patience):
                    return []
                question.changed.clear()
                if self._pause and not question.ended:
                    time.sleep(self._pause)
            self._looked = True
            self._over = question.ended  # before looking: what is seen afterwards is then the last word
            news = self._news()
            if news or self._over:
                return news

    @property
    def waiting(self) -> int:
        """Questions that are answered before this one is begun; 0 once it is."""
        return self._place_of(self._question)

    def stop(self, pane: str | None = None) -> None:
        """End one pane's answer, or all of them; what was said stays."""
        keys = {each.key for each in self._question.panes}
        self._question.stopped |= keys if pane is None else keys & {pane}

    def close(self) -> None:
        """As `stop`, and nobody looks at what was said; only sets marks, so that a server's event loop may call it."""
        self._question.abandoned = True
        self.stop()

    def __del__(self) -> None:
        self.close()

    def _news(self) -> list[Reply]:
        events = []
        for pane in self._question.panes:
            event = self._event_of(self._question, pane)
            if event is None:
                continue
            mark = (event.tokens, event.finish, event.reward)
            if self._told.get(pane.key) != mark:
                self._told[pane.key] = mark
                events.append(event)
        return events
