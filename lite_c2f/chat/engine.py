"""Chat: the actors of a finished run, and the questions to them. Imports no torch before their models are loaded.

Base and instruct model are loaded once. One thread generates all answers (`answering.py`). Callers read the replies
through `AnswerStream`.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lite_c2f.actors.names import FINE
from lite_c2f.actors.reply import Reply
from lite_c2f.chat.context import likely_context
from lite_c2f.chat.folder_names import FOLDER, checked_folder, folder_model_in
from lite_c2f.chat.history import History, history_of, one_line, with_system
from lite_c2f.chat.panes import (
    PANES,
    AnswerForm,
    ChatSettings,
    Listed,
    Pane,
    check_settings,
    fine_ratio,
    pane_of,
)
from lite_c2f.chat.questions import Questions
from lite_c2f.chat.remote_servers import RemoteServers
from lite_c2f.chat.server_names import SERVER
from lite_c2f.chat.stream import AnswerStream, PendingQuestion
from lite_c2f.errors import ConfigError, ModelError
from lite_c2f.runs.manifest import open_run
from lite_c2f.runs.published import merged_ratio
from lite_c2f.runtime.lingering_threads import add_lingering

if TYPE_CHECKING:
    from lite_c2f.chat.answering import Answering
    from lite_c2f.chat.folder_models import FolderModels
    from lite_c2f.chat.loaded import LoadedActors
    from lite_c2f.chat.prompts import EncodedPrompt


class Chat:
    """The actors of a finished run, ready to answer; several threads may ask at once.

    merged: also load the published model RUN/fine/model; the Fine Actor at the merged ratio is then that one. At any
    other ratio, and without it, it is the instruct model with the residue unmerged: W + ratio * scaling * B @ A.
    also: servers with OpenAI's interface, such as http://127.0.0.1:11434/v1, whose models can answer as panes such as
    `server@127.0.0.1:11434/llama3.2`; the key in LITE_C2F_ALSO_KEY is sent to them. models: a folder whose subfolders
    are models, of any lineage, that can answer as `folder@NAME`; one of them is in memory at a time. wait: False leaves
    it to the caller to `load` the models; questions that are asked before wait for them.
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
        wait: bool = True,
    ) -> None:
        self.run, self.servers, self.models = Path(run_dir), RemoteServers(also), checked_folder(models)
        self.config, pair = open_run(self.run)
        self.ratio, _ = merged_ratio(self.run / "fine" / "merge.json")
        self.context = likely_context(pair)  # until the models are loaded
        self._merged = merged
        self._questions = Questions()
        self._tokenizer_lock = threading.Lock()  # of `actors.caller_tokenizers`
        self._load_lock = threading.Lock()
        self._loaded = Future["Answering"]()
        self._step = ""  # of loading
        if wait:
            self.load()

    def load(self) -> None:
        """Load the models; does nothing where they are loaded. Raises ModelError and RunError as loading does."""
        with self._load_lock:
            if self._loaded.done():
                self._loaded.result()
                return
            try:
                answering = self._load()
            except Exception as error:
                self._loaded.set_exception(error)
                raise
            except BaseException:  # no other thread is to end with an interruption
                got = "the loading of the models was interrupted"
                self._loaded.set_exception(ModelError.because(got, "it to end", "start again"))
                raise
            self.context = answering.actors.context  # before the questions that wait are checked by it
            self._loaded.set_result(answering)

    @property
    def is_loaded(self) -> bool:
        """Whether the models can answer."""
        return self._loaded.done() and self._loaded.exception() is None

    @property
    def loading(self) -> str:
        """What is loaded now, for a visitor who waits; "" once the models are loaded."""
        return "" if self._loaded.done() else f"the models are being loaded{self._step and f': {self._step}'}"

    @property
    def actors(self) -> "LoadedActors":
        """The run's own models, once they are loaded."""
        return self._loaded.result().actors

    @property
    def folders(self) -> "FolderModels":
        """The folder's models, once the run's are loaded."""
        return self._loaded.result().folders

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
        have the whole text and all tokens, but time and speed of the continuation alone. on_change: called by
        another thread whenever there may be a new reply; it must return at once. Residues and models of panes that are
        not the run's own are loaded in a thread, during which other questions are answered. A pane that fails
        finishes with "error", the others go on. The oldest turns are dropped where the conversation is longer than the
        context. Raises ConfigError for settings out of range, C2FError for an empty prompt or a full queue.
        """
        settings = settings or ChatSettings()
        chosen = [pane_of(pane) for pane in panes]
        keys = [pane.key for pane in chosen]
        if not keys or len(set(keys)) < len(keys):
            raise ConfigError.because(f"panes {keys}", "one or more, each once", "correct them")
        for pane in chosen:
            self.check(_settings_of(pane, settings))
        if form.drawn >= settings.max_tokens:
            got = f"max_tokens={settings.max_tokens} for an answer that has {form.drawn} already"
            raise ConfigError.because(got, "more", "raise it")
        self.servers.check_form(chosen, form)
        histories = {pane.key: history_of(turns, pane.key) for pane in chosen}
        question = PendingQuestion(
            chosen, histories, settings, form=form, client=asker, score=score, on_change=on_change
        )
        question.ready = self.is_loaded and not any(pane.source for pane in chosen)
        self._questions.put(question)
        if question.ready:
            self._loaded.result().wake()
        else:
            preparing = threading.Thread(target=self._prepare, args=(question,), name="lite_c2f-load", daemon=True)
            add_lingering([preparing])
            preparing.start()
        return AnswerStream(question, self._reply_of, self._questions.before, pause, self._awaited)

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
    ) -> "EncodedPrompt":
        """The prompt that an actor of runs reads. limit: its most tokens; None: what an answer leaves.

        Raises ConfigError for a pane of another model, and what encoding raises.
        """
        actor = _actor_of_runs(pane)
        limit = self.actors.max_prompt_tokens(settings.max_tokens) if limit is None else limit
        from lite_c2f.chat.prompts import encode_history

        with self._tokenizer_lock:
            tokenizer = self.actors.caller_tokenizers[actor]
            return encode_history(actor, tokenizer, self.config, turns, settings.system, limit, raw=raw)

    def token_texts(self, pane: str | Pane) -> list[bytes]:
        """The bytes of each token of an actor's vocabulary, by id. Raises ConfigError for a pane of another model."""
        from lite_c2f.sampling.stops import token_bytes

        actor = _actor_of_runs(pane)
        with self._tokenizer_lock:
            return token_bytes(self.actors.caller_tokenizers[actor])

    def listed_others(self, *, fresh: bool = True) -> list[Listed]:
        """Actors of other moments and runs, and other models, that can answer now, by their panes' names.

        fresh: servers are asked, for at most a few seconds, and memory is counted; else what servers listed last.
        Before the models are loaded there are those of servers alone.
        """
        own = [*self.actors.others.listed(), *self.folders.listed(fresh=fresh)] if self.is_loaded else []
        return [*own, *self.servers.listed(fresh=fresh)]

    def end_waiting(self, message: str) -> None:
        """Let all questions fail that have not begun: their readers are waited for when a server ends."""
        self._questions.end_waiting(message)

    def busy(self) -> tuple[int, int]:
        """(active questions, waiting questions)."""
        return self._questions.count()

    def _load(self) -> "Answering":
        self._step = "libraries"
        from lite_c2f.chat.answering import Answering
        from lite_c2f.chat.folder_models import FolderModels
        from lite_c2f.chat.loaded import LoadedActors

        def on_step(step: str) -> None:
            self._step = step

        actors = LoadedActors(self.run, self._merged, on_step)
        return Answering(actors, FolderModels(self.models, self.config), self.servers, self._questions)

    def _prepare(self, question: PendingQuestion) -> None:
        """Wait for the models, and load what a question needs beside them; in a thread of its own."""
        try:
            answering = self._loaded.result()
            for pane in question.panes:
                self.check(_settings_of(pane, question.settings))  # by the context, which is known now
            answering.prepare(question)
        except Exception as error:
            question.end_all("error", one_line(error))
        question.make_ready()
        question.notify()  # where every pane has failed, it is not started
        if self.is_loaded:
            self._loaded.result().wake()

    def _awaited(self, question: PendingQuestion) -> str:
        """What a question waits for before it may begin."""
        if question.ready or self.loading:
            return self.loading
        folders = [folder_model_in(pane.source) for pane in question.panes if pane.actor == FOLDER]
        return f"{folders[0]} is being loaded" if folders else "its models are being loaded"

    def _reply_of(self, question: PendingQuestion, pane: Pane) -> Reply | None:
        """A pane's reply as far as it is generated; None before its row exists."""
        ratio = fine_ratio(pane, question.settings, self.ratio) if pane.actor == FINE else None
        empty = Reply(pane.key, "", 0, 0.0, None, ratio=ratio, seed=question.settings.seed)
        if pane.key in question.not_started:
            failure, message = question.not_started[pane.key]
            return empty._replace(finish=failure, message=message)
        if (row := question.rows.get(pane.key)) is None:
            return None
        from lite_c2f.chat.replies import reply_of

        return reply_of(self.actors, self._tokenizer_lock, question, pane, row, empty)


def _actor_of_runs(pane: str | Pane) -> str:
    """The actor of a pane. Raises ConfigError where it is a model that is no actor of a run."""
    key, actor, *_ = pane_of(pane)
    if actor in (SERVER, FOLDER):
        raise ConfigError.because(f"tokens of '{key}'", "an actor of a run, such as coarse", "name one")
    return actor


def _settings_of(pane: Pane, settings: ChatSettings) -> ChatSettings:
    """The settings with a pane's own ratio."""
    return settings if pane.ratio is None else settings._replace(ratio=pane.ratio)
