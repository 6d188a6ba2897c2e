"""Prompt sets at work: all actors answer the questions of a visitor, in the background, through the chat's own queue.

A set asks as a visitor of its own, so that the owner's questions in Compare do not wait behind it. It has up to AT_ONCE
questions in the engine while nobody else asks, and one otherwise: in the queue a visitor waits for one of its questions
at most (`FairQueue`), and finds the batch free for all but one. It works until all is answered or it is stopped,
whether a page is open or not; after the end of the server it is continued where it was.
"""

import json
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lite_c2f.actors.names import ACTORS, BASELINE, INSTRUCT
from lite_c2f.actors.reply import Reply
from lite_c2f.chat import AnswerStream, Chat, ChatSettings
from lite_c2f.chat.history import one_line
from lite_c2f.errors import C2FError, RunError
from lite_c2f.ui.own_questions import questions_in
from lite_c2f.ui.store import prompt_sets
from lite_c2f.ui.store.prompt_sets import FAILED, PromptSet

AT_ONCE = 3  # questions of a set in the engine while nobody else asks
MAX_WORKING = 8  # sets that are answered at a time, of all owners
MAX_ENDED = 100  # sets of which it is remembered how they ended
PAUSE = 0.05  # seconds between two looks at the answers
RETRY = 1.0  # seconds after which a full queue is tried again
SAVE_EVERY = 1.0  # seconds
NAME_LENGTH = 60  # characters
PANES = {actor: BASELINE if actor == INSTRUCT else actor for actor in ACTORS}  # by the name that rows have


class SetWork:
    """A set that is being answered, in a thread of its own."""

    def __init__(self, chat: Chat, folder: Path, prompt_set: PromptSet) -> None:
        self.chat, self.folder, self.prompt_set = chat, folder, prompt_set
        self.todo = prompt_sets.unanswered(prompt_set)
        self.answered = 0  # of `todo`
        self.message = ""  # why it ended early, in one line
        self._saved_at = self._started_at = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lite_c2f-prompt-set", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self, timeout: float | None = 0.0) -> None:
        """Ask no more and end what is being answered; waits for the last save up to `timeout` seconds."""
        self._stopping.set()
        self._thread.join(timeout)

    @property
    def active(self) -> bool:
        """Whether it still works."""
        return self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping.is_set()

    @property
    def seconds_left(self) -> float | None:
        """At its pace so far; None before the first question is answered."""
        seconds = time.monotonic() - self._started_at
        return seconds / self.answered * (len(self.todo) - self.answered) if self.answered else None

    def _run(self) -> None:
        asked: dict[int, AnswerStream] = {}
        try:
            self._answer_all(asked)
        except Exception as error:  # a bug, or a full disk: the page says so
            self.message = one_line(error)
        finally:
            for stream in asked.values():
                stream.close()
        try:
            prompt_sets.save(self.folder, self.prompt_set)
        except Exception as error:
            self.message = f"the last answers are not saved: {one_line(error)}"
        self.prompt_set = self.prompt_set._replace(rows=())  # it is kept for its name alone

    def _answer_all(self, asked: dict[int, AnswerStream]) -> None:
        """asked: by place, the questions in the engine; those left in it at the end are not answered."""
        waiting, full_until = deque(self.todo), 0.0
        while (waiting or asked) and not self._stopping.is_set():
            while waiting and len(asked) < self._room(len(asked)) and time.monotonic() >= full_until:
                try:
                    asked[waiting[0]] = self._ask(waiting[0])
                except C2FError:  # the queue is full: settings and questions were checked before
                    full_until = time.monotonic() + RETRY
                    break
                waiting.popleft()
            self._stopping.wait(PAUSE)
            for place in [place for place, stream in asked.items() if stream.finished]:
                self._add(place, asked.pop(place))
            if self.answered and time.monotonic() - self._saved_at > SAVE_EVERY:
                prompt_sets.save(self.folder, self.prompt_set)
                self._saved_at = time.monotonic()

    def _room(self, own: int) -> int:
        """Questions that may be in the engine. own: those of this set that are."""
        return AT_ONCE if sum(self.chat.busy()) <= own else 1

    def _ask(self, place: int) -> AnswerStream:
        settings = ChatSettings(**self.prompt_set.settings)
        settings = settings._replace(seed=settings.seed + place)
        question, asker = self.prompt_set.questions[place], f"set of {self.prompt_set.owner}"
        return self.chat.stream(question, list(PANES.values()), settings, score=True, asker=asker)

    def _add(self, place: int, stream: AnswerStream) -> None:
        replies = {reply.pane: reply for reply in stream.poll()}
        question = self.prompt_set.questions[place]
        rows = [row_of(question, actor, replies[pane]) for actor, pane in PANES.items()]
        self.prompt_set = prompt_sets.answered(self.prompt_set, rows)
        self.answered += 1


def row_of(question: str, actor: str, reply: Reply) -> dict[str, Any]:
    """A reply as a line of responses.jsonl, with its seed; a failed one has its message and no reward."""
    failed = reply.finish == FAILED
    return {
        "prompt": question,
        "actor": actor,
        "response": reply.text,
        "finish": reply.finish,
        "tokens": reply.tokens,
        "reward": None if failed or reply.reward is None else round(reply.reward, 4),
        "repeated_4gram": round(reply.repeated, 4),
        "seed": reply.seed,
        **({"message": reply.message} if failed else {}),
        **({"question_cut": True} if reply.cut else {}),
    }


class PromptSets:
    """The prompt sets of a run, of all owners; safe to use from several threads.

    folder: where they are saved; run: what the app knows of the run and its actors.
    """

    def __init__(self, chat: Chat, folder: Path, run: Mapping[str, Any]) -> None:
        self.chat, self.folder = chat, folder
        self.run = json.loads(json.dumps(run))  # as a set that was saved has it
        self._lock = threading.Lock()
        self._works = OrderedDict[str, SetWork]()  # by owner, the one begun last

    def work_of(self, owner: str) -> SetWork | None:
        """The set that an owner began last, at work or not; None where none was begun since the server started."""
        return self._works.get(owner)

    def begin(self, owner: str, name: str, text: str, settings: ChatSettings) -> PromptSet:
        """A new set of the questions in `text`, which is then answered.

        Raises C2FError for questions or settings that are refused, for a further set while one is at work, and where
        there is no room; OSError where the set cannot be saved.
        """
        questions = questions_in(text)
        for seed in (settings.seed, settings.seed + len(questions) - 1):
            self.chat.check(settings._replace(seed=seed))
        name = " ".join(name.split()) or " ".join(questions[0].split())
        name = name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1].rstrip()}…"
        with self._lock:
            self._check_idle(owner)
            prompt_sets.check_room(self.folder, owner)
            made = prompt_sets.new(owner, name, questions, settings._asdict(), self.run)
            prompt_sets.save(self.folder, made)
            self._start(made)
        return made

    def go_on(self, owner: str, id: str) -> None:
        """Answer the questions of a set that have no answers, or failed ones. Raises as `begin` does."""
        prompt_set = prompt_sets.load(self.folder, owner, id)
        if not prompt_sets.unanswered(prompt_set):
            raise RunError.because("a set with all of its answers", "one that is not finished", "begin another")
        if prompt_set.run != self.run:
            got = "a set that other actors of this run began"
            raise RunError.because(got, "the actors that are served", "ask its questions in a new set")
        try:
            self.chat.check(ChatSettings(**prompt_set.settings))
        except TypeError:
            raise RunError.because("a set with unknown settings", "what lite_c2f saved", "begin another") from None
        with self._lock:
            self._check_idle(owner)
            self._start(prompt_set)

    def stop(self, owner: str) -> None:
        """Stop the set of this owner that is at work, if there is one; what it has stays."""
        if (work := self.work_of(owner)) is not None:
            work.stop(timeout=5.0)

    def delete(self, owner: str, id: str) -> None:
        """Remove a set, stopped before where it is at work. Raises RunError where there is no such set."""
        with self._lock:
            work = self.work_of(owner)
            if work is not None and work.prompt_set.id == id:
                work.stop(timeout=None)  # or its last save would bring it back
                del self._works[owner]
            prompt_sets.delete(self.folder, owner, id)

    def _check_idle(self, owner: str) -> None:
        working = [each for each, work in self._works.items() if work.active]
        if owner in working:
            name = self._works[owner].prompt_set.name
            raise RunError.because(f"your set '{name}' is being answered", "one at a time", "wait for it, or stop it")
        if len(working) >= MAX_WORKING:
            got = f"{len(working)} sets of other visitors are being answered"
            raise RunError.because(got, f"fewer than {MAX_WORKING}", "try again when one has ended")

    def _start(self, prompt_set: PromptSet) -> None:
        work = self._works[prompt_set.owner] = SetWork(self.chat, self.folder, prompt_set)
        self._works.move_to_end(prompt_set.owner)
        for owner in [owner for owner, each in self._works.items() if not each.active and each is not work][
            :-MAX_ENDED
        ]:
            del self._works[owner]
        work.start()
