"""Ballots without a browser: votes cast once, taken back once, and questions that are skipped."""

from types import SimpleNamespace

import pytest

pytest.importorskip("gradio")

from lite_c2f.chat import ChatSettings
from lite_c2f.data.records import Turn
from lite_c2f.ui import blind
from lite_c2f.ui.answering import Notice, Served, Snapshot
from lite_c2f.ui.ballot import VIEW, Ballot, cast, skip, take_back
from lite_c2f.ui.page_session import PageSession, PageSessions
from lite_c2f.ui.store import votes
from lite_c2f.ui.store.conversations import Reply

REPLY = Reply("fine", "It is 5.", 4, 80.0, "eos", "", 0.1, reward=0.5, repeated=0.0, ratio=1.0, seed=7)
OTHER = REPLY._replace(pane="coarse", text="Five.")


@pytest.fixture
def served(tmp_path):
    return Served(SimpleNamespace(ratio=0.5, run=tmp_path), PageSessions(), tmp_path / "app", {"name": "toy"})


@pytest.fixture
def page():
    page = PageSession()
    ask(page)
    return page


def ask(page, prompt="2 and 3?"):
    replies = {"A": REPLY, "B": OTHER}
    page.view_state[VIEW] = Ballot(prompt, ("fine", "coarse"), ChatSettings(), replies, done=True)


def on_disk(served):
    return [vote.choice for vote in votes.read(served.votes)]


def can(page):
    """What the buttons can do: the four votes, skip, take back."""
    drawn = blind._draw(page.view_state.get(VIEW), page)[5:11]
    assert len(drawn) == 6
    return [button.interactive for button in drawn]


def test_a_vote_is_cast_once_and_taken_back_once(served, page):
    assert can(page) == [True] * 4 + [True, False]
    assert cast(served, page, "B").choice == cast(served, page, "A").choice == "B"
    assert on_disk(served) == ["B"] and can(page) == [False] * 4 + [False, True]
    ballot = take_back(served, page)
    assert ballot.choice == "taken_back" and "Your vote: <b>taken back</b>. A was Fine Actor" in blind._verdict(ballot)
    assert cast(served, page, "A").choice == "taken_back"  # the names were shown
    with pytest.raises(Notice, match="no vote to take back"):
        take_back(served, page)
    assert on_disk(served) == ["B", "taken_back"] and votes.current(votes.read(served.votes)) == []
    assert can(page) == [False] * 6


def test_the_last_vote_can_be_taken_back_after_the_next_question(served, page):
    cast(served, page, "tie")
    ask(page, "3 and 4?")
    assert take_back(served, page).choice == "" and can(page) == [True] * 4 + [True, False]
    cast(served, page, "A")
    assert [vote.turns[0].text for vote in votes.current(votes.read(served.votes))] == ["3 and 4?"]


def test_a_skipped_question_leaves_nothing(served, page):
    assert skip(page) is None and VIEW not in page.view_state and can(page) == [False] * 6
    with pytest.raises(Notice, match="no answers to vote on any more: ask again"):
        cast(served, page, "A")
    assert skip(page) is None and on_disk(served) == []
    ask(page)
    cast(served, page, "A")
    assert skip(page).choice == "A"  # what was voted on is not put away


def test_a_question_is_skipped_while_it_is_answered(page):
    ended = []
    stream = SimpleNamespace(stop=ended.append, close=lambda: None)
    page.view_state[VIEW] = page.view_state[VIEW]._replace(replies={}, done=False)
    page.begin(VIEW, stream)
    assert can(page) == [False] * 4 + [True, False]
    assert skip(page) is None and ended == [None] and not page.is_current(VIEW, stream)


def test_a_question_follows_while_there_is_no_vote(served, page):
    """The vote has the last answers, and of each actor the conversation before them."""
    first = page.view_state[VIEW]
    for unlike in ({"A": REPLY}, {"A": REPLY, "B": OTHER._replace(finish="error")}, {"A": REPLY, "B": REPLY}):
        assert not first._replace(replies=unlike).can_follow
    assert first.can_follow and first._replace(done=False).can_follow  # scored or not
    ballot = first.followed_by("And 4 more?")
    assert (ballot.actors, ballot.settings, ballot.can_follow, ballot.complete) == (first.actors, first.settings, 0, 0)
    assert ballot.history("A") == (Turn("human", "2 and 3?"), Turn("assistant", "It is 5."))
    assert blind._answer(ballot, "B").count("Five.") == 1 and "It is 5." not in blind._answer(ballot, "B")
    said = {"A": REPLY._replace(text="It is 9."), "B": OTHER._replace(text="It is 9.")}
    assert ballot._replace(replies=said, done=True).can_follow  # they differ in what they said before
    page.view_state[VIEW] = ballot._replace(replies=said | {"B": OTHER._replace(text="Nine.")}, done=True)
    assert not cast(served, page, "B").can_follow
    [vote] = votes.read(served.votes)
    assert vote.answers == {"fine": "It is 9.", "coarse": "Nine."} and vote.winner == "coarse"
    assert votes.conversation_of(vote, "fine") == (*ballot.history("A"), Turn("human", "And 4 more?"))
    assert votes.conversation_of(vote, "coarse")[1].text == "Five."


def test_a_question_is_asked_while_rewards_of_the_answers_before_arrive(served, page, monkeypatch):
    """They come in the moment in which it is asked: it keeps its place, and what they change is not drawn."""
    request = SimpleNamespace(session_hash=None)
    monkeypatch.setattr(blind, "page_of", lambda *_: page)
    unscored = {"A": REPLY._replace(reward=None), "B": OTHER._replace(reward=None)}

    def answers(*_):
        yield Snapshot({}, 0)
        if page.view_state[VIEW].earlier:
            yield Snapshot({"A": REPLY._replace(text="It is 9.")}, 0)
            return
        yield Snapshot(unscored, 0, ended=True)
        yield Snapshot({"A": REPLY, "B": OTHER}, 0, ended=True)

    def asked(text):
        return blind._asker(served, 12)(request, text, "fine coarse", 1.0, *[None] * 9)

    monkeypatch.setattr(blind, "answers", answers)
    page.view_state.clear()
    first = asked("2 and 3?")
    next(first), next(first)  # the answers are whole
    monkeypatch.setattr(blind, "answers", lambda *_: (next(first), iter(answers()))[1])  # the rewards
    second = asked("And 4 more?")
    next(second), next(second)
    drawn = list(first)
    ballot = page.view_state[VIEW]
    assert (ballot.prompt, ballot.replies["A"].text) == ("And 4 more?", "It is 9.")
    assert all("2 and 3?" not in str(part) or "And 4 more?" in str(part) for update in drawn for part in update)


def test_a_vote_that_cannot_be_written_leaves_all_as_it_was(served, page):
    served.votes.mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        cast(served, page, "A")
    assert can(page) == [True] * 4 + [True, False]
    served.votes.rmdir()
    cast(served, page, "A")
    served.votes.rename(served.votes.with_suffix(".kept"))
    served.votes.mkdir()
    with pytest.raises(OSError, match="directory"):
        take_back(served, page)
    assert can(page) == [False] * 4 + [False, True] and page.view_state[VIEW].choice == "A"


def test_each_vote_has_a_key_of_its_own():
    assert blind.KEYS == {"A": "1", "B": "2", "tie": "3", "both_bad": "0"} and blind.KEYS.keys() == blind.CHOICES.keys()
