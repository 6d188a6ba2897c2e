"""Questions to the actors that wait or are being answered, shared by the callers and the answering thread."""

import threading

from lite_c2f.chat.fair_queue import FairQueue
from lite_c2f.chat.stream import PendingQuestion


class Questions:
    """The queue and the active questions; safe in several threads. `lock` is of both, and of who answers them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.queue = FairQueue()
        self.active: list[PendingQuestion] = []

    def put(self, question: PendingQuestion) -> None:
        """Add a question. Raises C2FError where too many wait already."""
        with self.lock:
            self.queue.put(question, self.active)

    def before(self, question: PendingQuestion) -> int:
        """Active and waiting questions before one that waits; 0 once it is active."""
        with self.lock:
            position = self.queue.position(question)
            return 0 if position is None else position + len(self.active)

    def end_waiting(self, message: str) -> None:
        """Let all that wait fail."""
        with self.lock:
            for question in self.queue.waiting():
                question.end_all("error", message)

    def count(self) -> tuple[int, int]:
        """(active questions, waiting questions)."""
        with self.lock:
            return len(self.active), len(self.queue)
