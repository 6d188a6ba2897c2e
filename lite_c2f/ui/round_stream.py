"""Stream of a round's answers: shown and saved while they are written."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from lite_c2f.actors.names import FINE
from lite_c2f.chat import ALL_PANES, ChatSettings
from lite_c2f.chat.panes import AnswerForm, fine_ratio, pane_of
from lite_c2f.data.records import Turn
from lite_c2f.ui.answering import Served, answers, refuse_while_answering
from lite_c2f.ui.page_session import PageSession, history
from lite_c2f.ui.saving import save_transcript
from lite_c2f.ui.store.conversations import Reply, Round, Transcript
from lite_c2f.ui.store.variants import merged

VIEW = "compare"
SAVE_EVERY = 0.5  # seconds, while answers are written


class ShownRounds(NamedTuple):
    """What a page shows. queued: questions before the last round's, whose panes may be empty; None: none was asked.

    awaited: what is loaded before its answers can begin.
    """

    rounds: tuple[Round, ...]
    queued: int | None = None
    awaited: str = ""


def shown(page: PageSession) -> ShownRounds:
    """The conversation as it is."""
    return ShownRounds(page.transcript.rounds if page.transcript else ())


class BegunRound(NamedTuple):
    """A round whose answers are about to be written."""

    transcript: Transcript  # the rounds before it
    saved: Round  # what is saved as this round until there are new answers
    round_: Round
    settings: ChatSettings
    form: AnswerForm = AnswerForm()  # of an answer that is continued
    grow: Callable[[Round, Mapping[str, Reply]], Round] = lambda round_, new: with_replies(round_, new)


def with_replies(round_: Round, new: Mapping[str, Reply]) -> Round:
    """The round with new replies in their panes' places."""
    return round_._replace(replies=merged(round_.replies, new, ALL_PANES))


def stream_round(
    served: Served, page: PageSession, begin: Callable[[], BegunRound], panes: Sequence[str], *, again: bool = True
) -> Iterator[ShownRounds | None]:
    """Write the answers of a round, saving them as they grow: a reload loses neither the question nor their text.

    again: the round may have answers that are being scored. None: there is nothing new to show.
    """
    with page.lock:
        refuse_while_answering(page, VIEW, scoring=again)
        transcript, saved, round_, settings, form, grow = begin()
        turns = {pane: [*history(transcript, pane), Turn("human", round_.prompt)] for pane in panes}
        snapshots = answers(served, page, VIEW, turns, panes, settings, lambda replies: on_end(replies), form)
        first = next(snapshots)  # settings are refused here, before anything has changed
        none_yet = {pane: _none_yet(served, pane, settings) for pane in panes}
        saved = _with_endings(saved, none_yet)
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
                saved = _with_endings(round_, none_yet)
                now = (*now[:place], saved, *now[place + 1 :])
                save_transcript(served, page, page.transcript._replace(rounds=now), quiet=quiet)
                saved_at = time.monotonic()

    def on_end(replies: dict[str, Reply]) -> None:  # the next question reads the answers, whole
        nonlocal round_
        round_ = grow(round_, replies)
        save(quiet=True)

    for snapshot in chain([first], snapshots):
        round_ = grow(round_, snapshot.replies)
        scored = any(reply.reward is not None for reply in snapshot.replies.values())
        being_written = snapshot.replies and not scored and not snapshot.ended
        if (snapshot.ended and scored) or (being_written and time.monotonic() - saved_at > SAVE_EVERY):
            save(quiet=True)  # before it is shown: of a page that was left nothing more is asked for
        if len(now := rounds()) == place + 1:  # later rounds, asked while this one is scored, show themselves
            yield ShownRounds((*now[:place], round_), snapshot.waiting, snapshot.awaited)
    save(quiet=False)
    # Shown last whatever happened meanwhile: Gradio sends an event's last update once more when it ends.
    yield None if VIEW in page.streams else shown(page)


def _none_yet(served: Served, pane: str, settings: ChatSettings) -> Reply:
    """The reply of a pane of which nothing was heard: after a reload it says that it was stopped, and can be asked."""
    its = pane_of(pane)
    shown = fine_ratio(its, settings, served.chat.ratio) if its.actor == FINE else None
    return Reply(pane, "", 0, 0.0, "stopped", ratio=shown, seed=settings.seed)


def _with_endings(round_: Round, none_yet: Mapping[str, Reply]) -> Round:
    """The round as it is saved: answers without an ending were stopped, and those that have not begun too."""

    def ended(reply: Reply) -> Reply:
        return reply if reply.finish else reply._replace(finish="stopped")

    return with_replies(round_, {**none_yet, **{pane: ended(reply) for pane, reply in round_.replies.items()}})
