"""Stream of the answers to one question, between the caller and the answering thread."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lite_c2f.actors.reply import Reply
from lite_c2f.chat.history import History
from lite_c2f.chat.panes import AnswerForm, ChatSettings, Pane, TokenLogprobs
from lite_c2f.chat.server_names import ServerModel

if TYPE_CHECKING:  # the page shows streams before torch is loaded
    from lite_c2f.backbone.multi_model import Residues
    from lite_c2f.chat.folder_model import FolderModel
    from lite_c2f.chat.prompts import EncodedPrompt
    from lite_c2f.chat.remote_row import RemoteRow
    from lite_c2f.chat.rows import AnswerRow


class PendingQuestion:
    """A question and the state of its answers; shared by the caller and the answering thread."""

    def __init__(
        self,
        panes: Sequence[Pane],
        histories: Mapping[str, History],
        settings: ChatSettings,
        *,
        form: AnswerForm = AnswerForm(),
        client: str | None = None,
        score: bool = False,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.panes, self.histories, self.settings = panes, histories, settings
        self.form, self.client, self._on_change = form, client, on_change
        self.turn = 0  # in `FairQueue`: lower turns are answered first
        self.submitted_at = time.perf_counter()
        self.scoring_done = not score
        self.residues: dict[str, Residues | None] = {}  # of panes with a source, loaded; None: the run's own
        self.folder_models: dict[str, FolderModel] = {}  # of panes whose answers a folder's model generates
        self.server_models: dict[str, ServerModel] = {}  # of panes whose answers other servers generate
        self.rows: dict[str, AnswerRow | RemoteRow] = {}  # by pane, once they are started
        self.prompts: dict[str, EncodedPrompt] = {}  # likewise
        self.not_started: dict[str, tuple[str, str]] = {}  # by pane without a row: finish and message
        self.rewards: dict[str, float] = {}
        self.stop_requests: set[str] = set()  # panes that the caller stopped
        self.closed = False  # the caller reads no more replies
        self.changed = threading.Event()
        self.ready = True  # False while models that it needs are being loaded; it is not started before
        self._lock = threading.RLock()  # of `ready` and of what is stopped before; re-entered by garbage collection

    def notify(self) -> None:
        """Tell the reader that there may be something new; called by any thread."""
        self.changed.set()
        if self._on_change is not None:
            self._on_change()

    @property
    def finished(self) -> bool:
        """Whether every pane has its last reply, with its reward."""
        return self.scoring_done and all(self.has_ended(pane.key) for pane in self.panes)

    def has_ended(self, pane: str) -> bool:
        """Whether a pane's answer has ended, scored or not."""
        row = self.rows.get(pane)
        return pane in self.not_started if row is None else row.finish is not None

    @property
    def cancelled(self) -> bool:
        """Whether the caller stopped every pane."""
        return self.stop_requests >= {pane.key for pane in self.panes}

    def stop(self, panes: set[str]) -> None:
        """Ask to end some panes; at once where no answer can have begun, later by the answering thread."""
        with self._lock:
            self.stop_requests |= panes
            if self.ready:
                return
            for key in panes:
                self.not_started.setdefault(key, ("stopped", ""))
            self.scoring_done = self.scoring_done or self.cancelled
        self.notify()

    def make_ready(self) -> None:
        """What it needs is loaded, or has failed: from now on the answering thread ends its panes."""
        with self._lock:
            self.ready, self.submitted_at = True, time.perf_counter()  # of its time loading is no part

    def end_all(self, finish: str, message: str = "") -> None:
        """End every pane that has not ended."""
        for pane in self.panes:
            row = self.rows.get(pane.key)
            if row is None:
                self.not_started.setdefault(pane.key, (finish, message))
            elif row.finish is None:
                row.end(finish, message)
        self.scoring_done = True
        self.notify()


class AnswerStream:
    """Iterator of replies to a question as they grow; a pane's last reply has its finish.

    Between two replies of a pane several tokens may have been added. Deleting or closing the stream ends the answers.
    """

    # A generator's frame would hold this object until the next garbage collection; an iterator's methods do not.

    def __init__(
        self,
        question: PendingQuestion,
        reply_of: Callable[[PendingQuestion, Pane], Reply | None],
        questions_before: Callable[[PendingQuestion], int],
        pause: float,
        awaited: Callable[[PendingQuestion], str] = lambda _: "",
    ) -> None:
        self._question, self._reply_of, self._questions_before = question, reply_of, questions_before
        self._pause, self._awaited = pause, awaited
        self._sent: dict[str, tuple[Any, ...]] = {}  # by pane: what its latest reply was known by
        self._queue: deque[Reply] = deque()
        self._started = self._over = False

    def __iter__(self) -> Iterator[Reply]:
        return self

    def __next__(self) -> Reply:
        while not self._queue:
            if self._over:
                raise StopIteration
            self._queue.extend(self._wait(None))
        return self._queue.popleft()

    def batches(self, timeout: float | None = None) -> Iterator[list[Reply]]:
        """New replies of all panes together; an empty list after `timeout` seconds without any."""
        while not self._over:
            replies = self._wait(timeout)
            if replies or not self._over:
                yield replies

    def _wait(self, timeout: float | None) -> list[Reply]:
        """New replies, once there are any; none after `timeout` seconds, or where all have been sent."""
        question = self._question
        while True:
            if self._started:
                if not question.changed.wait(timeout):
                    return []
                question.changed.clear()
                if self._pause and not question.finished:
                    time.sleep(self._pause)
            self._started = True
            self._over = question.finished  # read before the replies: they are then the last ones
            replies = self._new_replies()
            if replies or self._over:
                return replies

    def logprobs(self, pane: str) -> list[TokenLogprobs]:
        """Log-probabilities of a pane's tokens so far, without the end token; [] where the form asks for none."""
        row = self._question.rows.get(pane)
        entries = [] if row is None else list(row.logprobs[: len(row.tokens)])
        return entries[:-1] if entries and row is not None and entries[-1].token in row.eos_ids else entries

    def poll(self) -> list[Reply]:
        """The replies that are new, without waiting for any."""
        return [] if self._over else self._wait(0)

    @property
    def exhausted(self) -> bool:
        """Whether every pane's last reply has been read."""
        return self._over

    @property
    def finished(self) -> bool:
        """Whether every pane has its last reply, read or not."""
        return self._question.finished

    @property
    def unfinished(self) -> set[str]:
        """Panes whose answers have not ended, those that are not started included."""
        return {pane.key for pane in self._question.panes if not self._question.has_ended(pane.key)}

    @property
    def waiting(self) -> int:
        """Active and waiting questions before this one; 0 once it is active."""
        return self._questions_before(self._question)

    @property
    def awaited(self) -> str:
        """What is loaded before the answers can begin, such as "Qwen2 is being loaded"; "" where nothing is."""
        return self._awaited(self._question)

    def stop(self, pane: str | None = None) -> None:
        """End one pane's answer, or all of them; the text so far stays."""
        keys = {each.key for each in self._question.panes}
        self._question.stop(keys if pane is None else keys & {pane})

    def close(self) -> None:
        """Stop all panes and read no more replies; waits for nothing, so that a server's event loop may call it."""
        self._question.closed = True
        self.stop()

    def __del__(self) -> None:
        # `close` tells a reader, and this may be a garbage collection in the midst of being told: flags do.
        self._question.closed = True
        self._question.stop_requests |= {pane.key for pane in self._question.panes}

    def _new_replies(self) -> list[Reply]:
        replies = []
        for pane in self._question.panes:
            reply = self._reply_of(self._question, pane)
            if reply is None:
                continue
            version = (reply.tokens, reply.finish, reply.reward)
            if self._sent.get(pane.key) != version:
                self._sent[pane.key] = version
                replies.append(reply)
        return replies
