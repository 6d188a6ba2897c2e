"""Rounds of a conversation: a new one, the last one regenerated, taken back, or at another ratio."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from lite_c2f.chat import ChatSettings
from lite_c2f.data.records import Turn
from lite_c2f.ui.answering import Notice, Served, answers, question_of, refuse_while_answering
from lite_c2f.ui.page_session import PageSession, history
from lite_c2f.ui.saving import new_transcript, save_transcript
from lite_c2f.ui.store.conversations import PREVIOUS_PANE, Reply, Round, Transcript

VIEW = "compare"
SAVE_EVERY = 0.5  # seconds, while answers are written


class ShownRounds(NamedTuple):
    """What a page shows. queued: questions before the last round's, whose panes may be empty; None: none was asked."""

    rounds: tuple[Round, ...]
    queued: int | None = None


def shown(page: PageSession) -> ShownRounds:
    """The conversation as it is."""
    return ShownRounds(page.transcript.rounds if page.transcript else ())


class BegunRound(NamedTuple):
    """A round whose answers are about to be written."""

    transcript: Transcript  # the rounds before it
    saved: Round  # what is saved as this round until there are new answers
    round_: Round
    settings: ChatSettings


def ask(
    served: Served, page: PageSession, text: str, panes: Sequence[str], settings: ChatSettings
) -> Iterator[ShownRounds]:
    """Another round."""

    def begin() -> BegunRound:
        round_ = Round(question_of(text), settings._asdict(), {})
        return BegunRound(page.transcript or new_transcript(served, page), round_, round_, settings)

    return _stream_round(served, page, begin, panes)


def regenerate(
    served: Served, page: PageSession, panes: Sequence[str], settings: ChatSettings
) -> Iterator[ShownRounds]:
    """The last question again, with other settings or random numbers."""

    def begin() -> BegunRound:
        transcript, last = _split_last(page)
        return BegunRound(transcript, last, Round(last.prompt, settings._asdict(), {}), settings)

    return _stream_round(served, page, begin, panes)


def regenerate_panes(
    served: Served, page: PageSession, panes: Sequence[str], ratio: float | None = None
) -> Iterator[ShownRounds]:
    """Some panes of the last round, with the same settings and random numbers; the others keep their answers.

    At another ratio, the Fine Actor's previous answer is shown beside the new one.
    """

    def begin() -> BegunRound:
        transcript, last = _split_last(page)
        settings = ChatSettings(**last.settings)
        if ratio is not None and "fine" in last.replies:
            last = last._replace(replies={**last.replies, PREVIOUS_PANE: last.replies["fine"]})
        return BegunRound(transcript, last, last, settings if ratio is None else settings._replace(ratio=ratio))

    return _stream_round(served, page, begin, panes)


def undo(served: Served, page: PageSession) -> str:
    """Remove the last round, whether it is answered or not; returns its question."""
    with page.lock:
        page.forget(VIEW)
        transcript, last = _split_last(page)
        save_transcript(served, page, transcript)
    return last.prompt


def start_over(page: PageSession) -> None:
    """Begin a new conversation; the previous one stays saved."""
    with page.lock:
        page.forget(VIEW)
        page.transcript = None


def _split_last(page: PageSession) -> tuple[Transcript, Round]:
    """(the conversation before the last round, the last round)."""
    if page.transcript is None or not page.transcript.rounds:
        raise Notice("Ask something first")
    *earlier, last = page.transcript.rounds
    return page.transcript._replace(rounds=tuple(earlier)), last


def _stream_round(
    served: Served, page: PageSession, begin: Callable[[], BegunRound], panes: Sequence[str]
) -> Iterator[ShownRounds]:
    """Write the answers of a round, saving them as they grow: a reload loses neither the question nor their text."""
    with page.lock:
        refuse_while_answering(page, VIEW)
        transcript, saved, round_, settings = begin()
        turns = {pane: [*history(transcript, pane), Turn("human", round_.prompt)] for pane in panes}
        snapshots = answers(served, page, VIEW, turns, panes, settings)
        first = next(snapshots)  # settings are refused here, before anything has changed
        save_transcript(served, page, transcript._replace(rounds=(*transcript.rounds, saved)))
        last_saved, saved_at = page.transcript, time.monotonic()

    def save(quiet: bool) -> None:
        nonlocal last_saved, saved_at
        with page.lock:
            if last_saved is not None and page.transcript is last_saved:  # the round was not undone meanwhile
                rounds = (*transcript.rounds, _with_endings(round_))
                save_transcript(served, page, last_saved._replace(rounds=rounds), quiet=quiet)
                last_saved, saved_at = page.transcript, time.monotonic()

    for snapshot in chain([first], snapshots):
        round_ = round_._replace(replies={**round_.replies, **snapshot.replies})
        yield ShownRounds((*transcript.rounds, round_), snapshot.waiting)
        unscored = snapshot.replies and all(reply.reward is None for reply in snapshot.replies.values())
        if unscored and time.monotonic() - saved_at > SAVE_EVERY:  # scored ones are saved when the stream has ended
            save(quiet=True)
    save(quiet=False)
    # Shown last whatever happened meanwhile: Gradio sends an event's last update once more when it ends.
    yield shown(page)


def _with_endings(round_: Round) -> Round:
    """The round as it is saved: answers without an ending were stopped."""

    def ended(reply: Reply) -> Reply:
        return reply if reply.finish else reply._replace(finish="stopped")

    return round_._replace(replies={pane: ended(reply) for pane, reply in round_.replies.items()})
