"""Chat: the actors of a finished run, and the line of questions in front of them.

Base and instruct model are loaded once. All questions under way are written in one batch (`rows.py`) by one thread,
which begins with the first question and ends with the last; whoever asked looks at how far his answers have come.
"""

import contextlib
import itertools
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lite_c2f.actors.answers import repeated_ngrams
from lite_c2f.actors.reply import Reply
from lite_c2f.backbone.multi_model import MultiModel
from lite_c2f.backbone.padding import padding_id
from lite_c2f.chat.fair_queue import FairQueue
from lite_c2f.chat.loaded import LoadedActors
from lite_c2f.chat.panes import ON_BASE, PANES, ChatSettings, Pane, check_settings, pane_of
from lite_c2f.chat.prompts import History, history_of, one_line, read_by, shown
from lite_c2f.chat.rows import AnswerRow, AnswerRows
from lite_c2f.chat.stream import AnswerStream, PendingQuestion
from lite_c2f.errors import ConfigError
from lite_c2f.runtime.batch_size import free, is_out_of_memory

MOST_ROWS = 48  # answers written at once; a step of 48 rows costs a few times that of one
SMALL = 4_000_000  # weights of a model whose products are too small to share between threads
log = logging.getLogger(__name__)


class Chat:
    """The actors of a finished run, ready to answer; several threads may ask at once.

    merged: also load the published model RUN/fine/model; the Fine Actor at the merged ratio is then that one. At any
    other ratio, and without it, it is the instruct model with the residue unmerged: W + ratio * scaling * B @ A.
    Raises RunError for an unfinished run.

    >>> chat = Chat("runs/toy")
    >>> chat.answer("Tom has 3 apples, finds 4, loses 2. How many now?")["fine"].text
    """

    def __init__(self, run_dir: str | Path, *, merged: bool = False) -> None:
        self.run = Path(run_dir)
        self.cast = LoadedActors(self.run, merged)
        self.config, self.ratio, self.context = self.cast.config, self.cast.ratio, self.cast.context
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._line = FairQueue()
        self._under_way: list[PendingQuestion] = []
        self._thread: threading.Thread | None = None
        self._numbers = itertools.count()
        self._threads = torch.get_num_threads()

    def stream(
        self,
        turns: str | History | Mapping[str, History],
        panes: Sequence[str | Pane] = PANES,
        settings: ChatSettings | None = None,
        *,
        score: bool = False,
        pause: float = 0.0,
        asker: str | None = None,
    ) -> AnswerStream:
        """Answer in all panes at once: an iterator of events.

        turns: a question, a conversation, or one conversation a pane (by its key). score: the reward model reads each
        answer that ended by itself or at the limit, when all have; a pane's last event then has its reward. pause:
        seconds between two looks, for a reader that is slower than the models. asker: who asks; askers take turns,
        however many questions one of them has in line. A pane that fails ends with finish "error" and the others go on.
        The oldest turns are dropped where the context ends.
        Raises ConfigError for settings out of range, C2FError for an empty prompt or when too many wait already.
        """
        settings = settings or ChatSettings()
        chosen = [pane_of(pane) for pane in panes]
        keys = [pane.key for pane in chosen]
        if not keys or len(set(keys)) < len(keys):
            raise ConfigError.because(f"panes {keys}", "one or more, each once", "correct them")
        for pane in chosen:
            self.check(settings if pane.ratio is None else settings._replace(ratio=pane.ratio))
        histories = {pane.key: history_of(turns, pane.key) for pane in chosen}
        question = PendingQuestion(next(self._numbers), chosen, histories, settings, asker)
        question.scored = not score
        with self._lock:
            self._line.put(question, self._under_way)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="lite_c2f-chat", daemon=True)
                self._thread.start()
        return AnswerStream(question, self._event_of, self._place_of, pause)

    def answer(
        self,
        prompt: str | History,
        panes: Sequence[str | Pane] | None = None,
        *,
        score: bool = False,
        **settings: Any,
    ) -> dict[str, Reply]:
        """The finished answers, by pane. settings: those of `ChatSettings`. Raises as `stream` does."""
        events = self.stream(prompt, PANES if panes is None else panes, ChatSettings(**settings), score=score)
        return {event.pane: event for event in events if event.finish}

    def check(self, settings: ChatSettings) -> None:
        """Raise ConfigError naming the first setting that is out of range."""
        check_settings(settings, self.context)

    def rendered(self, turns: History, pane: str | Pane, settings: ChatSettings) -> str:
        """The very text an actor reads, special tokens and all."""
        actor = pane_of(pane).actor
        tokenizer, room = self.cast.readers[actor], self.cast.prompt_room(settings.max_tokens)
        with self._reading:
            read = read_by(actor, tokenizer, self.config, turns, settings.system, room)
            return str(tokenizer.decode(read.ids))

    def busy(self) -> tuple[int, int]:
        """(questions under way, questions that wait)."""
        with self._lock:
            return len(self._under_way), len(self._line)

    def _place_of(self, question: PendingQuestion) -> int:
        """How many questions are before this one in the line and under way, while it waits; else 0."""
        with self._lock:
            place = self._line.place_of(question)
            return 0 if place is None else place + len(self._under_way)

    def _event_of(self, question: PendingQuestion, pane: Pane) -> Reply | None:
        """Where a pane stands; None before it has begun."""
        ratio = self.cast.ratio_of(pane, question.settings) if pane.actor == "fine" else None
        nothing = Reply(pane.key, "", 0, 0.0, None, ratio=ratio, seed=question.settings.seed)
        if pane.key in question.unbegun:
            finish, message = question.unbegun[pane.key]
            return nothing._replace(finish=finish, message=message)
        row = question.rows.get(pane.key)
        if row is None:
            return None
        how = row.finish  # before the rest: that is in place when this is
        tokens, text_tokens = list(row.tokens), list(row.text_tokens)
        stops = self.config.model.stop if pane.actor in ON_BASE else ()
        with self._reading:
            text: Any = self.cast.readers[pane.actor].decode(text_tokens, skip_special_tokens=True)
        speaking = row.last - row.first
        return nothing._replace(
            text=text.strip() if how in ("eos", "stop") else shown(text, stops),
            tokens=len(tokens),
            tokens_per_s=(len(tokens) - 1) / speaking if speaking > 0 else 0.0,
            finish=how,
            message=row.message,
            first_token_s=row.first - question.asked if tokens else None,
            reward=question.rewards.get(pane.key),
            repeated=repeated_ngrams(text_tokens) if how else 0.0,
            dropped=question.read[pane.key].dropped,
            cut=question.read[pane.key].cut,
        )

    def _work(self) -> None:
        """Answer until nobody waits. The one thread that touches the models."""
        with contextlib.ExitStack() as borrowed:
            borrowed.enter_context(_threads_for(self.cast.together, self._threads))
            self._answer_all(borrowed)

    def _answer_all(self, borrowed: contextlib.ExitStack) -> None:
        rows = AnswerRows(self.cast.together, padding_id(self.cast.tokenizer))
        while True:
            with self._lock:
                question = self._next(rows)
                if question is not None:
                    self._under_way.append(question)
                elif not self._under_way:
                    borrowed.close()  # before another thread may begin
                    self._thread = None
                    return
            try:
                if question is not None:
                    self._start(question, rows)
                self._stop_who_shall()
                rows.step()
                self._score_who_ended()
            except Exception as error:  # a bug of ours, or a card that is gone: nobody may wait for ever
                for each in self._under_way:
                    each.give_up("error", one_line(error))
                rows = AnswerRows(self.cast.together, padding_id(self.cast.tokenizer))
            with self._lock:
                for each in self._under_way:
                    each.changed.set()
                self._under_way = [each for each in self._under_way if not each.ended]

    def _next(self, rows: AnswerRows) -> PendingQuestion | None:
        """The first in line, once there is room for all its answers; nobody overtakes it."""
        first = self._line.first()
        if first is None:
            return None
        going = sum(row.finish is None for row in rows.rows)
        room = min(MOST_ROWS, self.cast.room)
        return self._line.begin() if not going or going + len(first.panes) <= room else None

    def _start(self, question: PendingQuestion, rows: AnswerRows) -> None:
        full = False
        try:
            rows.start(self._begin(question))
        except Exception as error:  # no memory for its slots: those under way go on
            question.give_up("error", one_line(error))
            full = is_out_of_memory(error)
        finally:
            question.changed.set()
        if full:  # outside the handler, whose traceback holds the tensors of every frame
            free()

    def _begin(self, question: PendingQuestion) -> list[AnswerRow]:
        """The rows of a question. A pane whose prompt cannot be read fails alone."""
        begun = []
        for pane in question.panes:
            if pane.key in question.stopped:
                question.unbegun[pane.key] = ("stopped", "")
                continue
            try:
                history = question.histories[pane.key]
                row, question.read[pane.key] = self.cast.row(pane, history, question.settings)
            except Exception as error:
                question.unbegun[pane.key] = ("error", one_line(error))
                continue
            question.rows[pane.key] = row
            begun.append(row)
        return begun

    def _stop_who_shall(self) -> None:
        for question in self._under_way:
            for key in question.stopped & set(question.rows):
                if question.rows[key].finish is None:
                    question.rows[key].end("stopped")
            question.scored = question.scored or question.abandoned

    def _score_who_ended(self) -> None:
        """The reward model reads the answers of questions whose panes have all ended; its errors are not told."""
        for question in self._under_way:
            if question.scored or any(row.finish is None for row in question.rows.values()):
                continue
            answered = {key: row for key, row in question.rows.items() if row.finish in ("eos", "stop", "limit")}
            try:
                if answered:
                    question.rewards = self.cast.rewards(question.histories, answered, question.settings)
            except Exception as error:  # no memory for it, say: the answers are there all the same
                log.warning("answers are not scored: %s", one_line(error))
            question.scored = True


@contextlib.contextmanager
def _threads_for(together: MultiModel, before: int) -> Iterator[None]:
    """One thread for small models on a CPU: on the toy pair two of them took twice as long for three rows as one.

    before: threads to go back to.
    """
    if together.device.type != "cpu" or sum(weight.numel() for weight in together.models[0].parameters()) > SMALL:
        yield
        return
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
