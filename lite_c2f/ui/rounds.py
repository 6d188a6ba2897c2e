"""The rounds of a conversation: asked, asked again, taken back, at another ratio."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from lite_c2f.chat import ChatSettings
from lite_c2f.data.records import Turn
from lite_c2f.ui.answering import Notice, Served, answers, question_of
from lite_c2f.ui.page_session import PageSession, history
from lite_c2f.ui.render import BEFORE
from lite_c2f.ui.saving import keep, new_transcript
from lite_c2f.ui.store.conversations import Reply, Round, Transcript

VIEW = "compare"
SAVE_EVERY = 0.5  # seconds, while answers are written


class ShownRounds(NamedTuple):
    """What a page shows."""

    rounds: tuple[Round, ...]
    waiting: int | None = (
        None  # questions before the last round's, whose panes may be empty yet; None: nothing is asked
    )


def shown(visit: PageSession) -> ShownRounds:
    """The conversation as it is."""
    return ShownRounds(visit.transcript.rounds if visit.transcript else ())


class BegunRound(NamedTuple):
    """A round that is asked."""

    before: Transcript  # the rounds before it
    saved: Round  # as it stands on the disk until there is something new to save
    round_: Round
    settings: ChatSettings


def ask(
    served: Served, visit: PageSession, text: str, panes: Sequence[str], settings: ChatSettings
) -> Iterator[ShownRounds]:
    """One round more."""

    def begin() -> BegunRound:
        round_ = Round(question_of(text), settings._asdict(), {})
        return BegunRound(visit.transcript or new_transcript(served, visit), round_, round_, settings)

    return _run(served, visit, begin, panes)


def ask_again(
    served: Served, visit: PageSession, panes: Sequence[str], settings: ChatSettings
) -> Iterator[ShownRounds]:
    """The last question once more, with other settings or random numbers."""

    def begin() -> BegunRound:
        before, last = _last(visit)
        return BegunRound(before, last, Round(last.prompt, settings._asdict(), {}), settings)

    return _run(served, visit, begin, panes)


def only(served: Served, visit: PageSession, panes: Sequence[str], ratio: float | None = None) -> Iterator[ShownRounds]:
    """Some panes of the last round, as it was asked, the random numbers included; the others keep their answers.

    At another ratio, the Fine Actor's answer so far stays beside the new one.
    """

    def begin() -> BegunRound:
        before, last = _last(visit)
        settings = ChatSettings(**last.settings)
        if ratio is not None and "fine" in last.replies:
            last = last._replace(replies={**last.replies, BEFORE: last.replies["fine"]})
        return BegunRound(before, last, last, settings if ratio is None else settings._replace(ratio=ratio))

    return _run(served, visit, begin, panes)


def take_back(served: Served, visit: PageSession) -> str:
    """Forget the last round, whether it is answered or not; returns its question."""
    with visit.changing:
        visit.forget(VIEW)
        transcript, last = _last(visit)
        keep(served, visit, transcript)
    return last.prompt


def start_over(visit: PageSession) -> None:
    """A new conversation; the one so far stays saved."""
    with visit.changing:
        visit.forget(VIEW)
        visit.transcript = None


def _last(visit: PageSession) -> tuple[Transcript, Round]:
    """(the conversation before the last round, the last round)."""
    if visit.transcript is None or not visit.transcript.rounds:
        raise Notice("Ask something first")
    *before, last = visit.transcript.rounds
    return visit.transcript._replace(rounds=tuple(before)), last


def _run(
    served: Served, visit: PageSession, begin: Callable[[], BegunRound], panes: Sequence[str]
) -> Iterator[ShownRounds]:
    """Have a round answered. It is saved as it goes, so that a reload loses neither the question nor what was said."""
    with visit.changing:
        if VIEW in visit.asked:
            raise Notice("The last answers are still being written: stop them, or wait")
        transcript, saved, round_, settings = begin()
        turns = {pane: [*history(transcript, pane), Turn("human", round_.prompt)] for pane in panes}
        looks = answers(served, visit, VIEW, turns, panes, settings)
        first = next(looks)  # settings are refused here, before anything has changed
        keep(served, visit, transcript._replace(rounds=(*transcript.rounds, saved)))
        before, when = visit.transcript, time.monotonic()

    def save(quiet: bool) -> None:
        nonlocal before, when
        with visit.changing:
            if before is not None and visit.transcript is before:  # it was not taken back meanwhile
                keep(served, visit, before._replace(rounds=(*transcript.rounds, _finished(round_))), quiet=quiet)
                before, when = visit.transcript, time.monotonic()

    for look in chain([first], looks):
        round_ = round_._replace(replies={**round_.replies, **look.replies})
        yield ShownRounds((*transcript.rounds, round_), look.waiting)
        if look.replies and time.monotonic() - when > SAVE_EVERY:
            save(quiet=True)
    save(quiet=False)
    # Shown last whatever happened meanwhile: Gradio sends an event's last update once more when it ends.
    yield shown(visit)


def _finished(round_: Round) -> Round:
    """As it is saved: answers without an end were stopped."""

    def ended(reply: Reply) -> Reply:
        return reply if reply.finish else reply._replace(finish="stopped")

    return round_._replace(replies={pane: ended(reply) for pane, reply in round_.replies.items()})
