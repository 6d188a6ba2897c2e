"""The line of questions: askers take turns, however many questions each of them has in it. Of one thread at a time.

Start-time fair queueing (Goyal et al., 1996), every question counted alike: a question's turn is that of the one begun
last, or one after its asker's latest that is not answered yet; lower turns are begun first, and within a turn who came
first. So nobody waits for more than one question of each of the others that was not begun before he asked.
"""

from collections.abc import Sequence

from lite_c2f.chat.stream import PendingQuestion
from lite_c2f.errors import C2FError

MOST_WAITING = 64  # questions in line
MOST_OF_ONE = 16  # of them, of one asker


class FairQueue:
    """Questions that wait to be begun."""

    def __init__(self) -> None:
        self._waiting: list[PendingQuestion] = []  # by turn, then by who came first
        self._turn = 0  # of the question begun last

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, question: PendingQuestion, under_way: Sequence[PendingQuestion]) -> None:
        """Let a question wait. under_way: those begun and not answered. Raises C2FError where too many wait already."""
        own = [each for each in self._waiting if each.asker == question.asker]
        if len(self) >= MOST_WAITING:
            raise C2FError.because(f"{len(self)} questions wait already", "fewer", "ask again in a moment")
        if question.asker is not None and len(own) >= MOST_OF_ONE:
            raise C2FError.because(f"{len(own)} questions of yours wait already", "fewer", "ask again in a moment")
        own += [each for each in under_way if each.asker == question.asker]
        question.turn = max([self._turn, *(each.turn + 1 for each in own)])
        place = sum(each.turn <= question.turn for each in self._waiting)
        self._waiting.insert(place, question)

    def place_of(self, question: PendingQuestion) -> int | None:
        """How many are before it; None where it does not wait."""
        return self._waiting.index(question) if question in self._waiting else None

    def first(self) -> PendingQuestion | None:
        """Who is next; those that nobody waits for any more have left the line."""
        for question in self._waiting:
            if question.unwanted:
                question.give_up("stopped")
        self._waiting = [question for question in self._waiting if not question.unwanted]
        return self._waiting[0] if self._waiting else None

    def begin(self) -> PendingQuestion:
        """Take out who is next."""
        question = self._waiting.pop(0)
        self._turn = question.turn
        return question
