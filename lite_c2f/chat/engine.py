"""Chat: the actors of a finished run, and the queue of questions to them.

Base and instruct model are loaded once. One thread generates the answers to all active questions in one batch
(`rows.py`); it starts with the first question and ends with the last. Callers read the replies through `AnswerStream`.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lite_c2f.actors.reply import Reply
from lite_c2f.backbone.padding import padding_id
from lite_c2f.chat.batches import Batches, single_thread_if_small
from lite_c2f.chat.fair_queue import FairQueue
from lite_c2f.chat.folder_models import FolderModels, checked_folder
from lite_c2f.chat.folder_names import FOLDER
from lite_c2f.chat.loaded import LoadedActors
from lite_c2f.chat.other_residues import Listed
from lite_c2f.chat.panes import (
    PANES,
    AnswerForm,
    ChatSettings,
    Pane,
    check_settings,
    pane_of,
)
from lite_c2f.chat.prompts import EncodedPrompt, History, encode_history, history_of, one_line, with_system
from lite_c2f.chat.remote_servers import RemoteServers
from lite_c2f.chat.replies import other_texts, reply_of
from lite_c2f.chat.rows import AnswerRow, AnswerRows
from lite_c2f.chat.server_names import SERVER
from lite_c2f.chat.stream import AnswerStream, PendingQuestion
from lite_c2f.errors import ConfigError
from lite_c2f.runtime.batch_size import free, is_out_of_memory
from lite_c2f.runtime.lingering_threads import add_lingering
from lite_c2f.sampling.stops import token_bytes

MAX_ROWS = 48  # answers generated at once; a step of 48 rows takes a few times as long as a step of one
REMOTE_PAUSE = 0.05  # seconds between two looks at the requests to stop, while other servers alone generate
log = logging.getLogger(__name__)


class Chat:
    """The actors of a finished run, ready to answer; several threads may ask at once.

    merged: also load the published model RUN/fine/model; the Fine Actor at the merged ratio is then that one. At any
    other ratio, and without it, it is the instruct model with the residue unmerged: W + ratio * scaling * B @ A.
    also: servers with OpenAI's interface, such as http://127.0.0.1:11434/v1, whose models can answer as panes such as
    `server@127.0.0.1:11434/llama3.2`; the key in LITE_C2F_ALSO_KEY is sent to them. models: a folder whose subfolders
    are models, of any lineage, that can answer as `folder@NAME`; one of them is in memory at a time.
    Raises RunError for an unfinished run, ConfigError for an invalid address or folder.

    >>> chat = Chat("runs/toy")
    >>> chat.answer("Tom has 3 apples, finds 4, loses 2. How many now?")["fine"].text
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        merged: bool = False,
        also: Sequence[str] = (),
        models: str | Path | None = None,
    ) -> None:
        self.run, self.servers = Path(run_dir), RemoteServers(also)
        checked_folder(models)  # before anything is loaded
        self.actors = LoadedActors(self.run, merged)
        self.config, self.ratio, self.context = self.actors.config, self.actors.ratio, self.actors.context
        self.folders = FolderModels(models, self.config)
        self._lock = threading.Lock()  # of the queue, the active questions and the thread
        self._tokenizer_lock = threading.Lock()  # of `actors.caller_tokenizers`
        self._queue = FairQueue()
        self._active: list[PendingQuestion] = []
        self._thread: threading.Thread | None = None
        self._news = threading.Event()  # for the thread while it has nothing to generate
        self._torch_threads = torch.get_num_threads()

    def stream(
        self,
        turns: str | History | Mapping[str, History],
        panes: Sequence[str | Pane] = PANES,
        settings: ChatSettings | None = None,
        *,
        score: bool = False,
        pause: float = 0.0,
        asker: str | None = None,
        form: AnswerForm = AnswerForm(),
        on_change: Callable[[], None] | None = None,
    ) -> AnswerStream:
        """Answer in all panes at once: an iterator of replies, several for each pane as its text grows.

        turns: a question, a conversation, or one conversation per pane (by its key). score: once all panes have
        finished, the reward model scores the answers that ended by themselves or at the limit; a pane's last reply then
        has its reward. pause: seconds between two batches of replies, for a reader that is slower than the models.
        asker: any name of the client, such as a browser session; clients take turns, however many questions each has in
        the queue. form: stop texts, a raw prompt, log-probabilities, an answer that is continued; of that one replies
        have the whole text and all tokens, but time and speed of the continuation alone. on_change: called by the
        answering thread whenever there may be a new reply; it must return at once. Residues and models of panes that
        are not the run's own are loaded here, in the caller's thread. A pane that fails finishes with "error", the
        others go on. The oldest turns are dropped where the conversation is longer than the context.
        Raises ConfigError for settings out of range, C2FError for an empty prompt or a full queue.
        """
        settings = settings or ChatSettings()
        chosen = [pane_of(pane) for pane in panes]
        keys = [pane.key for pane in chosen]
        if not keys or len(set(keys)) < len(keys):
            raise ConfigError.because(f"panes {keys}", "one or more, each once", "correct them")
        for pane in chosen:
            self.check(settings if pane.ratio is None else settings._replace(ratio=pane.ratio))
        if form.drawn >= settings.max_tokens:
            got = f"max_tokens={settings.max_tokens} for an answer that has {form.drawn} already"
            raise ConfigError.because(got, "more", "raise it")
        served, not_listed = self.servers.find_for(chosen, form)
        chosen, residues, failures = self.actors.others.load_for(chosen)
        folder_models, not_loaded = self.folders.load_for(chosen)
        histories = {pane.key: history_of(turns, pane.key) for pane in chosen}
        question = PendingQuestion(
            chosen, histories, settings, form=form, client=asker, score=score, on_change=on_change
        )
        question.residues, question.server_models, question.folder_models = residues, served, folder_models
        question.not_started = {**failures, **not_listed, **not_loaded}
        self.folders.register(question)
        with self._lock:
            self._queue.put(question, self._active)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lite_c2f-chat", daemon=True)
                add_lingering([self._thread])
                self._thread.start()
        self._news.set()
        return AnswerStream(question, self._reply_of, self._questions_before, pause)

    def answer(
        self,
        prompt: str | History,
        panes: Sequence[str | Pane] | None = None,
        *,
        score: bool = False,
        **settings: Any,
    ) -> dict[str, Reply]:
        """The finished answers, by pane. settings: those of `ChatSettings`. Raises as `stream` does."""
        replies = self.stream(prompt, PANES if panes is None else panes, ChatSettings(**settings), score=score)
        return {reply.pane: reply for reply in replies if reply.finish}

    def check(self, settings: ChatSettings) -> None:
        """Raise ConfigError naming the first setting that is out of range."""
        check_settings(settings, self.context)

    def rendered(self, turns: History, pane: str | Pane, settings: ChatSettings) -> str:
        """The prompt that an actor reads, as text with its special tokens; of another server's the conversation."""
        name, loaded = pane_of(pane).source, self.folders.loaded
        if pane_of(pane).actor == FOLDER and loaded is not None and loaded.name == name:
            with self._tokenizer_lock:
                ids = loaded.encoded(loaded.caller_tokenizer, turns, settings).ids
                return str(loaded.caller_tokenizer.decode(ids))
        if pane_of(pane).actor in (SERVER, FOLDER):  # in a template that is not known here, or not yet
            return "\n\n".join(f"{turn.role}: {turn.text}" for turn in with_system(turns, settings.system))
        prompt = self.encoded(turns, pane, settings)
        with self._tokenizer_lock:
            return str(self.actors.caller_tokenizers[pane_of(pane).actor].decode(prompt.ids))

    def encoded(
        self, turns: History, pane: str | Pane, settings: ChatSettings, *, raw: bool = False, limit: int | None = None
    ) -> EncodedPrompt:
        """The prompt that an actor reads. limit: its most tokens; None: what an answer leaves. Raises as encoding."""
        actor = pane_of(pane).actor
        limit = self.actors.max_prompt_tokens(settings.max_tokens) if limit is None else limit
        with self._tokenizer_lock:
            tokenizer = self.actors.caller_tokenizers[actor]
            return encode_history(actor, tokenizer, self.config, turns, settings.system, limit, raw=raw)

    def token_texts(self, pane: str | Pane) -> list[bytes]:
        """The bytes of each token of an actor's vocabulary, by id."""
        with self._tokenizer_lock:
            return token_bytes(self.actors.caller_tokenizers[pane_of(pane).actor])

    def listed_others(self, *, fresh: bool = True) -> list[Listed]:
        """Actors of other moments and runs, and other models, that can answer now, by their panes' names.

        fresh: servers are asked, for at most a few seconds, and memory is counted; else what servers listed last.
        """
        return [*self.actors.others.listed(), *self.folders.listed(fresh=fresh), *self.servers.listed(fresh=fresh)]

    def busy(self) -> tuple[int, int]:
        """(active questions, waiting questions)."""
        with self._lock:
            return len(self._active), len(self._queue)

    def _questions_before(self, question: PendingQuestion) -> int:
        """Active and waiting questions before one that waits; 0 once it is active."""
        with self._lock:
            position = self._queue.position(question)
            return 0 if position is None else position + len(self._active)

    def _reply_of(self, question: PendingQuestion, pane: Pane) -> Reply | None:
        """A pane's reply as far as it is generated; None before its row exists."""
        return reply_of(self.actors, self._tokenizer_lock, question, pane)

    def _run(self) -> None:
        """Body of the answering thread: until no question is left. No other thread touches the models."""
        with contextlib.ExitStack() as thread_setting:
            other = self.folders.loaded
            models = [self.actors.multi_model, other.multi_model if other else None]
            thread_setting.enter_context(single_thread_if_small(models, self._torch_threads))
            self._answer_all(thread_setting)

    def _answer_all(self, thread_setting: contextlib.ExitStack) -> None:
        rows = self._new_rows()
        while True:
            with self._lock:
                question = self._next_question(rows)
                if question is not None:
                    self._active.append(question)
                elif not self._active:
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
                for active in self._active:
                    active.end_all("error", one_line(error))
                rows.release(idle=False)
                rows = self._new_rows()
            with self._lock:
                for active in self._active:
                    active.notify()
                self._active = [active for active in self._active if not active.finished]
            rows.release()
            if self._active and not rows.unfinished:
                self._news.wait(REMOTE_PAUSE)
                self._news.clear()

    def _new_rows(self) -> Batches:
        return Batches(AnswerRows(self.actors.multi_model, padding_id(self.actors.tokenizer)))

    def _next_question(self, rows: Batches) -> PendingQuestion | None:
        """Take the first question from the queue once all its answers fit in the batch; none overtakes it."""
        first = self._queue.first()
        if first is None:
            return None
        in_use = rows.unfinished
        more = sum(pane.actor != SERVER for pane in first.panes)
        fits = in_use + more <= min(MAX_ROWS, self.actors.max_rows)
        return self._queue.pop() if fits or not in_use else None

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
        for question in self._active:
            for key in question.stop_requests & set(question.rows):
                if question.rows[key].finish is None:
                    question.rows[key].end("stopped")
            question.scoring_done = question.scoring_done or question.closed

    def _score_finished(self) -> None:
        """Score the questions whose panes have all finished; without memory for it they have no reward."""
        for question in self._active:
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
