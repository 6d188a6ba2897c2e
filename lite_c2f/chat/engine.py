"""Chat: the actors of a finished run, and the queue of questions to them.

Base and instruct model are loaded once. One thread generates the answers to all active questions in one batch
(`rows.py`); it starts with the first question and ends with the last. Callers read the replies through `AnswerStream`.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lite_c2f.actors.answers import repeated_ngrams
from lite_c2f.actors.names import FINE
from lite_c2f.actors.reply import Reply
from lite_c2f.backbone.multi_model import MultiModel
from lite_c2f.backbone.padding import padding_id
from lite_c2f.chat.fair_queue import FairQueue
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
from lite_c2f.chat.prompts import EncodedPrompt, History, encode_history, history_of, one_line, settled
from lite_c2f.chat.rows import AnswerRow, AnswerRows
from lite_c2f.chat.stream import AnswerStream, PendingQuestion
from lite_c2f.errors import ConfigError
from lite_c2f.runtime.batch_size import free, is_out_of_memory
from lite_c2f.runtime.lingering_threads import add_lingering
from lite_c2f.sampling.stops import token_bytes

MAX_ROWS = 48  # answers generated at once; a step of 48 rows takes a few times as long as a step of one
SMALL_MODEL_WEIGHTS = 4_000_000  # up to this size a model's matrix products are too small to gain from several threads
RAW_OVERLAP = 8  # tokens of a raw prompt decoded before its answer, whose first space a tokenizer would drop
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
        self.actors = LoadedActors(self.run, merged)
        self.config, self.ratio, self.context = self.actors.config, self.actors.ratio, self.actors.context
        self._lock = threading.Lock()  # of the queue, the active questions and the thread
        self._tokenizer_lock = threading.Lock()  # of `actors.caller_tokenizers`
        self._queue = FairQueue()
        self._active: list[PendingQuestion] = []
        self._thread: threading.Thread | None = None
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
        answering thread whenever there may be a new reply; it must return at once. Residues that panes have beside the
        run's own are loaded here, in the caller's thread. A pane that fails finishes with "error", the others go on.
        The oldest turns are dropped where the conversation is longer than the context.
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
        chosen, residues, failures = self.actors.others.load_for(chosen)
        histories = {pane.key: history_of(turns, pane.key) for pane in chosen}
        question = PendingQuestion(
            chosen, histories, settings, form=form, client=asker, score=score, on_change=on_change
        )
        question.residues, question.not_started = residues, failures
        with self._lock:
            self._queue.put(question, self._active)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lite_c2f-chat", daemon=True)
                add_lingering([self._thread])
                self._thread.start()
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
        """The prompt that an actor reads, as text with its special tokens."""
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

    def listed_others(self) -> list[Listed]:
        """Actors of other moments and runs that can answer now, by the names of their panes."""
        return self.actors.others.listed()

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
        ratio = self.actors.ratio_of(pane, question.settings) if pane.actor == FINE else None
        empty = Reply(pane.key, "", 0, 0.0, None, ratio=ratio, seed=question.settings.seed)
        if pane.key in question.not_started:
            failure, message = question.not_started[pane.key]
            return empty._replace(finish=failure, message=message)
        row = question.rows.get(pane.key)
        if row is None:
            return None
        finish = row.finish  # read first: a finished row no longer changes
        tokens, text_tokens = row.tokens[row.begun :], list(row.text_tokens)  # `tokens`: those drawn now
        form, prompt = question.form, question.prompts[pane.key]
        stops = self.actors.stop_texts(pane.actor, form._replace(stop=() if finish else form.stop))
        before, new = prompt.ids[-RAW_OVERLAP:] if form.raw else text_tokens[: row.begun], text_tokens[row.begun :]
        with self._tokenizer_lock:
            tokenizer = self.actors.caller_tokenizers[pane.actor]
            decoded = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (before, before + new)]
        text = form.begun + decoded[1][len(decoded[0]) :]
        if finish not in ("eos", "stop"):
            text = settled(text, stops)
        seconds = row.last_token_at - row.first_token_at
        return empty._replace(
            text=text if form.raw else text.strip(),
            tokens=question.form.drawn + len(tokens),
            tokens_per_s=(len(tokens) - 1) / seconds if seconds > 0 else 0.0,
            finish=finish,
            message=row.message,
            first_token_s=row.first_token_at - question.submitted_at if tokens else None,
            reward=question.rewards.get(pane.key),
            repeated=repeated_ngrams(text_tokens) if finish else 0.0,
            dropped=prompt.dropped,
            cut=prompt.cut,
        )

    def _run(self) -> None:
        """Body of the answering thread: until no question is left. No other thread touches the models."""
        with contextlib.ExitStack() as thread_setting:
            thread_setting.enter_context(_single_thread_if_small(self.actors.multi_model, self._torch_threads))
            self._answer_all(thread_setting)

    def _answer_all(self, thread_setting: contextlib.ExitStack) -> None:
        rows = self._new_rows()
        while True:
            with self._lock:
                question = self._next_question(rows)
                if question is not None:
                    self._active.append(question)
                elif not self._active:
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
                rows = self._new_rows()
            with self._lock:
                for active in self._active:
                    active.notify()
                self._active = [active for active in self._active if not active.finished]

    def _new_rows(self) -> AnswerRows:
        return AnswerRows(self.actors.multi_model, padding_id(self.actors.tokenizer))

    def _next_question(self, rows: AnswerRows) -> PendingQuestion | None:
        """Take the first question from the queue once all its answers fit in the batch; none overtakes it."""
        first = self._queue.first()
        if first is None:
            return None
        in_use = sum(row.finish is None for row in rows.rows)
        fits = in_use + len(first.panes) <= min(MAX_ROWS, self.actors.max_rows)
        return self._queue.pop() if fits or not in_use else None

    def _start(self, question: PendingQuestion, rows: AnswerRows) -> None:
        out_of_memory = False
        try:
            rows.start(self._rows_of(question))
        except Exception as error:  # no memory for its slots: the active ones go on
            question.end_all("error", one_line(error))
            out_of_memory = is_out_of_memory(error)
        finally:
            question.notify()
        if out_of_memory:  # outside the handler, whose traceback holds the tensors of every frame
            free()

    def _rows_of(self, question: PendingQuestion) -> list[AnswerRow]:
        """The new rows of a question. A pane whose prompt cannot be encoded fails alone."""
        for pane in question.panes:
            if pane.key in question.stop_requests:
                question.not_started.setdefault(pane.key, ("stopped", ""))
            if pane.key in question.not_started:
                continue
            try:
                history = question.histories[pane.key]
                row, question.prompts[pane.key] = self.actors.row(
                    pane, history, question.settings, question.form, question.residues.get(pane.key)
                )
                question.rows[pane.key] = row
            except Exception as error:
                question.not_started[pane.key] = ("error", one_line(error))
        return list(question.rows.values())

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
                    question.rewards = self.actors.rewards(question.histories, answered, question.settings)
            except Exception as error:
                log.warning("answers are not scored: %s", one_line(error))
            question.scoring_done = True


@contextlib.contextmanager
def _single_thread_if_small(multi_model: MultiModel, torch_threads: int) -> Iterator[None]:
    """One PyTorch thread for small models on a CPU: with two, three rows of the toy pair took twice as long.

    torch_threads: their number outside the block.
    """
    weights = sum(weight.numel() for weight in multi_model.models[0].parameters())
    if multi_model.device.type != "cpu" or weights > SMALL_MODEL_WEIGHTS:
        yield
        return
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(torch_threads)
