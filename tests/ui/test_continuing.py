"""Answers that were cut off and are continued: what grows, what adds up, and that nothing is lost where it fails."""

from types import SimpleNamespace

import pytest

pytest.importorskip("gradio")

from lite_c2f.chat.panes import AnswerForm
from lite_c2f.ui import saving
from lite_c2f.ui.answering import Notice, Served
from lite_c2f.ui.continuing import continue_answer, continued
from lite_c2f.ui.page_session import PageSession, PageSessions
from lite_c2f.ui.store import conversations
from lite_c2f.ui.store.conversations import Reply, Round

OWNER = "ab" * 16
# 4 tokens: 3 after the first, at 30 per second, are 0.1 s; the first came after 0.5 s.
CUT = Reply("fine", "It is", 4, 30.0, "limit", "", 0.5, reward=-1.0, ratio=0.5, seed=7)
# 7 tokens, so 3 new ones: 2 after the first of these, at 20 per second, are 0.1 s; that came after 0.25 s.
WHOLE = CUT._replace(text="It is 5.", tokens=7, tokens_per_s=20.0, finish="eos", first_token_s=0.25, reward=1.0)
COARSE = CUT._replace(pane="coarse", text="Five.", finish="stop", ratio=None)


def test_tokens_and_times_add_up():
    """6 tokens after the first in 0.1 + 0.1 s are 30 per second; with the waits of 0.75 s it took 0.95 s."""
    reply = continued(CUT, WHOLE)
    assert (reply.text, reply.tokens, reply.finish, reply.reward) == ("It is 5.", 7, "eos", 1.0)
    assert reply.first_token_s == pytest.approx(0.75) and reply.tokens_per_s == pytest.approx(30.0)
    waiting = WHOLE._replace(text="It is", tokens=4, tokens_per_s=0.0, finish=None, first_token_s=None, reward=None)
    assert continued(CUT, waiting).first_token_s == 0.5
    stopped_before_it_began = CUT._replace(text="", tokens=0, tokens_per_s=0.0, finish="stopped", first_token_s=None)
    alone = continued(stopped_before_it_began, WHOLE)
    assert alone.first_token_s == 0.25 and alone.tokens_per_s == pytest.approx(6 / (6 / 20))


def test_an_error_leaves_what_was_written():
    failed = WHOLE._replace(finish="error", message="no memory", reward=None)
    kept = continued(CUT, failed)
    assert (kept.text, kept.finish, kept.message) == ("It is 5.", "stopped", "")
    assert continued(CUT, failed._replace(text="", tokens=4)) is None
    assert continued(CUT, CUT._replace(text="", tokens=0, finish="stopped")) is None  # it never began


@pytest.fixture
def served(tmp_path):
    return Served(SimpleNamespace(ratio=0.5, context=64), PageSessions(), tmp_path / "app", {"name": "toy"})


@pytest.fixture
def page(served):
    page = PageSession()
    page.owner = OWNER
    settings = {"temperature": 0.25, "max_tokens": 4}  # seed and ratio are those that the reply has
    round_ = Round("?", settings, {"coarse": COARSE, "fine": CUT})
    saving.save_transcript(served, page, saving.new_transcript(served, page)._replace(rounds=(round_,)))
    return page


def on_disk(served, page):
    return conversations.load(served.sessions, OWNER, page.transcript.id).rounds[-1]


def answered_with(served, *replies, called=None):
    """The engine gives these replies, one after another. called: gets what it was asked."""

    def stream(turns, panes, settings, **options):
        if called is not None:
            called.append((turns, panes, settings, options["form"]))
        batches = [[reply] for reply in replies]
        return SimpleNamespace(
            waiting=0,
            awaited="",
            unfinished=set(panes),
            batches=lambda _: batches,
            stop=lambda *_: None,
            close=lambda: None,
        )

    served.chat.stream = stream
    return served


def test_the_same_answer_grows_under_its_own_settings_and_seed(served, page):
    first = WHOLE._replace(text="It is", tokens=4, tokens_per_s=0.0, finish=None, first_token_s=None, reward=None)
    called = []
    served = answered_with(served, first, WHOLE._replace(reward=None), WHOLE, called=called)
    shown = [state.rounds[-1].replies["fine"] for state in continue_answer(served, page, "fine", 20) if state]
    assert [(reply.text, reply.finish) for reply in (shown[0], shown[-1])] == [("It is", None), ("It is 5.", "eos")]
    ((turns, panes, settings, form),) = called
    assert [turn.text for turn in turns["fine"]] == ["?"] and panes == ["fine"]
    assert (settings.max_tokens, settings.seed, settings.temperature, settings.ratio) == (24, 7, 0.25, 0.5)
    assert form == AnswerForm(begun="It is", drawn=4)
    last = page.transcript.rounds[-1]
    assert last == on_disk(served, page) and last.others == ()  # the same answer, no variant
    assert last.replies == {"coarse": COARSE, "fine": continued(CUT, WHOLE)}
    assert last.pane_settings == {"fine": settings._asdict()} and last.settings["max_tokens"] == 4


def test_what_ended_by_itself_or_has_no_room_is_not_continued(served, page):
    served = answered_with(served)
    with pytest.raises(Notice, match="has ended"):
        next(continue_answer(served, page, "coarse", 20))
    with pytest.raises(Notice, match="has ended"):
        next(continue_answer(served, page, "base", 20))
    of_a_server = CUT._replace(pane="server@h/m")
    last = page.transcript.rounds[-1]
    page.transcript = page.transcript._replace(
        rounds=(last._replace(replies=last.replies | {"server@h/m": of_a_server}),)
    )
    with pytest.raises(Notice, match="Another server's answer cannot be continued"):
        next(continue_answer(served, page, "server@h/m", 20))
    served.chat.context = 36  # 32 are the prompt's, and 4 the answer has
    with pytest.raises(Notice, match="no room"):
        next(continue_answer(served, page, "fine", 20))
    served.chat.context, called = 38, []
    list(continue_answer(answered_with(served, WHOLE, called=called), page, "fine", 20))
    assert called[0][2].max_tokens == 6  # as many as there is room for


def test_where_it_fails_the_answer_stays_as_it_was_and_the_visitor_is_told(served, page):
    before = page.transcript.rounds
    served = answered_with(served, CUT._replace(text="", tokens=0, finish="error", message="no memory"))
    with pytest.raises(Notice, match="could not be continued: no memory"):
        list(continue_answer(served, page, "fine", 20))
    assert page.transcript.rounds == before == (on_disk(served, page),)
