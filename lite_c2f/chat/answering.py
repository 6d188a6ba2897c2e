"""The thread that answers: it generates the answers to all active questions in one batch (`rows.py`).

It starts with the first question and ends with the last. No other thread touches the models.
"""

import contextlib
import logging
import threading

import torch

from lite_c2f.backbone.padding import padding_id
from lite_c2f.chat.batches import Batches, single_thread_if_small
from lite_c2f.chat.folder_models import FolderModels
from lite_c2f.chat.history import one_line
from lite_c2f.chat.loaded import LoadedActors
from lite_c2f.chat.questions import Questions
from lite_c2f.chat.remote_servers import RemoteServers
from lite_c2f.chat.replies import other_texts
from lite_c2f.chat.rows import AnswerRow, AnswerRows
from lite_c2f.chat.server_names import SERVER
from lite_c2f.chat.stream import PendingQuestion
from lite_c2f.runtime.batch_size import free, is_out_of_memory
from lite_c2f.runtime.lingering_threads import add_lingering

MAX_ROWS = 48  # answers generated at once; a step of 48 rows takes a few times as long as a step of one
REMOTE_PAUSE = 0.05  # seconds between two looks at the requests to stop, while other servers alone generate
log = logging.getLogger(__name__)


class Answering:
    """The models of a chat, and the thread that answers with them."""

    def __init__(
        self, actors: LoadedActors, folders: FolderModels, servers: RemoteServers, questions: Questions
    ) -> None:
        self.actors, self.folders, self.servers, self._questions = actors, folders, servers, questions
        self._thread: threading.Thread | None = None
        self._news = threading.Event()  # for the thread while it has nothing to generate
        self._torch_threads = torch.get_num_threads()

    def prepare(self, question: PendingQuestion) -> None:
        """Load what a question's panes need beside the run's own actors; those that fail have ended then."""
        served, not_listed = self.servers.find_for(question.panes)
        panes, residues, failures = self.actors.others.load_for(question.panes)
        question.panes, question.residues, question.server_models = panes, residues, served
        not_loaded = self.folders.load_for(question)
        for key, failure in {**failures, **not_listed, **not_loaded}.items():
            question.not_started.setdefault(key, failure)

    def wake(self) -> None:
        """There is a question that may be started."""
        with self._questions.lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lite_c2f-chat", daemon=True)
                add_lingering([self._thread])
                self._thread.start()
        self._news.set()

    def _run(self) -> None:
        """Body of the thread: until no question is left that is ready."""
        with contextlib.ExitStack() as thread_setting:
            other = self.folders.loaded
            models = [self.actors.multi_model, other.multi_model if other else None]
            thread_setting.enter_context(single_thread_if_small(models, self._torch_threads))
            self._answer_all(thread_setting)

    def _answer_all(self, thread_setting: contextlib.ExitStack) -> None:
        rows = self._new_rows()
        while True:
            with self._questions.lock:
                question = self._next_question(rows)
                if question is not None:
                    self._questions.active.append(question)
                elif not self._questions.active:
                    rows.release(idle=False)
                    thread_setting.close()  # before another thread may start
                    self._thread = None
                    return
            try:
                if question is not None:
                    self._start(question, rows)
                self._apply_stops()
                rows.step()
                self._score_finished()
            except Exception as error:  # a bug of ours, or a lost GPU: no caller may wait for ever
                for active in self._questions.active:
                    active.end_all("error", one_line(error))
                rows.release(idle=False)
                rows = self._new_rows()
            with self._questions.lock:
                for active in self._questions.active:
                    active.notify()
                self._questions.active = [active for active in self._questions.active if not active.finished]
            rows.release()
            if self._questions.active and not rows.unfinished:
                self._news.wait(REMOTE_PAUSE)
                self._news.clear()

    def _new_rows(self) -> Batches:
        return Batches(AnswerRows(self.actors.multi_model, padding_id(self.actors.tokenizer)))

    def _next_question(self, rows: Batches) -> PendingQuestion | None:
        """Take the first question from the queue once all its answers fit in the batch; none overtakes it."""
        first = self._questions.queue.first()
        if first is None:
            return None
        in_use = rows.unfinished
        more = sum(pane.actor != SERVER for pane in first.panes)
        fits = in_use + more <= min(MAX_ROWS, self.actors.max_rows)
        return self._questions.queue.pop(first) if fits or not in_use else None

    def _start(self, question: PendingQuestion, rows: Batches) -> None:
        out_of_memory = False
        try:
            own, others = self._rows_of(question, rows)
            rows.start(own, others, next(iter(question.folder_models.values()), None))
        except Exception as error:  # no memory for its slots: the active ones go on
            question.end_all("error", one_line(error))
            out_of_memory = is_out_of_memory(error)
        finally:
            question.notify()
        if out_of_memory:  # outside the handler, whose traceback holds the tensors of every frame
            free()

    def _rows_of(self, question: PendingQuestion, rows: Batches) -> tuple[list[AnswerRow], list[AnswerRow]]:
        """The new rows of a question: of the run's actors, and of a folder's model. Other servers are asked here.

        A pane whose prompt cannot be encoded fails alone.
        """
        own, others = list[AnswerRow](), list[AnswerRow]()
        for pane in question.panes:
            key, history, settings, form = pane.key, question.histories[pane.key], question.settings, question.form
            if key in question.stop_requests:
                question.not_started.setdefault(key, ("stopped", ""))
            if key in question.not_started:
                continue
            try:
                if served := question.server_models.get(key):
                    question.rows[key] = self.servers.ask(served, history, settings, form, self._news.set)
                elif model := question.folder_models.get(key):
                    rows.check_room(model, len(others))
                    row, question.prompts[key] = model.row(history, settings, form)
                    question.rows[key] = row
                    others.append(row)
                else:
                    residue = question.residues.get(key)
                    row, question.prompts[key] = self.actors.row(pane, history, settings, form, residue)
                    question.rows[key] = row
                    own.append(row)
            except Exception as error:
                question.not_started[key] = ("error", one_line(error))
        return own, others

    def _apply_stops(self) -> None:
        """End the rows that callers asked to stop."""
        for question in self._questions.active:
            for key in question.stop_requests & set(question.rows):
                if question.rows[key].finish is None:
                    question.rows[key].end("stopped")
            question.scoring_done = question.scoring_done or question.closed

    def _score_finished(self) -> None:
        """Score the questions whose panes have all finished; without memory for it they have no reward."""
        for question in self._questions.active:
            if question.scoring_done or any(row.finish is None for row in question.rows.values()):
                continue
            answered = {key: row for key, row in question.rows.items() if row.finish in ("eos", "stop", "limit")}
            try:
                if answered:
                    texts = other_texts(question, answered)
                    question.rewards = self.actors.rewards(question.histories, answered, question.settings, texts)
            except Exception as error:
                log.warning("answers are not scored: %s", one_line(error))
            question.scoring_done = True
