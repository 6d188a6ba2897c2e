"""Rounds of a conversation: a new one, another variant of the last one, and the last one taken back."""

from collections.abc import Iterator, Sequence

from lite_c2f.chat import ChatSettings
from lite_c2f.ui.answering import Notice, Served, question_of, refuse_while_answering
from lite_c2f.ui.page_session import PageSession
from lite_c2f.ui.round_stream import VIEW, BegunRound, ShownRounds, stream_round
from lite_c2f.ui.saving import new_transcript, save_transcript
from lite_c2f.ui.store.conversations import PREVIOUS_PANE, Round, Transcript
from lite_c2f.ui.store.variants import settings_of_pane, turned, with_variant, without

REMOVED = "removed rounds"  # key of a page's view state
MOST_REMOVED = 100


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

    return stream_round(served, page, begin, panes, again=False)


def regenerate(
    served: Served, page: PageSession, panes: Sequence[str], settings: ChatSettings
) -> Iterator[ShownRounds | None]:
    """The last question again, with other settings or random numbers: another variant of the round."""

    def begin() -> BegunRound:
        _take_back_edit(page)
        transcript, last = split_last(page)
        return BegunRound(transcript, last, with_variant(last, settings._asdict(), {}), settings)

    return stream_round(served, page, begin, panes)


def regenerate_panes(
    served: Served, page: PageSession, panes: Sequence[str], ratio: float | None = None
) -> Iterator[ShownRounds | None]:
    """Some panes of the last round, with the same settings and random numbers; the others keep their answers.

    At another ratio it is another variant of the round, in which the Fine Actor's previous answer is shown beside the
    new one. A pane that joins the round makes no variant: nothing is replaced.
    """

    def begin() -> BegunRound:
        _take_back_edit(page)
        transcript, last = split_last(page)
        settings, round_ = ChatSettings(**settings_of_pane(last, panes[0])), last
        if ratio is not None and "fine" in last.replies:
            replies = {**last.replies, PREVIOUS_PANE: last.replies["fine"]}
            round_ = with_variant(last, last.settings, replies, last.pane_settings)
        return BegunRound(transcript, last, round_, settings if ratio is None else settings._replace(ratio=ratio))

    return stream_round(served, page, begin, panes)


def ask_again(served: Served, page: PageSession, pane: str, settings: ChatSettings) -> Iterator[ShownRounds | None]:
    """One pane of the last round again, with other settings or random numbers: another variant of the round.

    The other panes keep their answers, and with them the round its settings; those of this pane are saved beside them.
    """

    def begin() -> BegunRound:
        refuse_while_edited(page)
        transcript, last = split_last(page)
        pane_settings = {**last.pane_settings, pane: settings._asdict()}
        round_ = with_variant(last, last.settings, without(last.replies, [pane]), pane_settings)
        return BegunRound(transcript, last, round_, settings)

    return stream_round(served, page, begin, [pane])


def turn(served: Served, page: PageSession, step: int) -> None:
    """View the variant of the last round that is `step` places further: the next question builds on it.

    Earlier rounds show their other variants, but cannot be turned: what follows them was built on the one in view.
    """
    with page.lock:
        refuse_while_answering(page, VIEW, scoring=True)
        if not can_turn(page, step):
            raise Notice("There are no other answers")
        transcript, last = split_last(page)
        save_transcript(served, page, transcript._replace(rounds=(*transcript.rounds, turned(last, step))))


def can_turn(page: PageSession, step: int) -> bool:
    """Has the last round a variant so many places further? None while the last question is taken off to be edited."""
    if VIEW in page.streams or VIEW in page.scoring or was_edited(page):
        return False
    last = page.transcript.rounds[-1] if page.transcript and page.transcript.rounds else None
    return last is not None and 0 <= last.place + step <= len(last.others)


def remove_last(served: Served, page: PageSession) -> None:
    """Remove the last round, whether it is answered or not; `redo` brings it back, and what `edit` took off before."""
    with page.lock:
        page.forget(VIEW)
        transcript, _ = split_last(page)
        left, all_ = len(transcript.rounds), page.transcript.rounds if page.transcript else ()
        if was_edited(page):
            all_ = page.saved_rounds
        removed = _removed(page)
        removed += [(all_[:place], all_[place]) for place in range(len(all_) - 1, left - 1, -1)]
        del removed[:-MOST_REMOVED]
        save_transcript(served, page, transcript)


def redo(served: Served, page: PageSession) -> str:
    """Bring back what `edit` took off, whose question is returned, or else the round that was removed last."""
    with page.lock:
        if not can_redo(page):
            raise Notice("There is nothing to bring back")
        shown = len(page.transcript.rounds) if page.transcript else 0
        question = page.saved_rounds[shown].prompt if was_edited(page) else ""
        if not _take_back_edit(page):
            before, round_ = _removed(page).pop()
            transcript = page.transcript or new_transcript(served, page)
            save_transcript(served, page, transcript._replace(rounds=(*before, round_)))
    return question


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
        page.transcript, last = split_last(page)
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


def refuse_while_edited(page: PageSession) -> None:
    """Raise Notice while the last question is taken off to be edited: another round's answers are shown as the last."""
    if was_edited(page):
        raise Notice("Send the question in the box first, or bring it back with Redo")


def start_over(page: PageSession) -> None:
    """Begin a new conversation; the previous one stays saved."""
    with page.lock:
        page.forget(VIEW)
        page.transcript, page.saved_rounds = None, ()
        _removed(page).clear()


def split_last(page: PageSession) -> tuple[Transcript, Round]:
    """(the conversation before the last round, the last round)."""
    if page.transcript is None or not page.transcript.rounds:
        raise Notice("Ask something first")
    *earlier, last = page.transcript.rounds
    return page.transcript._replace(rounds=tuple(earlier)), last
