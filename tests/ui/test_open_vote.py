"""Open votes in Compare without models: changed, taken back, found again, and kept by each variant and branch."""

import itertools
import re
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio")

import gradio as gr

from lite_c2f.config.data import Source
from lite_c2f.data.records import Turn, load_pairs
from lite_c2f.errors import RunError
from lite_c2f.ui import open_vote, rounds, saving, vote_results
from lite_c2f.ui.answering import Notice, Served
from lite_c2f.ui.handlers import Handlers
from lite_c2f.ui.page_session import Display, PageSession, PageSessions
from lite_c2f.ui.render import BestVote
from lite_c2f.ui.store import preferences, votes
from lite_c2f.ui.store.conversations import PREVIOUS_PANE, Reply, Round
from lite_c2f.ui.store.variants import with_variant

OWNER = "ab" * 16
PANES = ("coarse", "fine", "baseline")


def reply(pane, text, finish="eos", **changes):
    return Reply(pane, text, 4, 80.0, finish, "", 0.1, reward=0.5, repeated=0.0, seed=7)._replace(**changes)


def replies(*texts):
    made = {pane: reply(pane, text) for pane, text in zip(PANES, texts, strict=False)}
    return {**made, "fine": made["fine"]._replace(ratio=0.5)}


FIRST = Round("2 and 3?", {"seed": 7, "system": "Be kind."}, replies("Let us add. 5", "It is 5.", "5"))


@pytest.fixture
def served(tmp_path):
    return Served(None, PageSessions(), tmp_path / "app", {"name": "toy"})


@pytest.fixture
def page(served):
    return show(served, PageSession(), FIRST)


def show(served, page, *shown):
    page.owner = OWNER
    transcript = page.transcript or saving.new_transcript(served, page)
    saving.save_transcript(served, page, transcript._replace(rounds=shown))
    return page


def chosen(served, page):
    best = open_vote.best_vote(served, page)
    return best.chosen if best else "no buttons"


def counted(served):
    return votes.current(votes.read(served.votes))


def test_a_vote_is_changed_and_taken_back(served, page):
    assert open_vote.best_vote(served, page) == BestVote(PANES, None)
    open_vote.toggle(served, page, "fine")
    assert chosen(served, page) == "fine"
    (vote,) = counted(served)
    assert (vote.blind, vote.winner, vote.shown, vote.choice) == (False, "fine", PANES, "B")
    assert vote.turns == (Turn("human", "2 and 3?"),) and vote.before == {} and vote.system == "Be kind."
    assert vote.ratio == 0.5 and vote.settings == FIRST.settings and vote.run == {"name": "toy"}
    assert OWNER not in served.votes.read_text()  # which would open the voter's sessions
    open_vote.toggle(served, page, "coarse")
    assert chosen(served, page) == "coarse" and [vote.winner for vote in counted(served)] == ["coarse"]
    open_vote.toggle(served, page, "coarse")
    assert chosen(served, page) is None and counted(served) == []
    assert [vote.choice for vote in votes.read(served.votes)] == ["B", "A", "taken_back"]


def test_another_page_of_the_same_browser_finds_the_vote(served, page):
    open_vote.toggle(served, page, "baseline")
    after = PageSession()
    saving.identify(served, after, OWNER, page.transcript.id)
    assert chosen(served, after) == "baseline"
    after.owner = "cd" * 16  # another person's
    assert chosen(served, after) is None


def test_each_variant_and_branch_keeps_its_vote(served, page):
    open_vote.toggle(served, page, "fine")
    show(served, page, with_variant(FIRST, {"seed": 8}, replies("6", "7", "8")))
    assert chosen(served, page) is None
    open_vote.toggle(served, page, "coarse")
    rounds.turn(served, page, -1)
    assert chosen(served, page) == "fine"
    rounds.turn(served, page, 1)
    assert chosen(served, page) == "coarse" and len(counted(served)) == 2
    first = page.transcript.rounds[0]
    show(served, page, first, Round("And 4?", {}, replies("x", "y", "z")))
    open_vote.toggle(served, page, "baseline")
    assert rounds.edit(page) == "And 4?" and chosen(served, page) == "no buttons"
    with pytest.raises(Notice, match="Send the question"):
        open_vote.toggle(served, page, "fine")
    show(served, page, first, Round("And 5?", {}, replies("x", "y", "z")))  # the same answers to another question
    assert chosen(served, page) is None
    show(served, page, first, Round("And 4?", {}, replies("x", "y", "z")))
    assert chosen(served, page) == "baseline"


def test_what_cannot_be_compared_has_no_buttons(served, page):
    def shown(**changes):
        return open_vote.best_vote(served, show(served, page, FIRST._replace(replies={**FIRST.replies, **changes})))

    failed, silent = reply("coarse", "x", "error"), reply("coarse", "")
    assert shown(coarse=failed) == shown(coarse=silent) == BestVote(("fine", "baseline"), None)
    with pytest.raises(Notice, match="nothing to choose"):
        open_vote.toggle(served, page, "coarse")
    assert shown(coarse=failed, fine=reply("fine", "5")) is None  # baseline says the same
    assert shown(base=reply("base", "x"), **{PREVIOUS_PANE: reply("fine", "y")}) == BestVote(PANES, None)
    other = {"fine": {"seed": 1, "system": "Be rude."}}  # Fine alone asked again, under another system prompt
    assert open_vote.best_vote(served, show(served, page, FIRST._replace(pane_settings=other))) is None
    own = {"fine": {"seed": 1, "system": "Be kind."}}
    open_vote.toggle(served, show(served, page, FIRST._replace(pane_settings=own)), "fine")
    assert counted(served)[0].settings["pane_settings"] == own
    page.scoring["compare"] = None
    assert open_vote.best_vote(served, page) is None
    with pytest.raises(Notice, match="scored"):
        open_vote.toggle(served, page, "fine")


def test_votes_become_pairs_where_the_panes_had_one_conversation(served, page, tmp_path):
    """The second answers were given to three conversations: they count, and are no pair."""
    open_vote.toggle(served, page, "fine")
    show(served, page, FIRST, Round("And 4?", FIRST.settings, replies("9", "It is 9.", "nine")))
    open_vote.toggle(served, page, "fine")
    vote = counted(served)[1]
    assert vote.turns == (Turn("human", "And 4?"),)
    assert votes.conversation_of(vote, "coarse") == (
        Turn("human", "2 and 3?"), Turn("assistant", "Let us add. 5"), Turn("human", "And 4?")
    )  # fmt: skip
    assert votes.read(served.votes)[1] == vote
    assert [row[:6] for row in votes.tally(counted(served))] == [
        ("fine", "coarse", 2, 0, 0, 0), ("fine", "baseline", 2, 0, 0, 0), ("coarse", "baseline", 0, 0, 0, 0)
    ]  # fmt: skip
    done = preferences.export(counted(served), tmp_path / "out.jsonl")
    assert done.pairs == 2 and done.skipped == {"different conversations": 2}
    found = load_pairs([Source(path=str(tmp_path / "out.jsonl"))]).items
    assert [(pair.chosen, pair.rejected) for pair in found] == [("It is 5.", "Let us add. 5"), ("It is 5.", "5")]
    assert {pair.turns for pair in found} == {(Turn("human", "Be kind.\n\n2 and 3?"),)}


def test_two_panes_that_said_the_same_before_make_a_pair(served, page, tmp_path):
    same = FIRST._replace(replies=replies("Let us add. 5", "5", "5"))
    show(served, page, same, Round("And 4?", {}, replies("9", "It is 9.", "nine")))
    open_vote.toggle(served, page, "fine")
    done = preferences.export(counted(served), tmp_path / "out.jsonl")
    assert done.pairs == 1 and done.skipped == {"different conversations": 1}
    (pair,) = load_pairs([Source(path=str(tmp_path / "out.jsonl"))]).items
    assert (pair.chosen, pair.rejected) == ("It is 9.", "nine")
    assert pair.turns == (Turn("human", "2 and 3?"), Turn("assistant", "5"), Turn("human", "And 4?"))


def test_own_votes_alone_are_downloaded(served, page, tmp_path, monkeypatch):
    """What the button saves is what the command writes for these votes; the id of another's page opens nothing."""
    said, hashes = [], map(str, itertools.count())
    monkeypatch.setattr(gr, "Info", said.append)

    def download(owner):
        new_page = SimpleNamespace(session_hash=next(hashes))
        return vote_results._own_pairs(served, owner, page.transcript.id, new_page)

    assert download(OWNER) == ["", ""] and "no vote makes a pair" in said.pop()
    open_vote.toggle(served, page, "fine")
    other = PageSession()
    show(served, other, Round("a secret", {}, replies("a", "b", "c")))
    other.owner = "cd" * 16
    open_vote.toggle(served, other, "coarse")
    text, name = download(OWNER)
    assert name == "votes.jsonl" and said.pop() == "2 pairs" and "secret" not in text
    preferences.export([vote for vote in counted(served) if vote.winner == "fine"], tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == text
    assert download("ef" * 16) == ["", ""]
    with pytest.raises(gr.Error, match="not loaded yet"):
        download("../" + OWNER)
    with served.votes.open("a") as file:
        file.write("{oops\n")
    with pytest.raises(gr.Error, match="is not JSON"):
        download(OWNER)


def test_a_damaged_file_is_said_when_a_vote_is_cast(served, page):
    open_vote.toggle(served, page, "fine")
    with served.votes.open("a") as file:
        file.write("{oops\n")
    assert chosen(served, page) is None
    with pytest.raises(RunError, match=r"votes.jsonl:2 is not JSON"):
        open_vote.toggle(served, page, "fine")


def test_the_buttons_say_which_answer_was_chosen(served, page):
    def pressed():
        drawn = "".join(part for part in Handlers(served).draw(page, Display()) if isinstance(part, str))
        return re.findall(r'data-target="best-(\w+)" aria-label="best: [^"]+" aria-pressed="(\w+)"', drawn)

    assert pressed() == [("coarse", "false"), ("fine", "false"), ("baseline", "false")]
    open_vote.toggle(served, page, "fine")
    assert pressed() == [("coarse", "false"), ("fine", "true"), ("baseline", "false")]
