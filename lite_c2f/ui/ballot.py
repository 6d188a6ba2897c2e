"""Ballots: two answers without names, the vote on them, and the line of votes.jsonl that it becomes."""

import hashlib
from datetime import UTC, datetime
from typing import NamedTuple

from lite_c2f.chat import ChatSettings
from lite_c2f.data.records import Turn
from lite_c2f.ui.answering import Notice, Served
from lite_c2f.ui.page_session import PageSession
from lite_c2f.ui.store import votes
from lite_c2f.ui.store.conversations import Reply

VIEW = "vote"
LAST_VOTE = "last vote"  # key of a page's view state: the vote that can be taken back
LETTERS = ("A", "B")


class BallotExchange(NamedTuple):
    """A question and both answers to it."""

    prompt: str
    replies: dict[str, Reply]  # by letter


class Ballot(NamedTuple):
    """Two answers to vote on, and what the same two were asked before."""

    prompt: str
    actors: tuple[str, ...]  # A's, B's
    settings: ChatSettings
    replies: dict[str, Reply]  # by letter
    choice: str = ""  # "" until the vote
    done: bool = False  # both answers are whole, and scored: nothing more will be drawn
    waits_for: str = ""  # what answers that have not begun wait for
    earlier: tuple[BallotExchange, ...] = ()  # the questions that this one follows, the first one first

    @property
    def writing(self) -> bool:
        """Whether an answer is still to come or being written."""
        return not self.done and not (
            len(self.replies) == len(LETTERS) and all(r.finish for r in self.replies.values())
        )

    @property
    def complete(self) -> bool:
        """Whether it can be voted on: both answers are whole and scored, neither failed, and they differ.

        A vote before the scores would be drawn over by them.
        """
        finishes = [reply.finish for reply in self.replies.values()]
        answered = len(finishes) == len(LETTERS) and all(finish and finish != "error" for finish in finishes)
        return self.done and answered and not self.same

    @property
    def same(self) -> bool:
        """Whether both answers are whole with the same text."""
        replies = list(self.replies.values())
        ended = len(replies) == len(LETTERS) and all(reply.finish for reply in replies)
        return self.done and ended and len({reply.text for reply in replies}) == 1

    @property
    def can_follow(self) -> bool:
        """Whether the next question goes to the same two: they have answered, perhaps unscored, and are not voted on.

        Of two that say the same from the start there is nothing to choose, and another two are asked.
        """
        replies = list(self.replies.values())
        whole = len(replies) == len(LETTERS) and all(reply.finish and reply.finish != "error" for reply in replies)
        return whole and not self.choice and (bool(self.earlier) or len({reply.text for reply in replies}) > 1)

    def history(self, letter: str) -> tuple[Turn, ...]:
        """The conversation of one of them before the question."""
        return tuple(
            turn
            for prompt, replies in self.earlier
            for turn in (Turn("human", prompt), Turn("assistant", replies[letter].text))
        )

    def followed_by(self, prompt: str) -> "Ballot":
        """The ballot of another question to the same two, with the same settings."""
        earlier = (*self.earlier, BallotExchange(self.prompt, self.replies))
        return self._replace(prompt=prompt, replies={}, done=False, waits_for="", earlier=earlier)


def cast(served: Served, page: PageSession, choice: str) -> Ballot | None:
    """Record a vote on the page's ballot. Nothing happens where it cannot be voted on, as after a second click.

    Raises Notice where there is none, as after a restart of the server; DataError or OSError where it cannot be
    written, and the ballot is then open as before.
    """
    with page.lock:
        ballot: Ballot | None = page.view_state.get(VIEW)
        if ballot is None:
            raise Notice("There are no answers to vote on any more: ask again")
        if not ballot.complete or ballot.choice:
            return ballot
        ballot = ballot._replace(choice=choice)
        vote = vote_of(ballot, page, served)
        votes.record(served.votes, vote)
        page.view_state |= {VIEW: ballot, LAST_VOTE: vote}
        return ballot


def take_back(served: Served, page: PageSession) -> Ballot | None:
    """Take the page's last vote back, once, also where another question was asked since.

    Its names were shown: there is no second vote on those answers. Raises Notice where there is no vote, and as `cast`.
    """
    with page.lock:
        vote: votes.Vote | None = page.view_state.get(LAST_VOTE)
        if vote is None:
            raise Notice("There is no vote to take back")
        votes.record(served.votes, vote._replace(time=_now(), choice=votes.TAKEN_BACK))
        del page.view_state[LAST_VOTE]
        ballot: Ballot | None = page.view_state.get(VIEW)
        if ballot is not None and ballot.choice:  # it is the one of the last vote
            ballot = page.view_state[VIEW] = ballot._replace(choice=votes.TAKEN_BACK)
        return ballot


def skip(page: PageSession) -> Ballot | None:
    """Put a ballot away without a vote, also while its answers are being written. The names stay hidden."""
    with page.lock:
        ballot: Ballot | None = page.view_state.get(VIEW)
        if ballot is not None and ballot.choice:  # as after a second click
            return ballot
        page.forget(VIEW)
        page.view_state.pop(VIEW, None)
        return None


def vote_of(ballot: Ballot, page: PageSession, served: Served) -> votes.Vote:
    """A ballot as a line of votes.jsonl."""
    by_actor = {actor: ballot.replies[letter] for letter, actor in zip(LETTERS, ballot.actors, strict=True)}
    settings = ballot.settings._asdict()
    return votes.Vote(
        time=_now(),
        voter=voter_of(page),
        turns=(Turn("human", ballot.prompt),),
        shown=ballot.actors,
        answers={actor: reply.text for actor, reply in by_actor.items()},
        ended={actor: reply.finish in ("eos", "stop") for actor, reply in by_actor.items()},
        choice=ballot.choice,
        seeds={actor: reply.seed for actor, reply in by_actor.items()},
        ratio=served.chat.ratio if ballot.settings.ratio is None else ballot.settings.ratio,
        settings=settings,
        run=served.facts,
        system=str(settings["system"]),
        before={actor: ballot.history(letter) for letter, actor in zip(LETTERS, ballot.actors, strict=True)}
        if ballot.earlier
        else {},
    )


def voter_of(page: PageSession) -> str:
    """The voter's name in votes.jsonl: it tells voters apart, and opens nothing."""
    return hashlib.sha256(page.owner.encode()).hexdigest()[:32]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
