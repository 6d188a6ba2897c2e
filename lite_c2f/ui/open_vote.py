"""Open votes: the best of the last answers in Compare, whose actors are known. A vote can be changed and taken back.

It is a vote as in `ballot.py`, in the same file, marked as not blind. Nothing of it is in the conversation: a vote
belongs to the texts that it compares, and so stays with each variant of a round, and with each branch after an edit.
"""

from datetime import UTC, datetime
from typing import Any

from lite_c2f.actors.names import FINE
from lite_c2f.chat import PANES
from lite_c2f.data.records import Turn
from lite_c2f.errors import C2FError
from lite_c2f.ui.answering import Notice, Served, refuse_while_answering
from lite_c2f.ui.ballot import voter_of
from lite_c2f.ui.buttons import can_ask_again
from lite_c2f.ui.page_session import PageSession, history
from lite_c2f.ui.render import BestVote
from lite_c2f.ui.round_stream import VIEW
from lite_c2f.ui.rounds import refuse_while_edited, split_last
from lite_c2f.ui.store import votes
from lite_c2f.ui.store.conversations import Round, Transcript
from lite_c2f.ui.store.variants import settings_of_pane


def comparable(round_: Round) -> tuple[str, ...]:
    """The panes whose answers to a question can be compared: whole, with text, and made under one system prompt.

    None where that leaves one answer, or the same text in all. The base takes no part, as it need not be shown.
    """
    replies = {pane: round_.replies[pane] for pane in PANES if pane in round_.replies}
    whole = tuple(pane for pane, reply in replies.items() if reply.finish not in ("", None, "error") and reply.text)
    systems = {_system(round_, pane) for pane in whole}
    return whole if len({replies[pane].text for pane in whole}) > 1 and len(systems) == 1 else ()


def best_vote(served: Served, page: PageSession) -> BestVote | None:
    """The state of the buttons under the last answers; None while they have none, as answers are being written.

    Where the file of votes cannot be read, nothing is shown as chosen; `toggle` then says why.
    """
    if page.transcript is None or not page.transcript.rounds or not can_ask_again(page):
        return None
    panes = comparable(page.transcript.rounds[-1])
    if not panes:
        return None
    try:
        return BestVote(panes, _chosen(served, vote_on(page.transcript, panes, panes[0], voter_of(page))))
    except (C2FError, OSError):
        return BestVote(panes, None)


def toggle(served: Served, page: PageSession, pane: str) -> None:
    """Vote a pane's last answer the best, instead of another one; or take that vote back where it is the best.

    Raises Notice where there is nothing to choose, DataError, RunError or OSError for a file that cannot be read or
    written.
    """
    with page.lock:
        refuse_while_answering(page, VIEW, scoring=True)
        refuse_while_edited(page)
        earlier, last = split_last(page)
        panes = comparable(last)
        if pane not in panes:
            raise Notice("There is nothing to choose between these answers")
        vote = vote_on(earlier._replace(rounds=(*earlier.rounds, last)), panes, pane, voter_of(page))
        if _chosen(served, vote) == pane:
            vote = vote._replace(choice=votes.TAKEN_BACK)
        votes.record(served.votes, vote)


def vote_on(transcript: Transcript, panes: tuple[str, ...], best: str, voter: str) -> votes.Vote:
    """The vote for one of the panes' last answers, as a line of votes.jsonl."""
    last = transcript.rounds[-1]
    replies = {pane: last.replies[pane] for pane in panes}
    question = Turn("human", last.prompt)
    earlier = transcript._replace(rounds=transcript.rounds[:-1])
    before = {pane: tuple(history(earlier, pane)) for pane in panes}
    alike = len(set(before.values())) == 1
    own: dict[str, Any] = {"pane_settings": last.pane_settings} if last.pane_settings else {}
    return votes.Vote(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        voter=voter,
        turns=(*before[best], question) if alike else (question,),
        shown=panes,
        answers={pane: reply.text for pane, reply in replies.items()},
        ended={pane: reply.finish in ("eos", "stop") for pane, reply in replies.items()},
        choice=votes.LETTERS[panes.index(best)],
        seeds={pane: reply.seed for pane, reply in replies.items()},
        ratio=replies[FINE].ratio if FINE in replies else None,
        settings=last.settings | own,
        run=transcript.run,
        system=_system(last, best),
        blind=False,
        before={} if alike else before,
    )


def _chosen(served: Served, vote: votes.Vote) -> str | None:
    """The pane that the voter found best of these answers so far."""
    earlier = votes.recorded(served.votes).get(votes.key_of(vote))
    return earlier.winner if earlier is not None else None


def _system(round_: Round, pane: str) -> str:
    return str(settings_of_pane(round_, pane).get("system", ""))
