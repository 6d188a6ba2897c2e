"""Fair queue of questions: clients take turns, however many questions each has waiting. Not thread-safe.

Start-time fair queueing (Goyal et al., 1996) with equal cost per question. A question's turn is the larger of the
turn of the question started last, and one more than the latest turn among its client's unfinished questions. Lower
turns start first; within a turn, questions start in order of arrival. A new question therefore waits for at most one
question of each other client, besides those already started.
"""

from collections.abc import Sequence

from lite_c2f.chat.stream import PendingQuestion
from lite_c2f.errors import C2FError

MAX_WAITING = 64  # questions in the queue
MAX_PER_CLIENT = 16  # of them, of one client


class FairQueue:
    """Questions that wait to be started."""

    def __init__(self) -> None:
        self._waiting: list[PendingQuestion] = []  # by turn, then by arrival
        self._turn = 0  # of the question started last

    def __len__(self) -> int:
        self._remove_ended()
        return len(self._waiting)

    def put(self, question: PendingQuestion, active: Sequence[PendingQuestion]) -> None:
        """Add a question. active: those started and not finished. Raises C2FError where too many wait already."""
        waiting = len(self)
        own = [other for other in self._waiting if other.client == question.client]
        if waiting >= MAX_WAITING:
            raise C2FError.because(f"{waiting} questions wait already", "fewer", "ask again in a moment")
        if question.client is not None and len(own) >= MAX_PER_CLIENT:
            raise C2FError.because(f"{len(own)} questions of yours wait already", "fewer", "ask again in a moment")
        own += [other for other in active if other.client == question.client]
        question.turn = max([self._turn, *(other.turn + 1 for other in own)])
        index = sum(other.turn <= question.turn for other in self._waiting)
        self._waiting.insert(index, question)

    def waiting(self) -> list[PendingQuestion]:
        """The questions that wait, those that are being prepared included."""
        return list(self._waiting)

    def position(self, question: PendingQuestion) -> int | None:
        """Number of waiting questions before this one; None where it does not wait."""
        self._remove_ended()
        return self._waiting.index(question) if question in self._waiting else None

    def first(self) -> PendingQuestion | None:
        """The next question that is ready, after those that have ended are removed; those being prepared wait."""
        for question in self._waiting:
            if question.cancelled:
                question.end_all("stopped")
        self._remove_ended()
        return next((question for question in self._waiting if question.ready), None)

    def pop(self, question: PendingQuestion | None = None) -> PendingQuestion:
        """Remove and return a question, or the next one that is ready.

        question: as `first` gave it; one before it may have become ready since.
        """
        question = question or next(question for question in self._waiting if question.ready)
        self._waiting.remove(question)
        self._turn = max(self._turn, question.turn)  # one that was not ready at its turn comes later
        return question

    def _remove_ended(self) -> None:
        """A question can be stopped, or fail, before it is ready."""
        self._waiting = [question for question in self._waiting if not question.finished]
