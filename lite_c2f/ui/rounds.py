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
REMOVED = "removed rounds"  # key of a page's view state
MOST_REMOVED = 100
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
) -> Iterator[ShownRounds | None]:
    """Another round."""

    def begin() -> BegunRound:
        round_ = Round(question_of(text), settings._asdict(), {})
        transcript = page.transcript or new_transcript(served, page)
        if was_edited(page):  # the conversation goes on as another session: the one before the edit stays saved
            transcript = new_transcript(served, page)._replace(rounds=transcript.rounds)
        return BegunRound(transcript, round_, round_, settings)

    return _stream_round(served, page, begin, panes, again=False)


def regenerate(
    served: Served, page: PageSession, panes: Sequence[str], settings: ChatSettings
) -> Iterator[ShownRounds | None]:
    """The last question again, with other settings or random numbers."""

    def begin() -> BegunRound:
        _take_back_edit(page)
        transcript, last = _split_last(page)
        return BegunRound(transcript, last, Round(last.prompt, settings._asdict(), {}), settings)

    return _stream_round(served, page, begin, panes)


def regenerate_panes(
    served: Served, page: PageSession, panes: Sequence[str], ratio: float | None = None
) -> Iterator[ShownRounds | None]:
    """Some panes of the last round, with the same settings and random numbers; the others keep their answers.

    At another ratio, the Fine Actor's previous answer is shown beside the new one.
    """

    def begin() -> BegunRound:
        _take_back_edit(page)
        transcript, last = _split_last(page)
        settings = ChatSettings(**last.settings)
        if ratio is not None and "fine" in last.replies:
            last = last._replace(replies={**last.replies, PREVIOUS_PANE: last.replies["fine"]})
        return BegunRound(transcript, last, last, settings if ratio is None else settings._replace(ratio=ratio))

    return _stream_round(served, page, begin, panes)


def remove_last(served: Served, page: PageSession) -> None:
    """Remove the last round, whether it is answered or not; `redo` brings it back, and what `edit` took off before."""
    with page.lock:
        page.forget(VIEW)
        transcript, _ = _split_last(page)
        left, all_ = len(transcript.rounds), page.transcript.rounds if page.transcript else ()
        if was_edited(page):
            all_ = page.saved_rounds
        removed = _removed(page)
        removed += [(all_[:place], all_[place]) for place in range(len(all_) - 1, left - 1, -1)]
        del removed[:-MOST_REMOVED]
        save_transcript(served, page, transcript)


def redo(served: Served, page: PageSession) -> None:
    """Bring back what `edit` took off, or else the round that `remove_last` removed last."""
    with page.lock:
        if not can_redo(page):
            raise Notice("There is nothing to bring back")
        if not _take_back_edit(page):
            before, round_ = _removed(page).pop()
            transcript = page.transcript or new_transcript(served, page)
            save_transcript(served, page, transcript._replace(rounds=(*before, round_)))


def can_redo(page: PageSession) -> bool:
    """Is there a round to bring back? None where another question was asked since: it stands in that place."""
    if VIEW in page.streams:
        return False
    removed, shown = _removed(page), page.transcript.rounds if page.transcript else ()
    return was_edited(page) or bool(removed and removed[-1][0] == shown)


def _removed(page: PageSession) -> list[tuple[tuple[Round, ...], Round]]:
    """Rounds that were removed, each with those before it, the newest last. A reloaded tab still has them."""
    removed: list[tuple[tuple[Round, ...], Round]] = page.view_state.setdefault(REMOVED, [])
    return removed


def edit(page: PageSession) -> str:
    """Take the last round off the page; returns its question. What is saved stays until another question is asked."""
    with page.lock:
        page.forget(VIEW)
        page.transcript, last = _split_last(page)
    return last.prompt


def was_edited(page: PageSession) -> bool:
    """Does the page show fewer rounds than are saved, since `edit`?"""
    shown, saved = page.transcript.rounds if page.transcript else (), page.saved_rounds
    return page.transcript is not None and len(shown) < len(saved) and saved[: len(shown)] == shown


def _take_back_edit(page: PageSession) -> bool:
    """Show all rounds that are saved again, where the page shows fewer."""
    edited = was_edited(page)
    if page.transcript is not None and edited:
        page.transcript = page.transcript._replace(rounds=page.saved_rounds)
    return edited


def start_over(page: PageSession) -> None:
    """Begin a new conversation; the previous one stays saved."""
    with page.lock:
        page.forget(VIEW)
        page.transcript, page.saved_rounds = None, ()
        _removed(page).clear()


def _split_last(page: PageSession) -> tuple[Transcript, Round]:
    """(the conversation before the last round, the last round)."""
    if page.transcript is None or not page.transcript.rounds:
        raise Notice("Ask something first")
    *earlier, last = page.transcript.rounds
    return page.transcript._replace(rounds=tuple(earlier)), last


def _stream_round(
    served: Served, page: PageSession, begin: Callable[[], BegunRound], panes: Sequence[str], *, again: bool = True
) -> Iterator[ShownRounds | None]:
    """Write the answers of a round, saving them as they grow: a reload loses neither the question nor their text.

    again: the round may have answers that are being scored. None: there is nothing new to show.
    """
    with page.lock:
        refuse_while_answering(page, VIEW, scoring=again)
        transcript, saved, round_, settings = begin()
        turns = {pane: [*history(transcript, pane), Turn("human", round_.prompt)] for pane in panes}
        snapshots = answers(served, page, VIEW, turns, panes, settings, lambda replies: on_end(replies))
        first = next(snapshots)  # settings are refused here, before anything has changed
        save_transcript(served, page, transcript._replace(rounds=(*transcript.rounds, saved)))
        place, saved_at = len(transcript.rounds), time.monotonic()

    def rounds() -> tuple[Round, ...]:
        """The page's rounds while this one is among them; () where it was taken back or replaced meanwhile."""
        now = page.transcript.rounds if page.transcript else ()
        return now if place < len(now) and now[place] is saved else ()

    def save(quiet: bool) -> None:
        nonlocal saved, saved_at
        with page.lock:
            now = rounds()
            if page.transcript is not None and now:
                saved = _with_endings(round_)
                now = (*now[:place], saved, *now[place + 1 :])
                save_transcript(served, page, page.transcript._replace(rounds=now), quiet=quiet)
                saved_at = time.monotonic()

    def on_end(replies: dict[str, Reply]) -> None:  # the next question reads the answers, whole
        nonlocal round_
        round_ = round_._replace(replies={**round_.replies, **replies})
        save(quiet=True)

    for snapshot in chain([first], snapshots):
        round_ = round_._replace(replies={**round_.replies, **snapshot.replies})
        unscored = snapshot.replies and all(reply.reward is None for reply in snapshot.replies.values())
        if unscored and not snapshot.ended and time.monotonic() - saved_at > SAVE_EVERY:
            save(quiet=True)
        if len(now := rounds()) == place + 1:  # later rounds, asked while this one is scored, show themselves
            yield ShownRounds((*now[:place], round_), snapshot.waiting)
    save(quiet=False)
    # Shown last whatever happened meanwhile: Gradio sends an event's last update once more when it ends.
    yield None if VIEW in page.streams else shown(page)


def _with_endings(round_: Round) -> Round:
    """The round as it is saved: answers without an ending were stopped."""

    def ended(reply: Reply) -> Reply:
        return reply if reply.finish else reply._replace(finish="stopped")

    return round_._replace(replies={pane: ended(reply) for pane, reply in round_.replies.items()})
