"""Conversations on the disk: what one page saves, another finds, and what happens where they meet."""

import pytest

pytest.importorskip("gradio")

import gradio as gr

from lite_c2f.ui import saving
from lite_c2f.ui.answering import Served
from lite_c2f.ui.page_session import PageSession, PageSessions
from lite_c2f.ui.store import conversations
from lite_c2f.ui.store.conversations import Reply, Round

OWNER = "ab" * 16
REPLY = Reply("fine", "It is 5.", 4, 80.0, "eos", "", 0.1, reward=0.5, repeated=0.0, ratio=1.0, seed=7)
CUT = REPLY._replace(text="It", tokens=1, finish="stopped", reward=None)


def round_(prompt, **replies):
    return Round(prompt, {"seed": 7}, replies)


@pytest.fixture
def served(tmp_path):
    return Served(None, PageSessions(), tmp_path / "app", {"name": "toy"})


def new_page():
    page = PageSession()
    page.owner = OWNER
    return page


def rounds_on_disk(served):
    return {entry.id: entry.rounds for entry in conversations.list_sessions(served.sessions, OWNER)}


@pytest.mark.parametrize(
    ("saved", "on_disk", "expected"),
    [
        ([], [], True),
        ([round_("a", fine=CUT)], [round_("a", fine=REPLY)], True),  # it went on being written
        ([round_("a", fine=CUT)], [round_("a", fine=REPLY, coarse=REPLY)], True),
        ([round_("a")], [round_("a", fine=CUT)], True),
        ([round_("a", fine=REPLY._replace(reward=None))], [round_("a", fine=REPLY)], True),  # it was scored since
        ([round_("a", fine=REPLY)], [round_("a", fine=REPLY, base=REPLY)], False),  # shown in another tab
        ([round_("a", fine=REPLY)], [round_("a", fine=CUT)], False),  # another answer in another tab
        ([round_("a", fine=CUT)], [round_("a", fine=REPLY._replace(text="No."))], False),
        ([round_("a", fine=REPLY)], [round_("a", fine=REPLY._replace(text="It is 5. Or 6."))], False),
        ([round_("a", fine=CUT)], [round_("a")], False),
        ([round_("a", fine=CUT)], [round_("b", fine=CUT)], False),
        ([round_("a", fine=CUT)], [round_("a", fine=CUT)._replace(settings={"seed": 8})], False),
        ([round_("a", fine=CUT), round_("b")], [round_("a", fine=REPLY), round_("b")], False),
        ([round_("a")], [round_("a"), round_("b")], False),
    ],
)
def test_what_another_page_has_gone_on_with(saved, on_disk, expected):
    assert saving.is_continuation(saved, on_disk) is expected


def test_a_page_loaded_anew_goes_on_with_its_session(served):
    """The old page saves once more after the new one has read: still one session."""
    old, new = new_page(), new_page()
    begun = saving.new_transcript(served, old)
    saving.save_transcript(served, old, begun._replace(rounds=(round_("a", fine=CUT),)))
    saving.reopen(served, new, begun.id)
    saving.save_transcript(served, old, old.transcript._replace(rounds=(round_("a", fine=REPLY),)))
    saving.save_transcript(served, new, new.transcript._replace(rounds=(*new.transcript.rounds, round_("b"))))
    assert rounds_on_disk(served) == {begun.id: 2}


def test_what_two_tabs_go_on_with_is_saved_twice(served):
    one, other = new_page(), new_page()
    begun = saving.new_transcript(served, one)
    saving.save_transcript(served, one, begun._replace(rounds=(round_("a", fine=REPLY),)))
    saving.reopen(served, other, begun.id)
    for page, prompt in ((one, "b"), (other, "c")):
        saving.save_transcript(served, page, page.transcript._replace(rounds=(*page.transcript.rounds, round_(prompt))))
    assert sorted(rounds_on_disk(served).values()) == [2, 2]
    assert other.transcript.id != begun.id == one.transcript.id


def test_a_pane_that_another_tab_has_shown_keeps_its_answer(served):
    one, other = new_page(), new_page()
    begun = saving.new_transcript(served, one)
    saving.save_transcript(served, one, begun._replace(rounds=(round_("a", fine=REPLY),)))
    saving.reopen(served, other, begun.id)
    saving.save_transcript(served, other, other.transcript._replace(rounds=(round_("a", fine=REPLY, base=REPLY),)))
    saving.save_transcript(served, one, one.transcript._replace(rounds=(round_("a", fine=REPLY), round_("b"))))
    assert conversations.load(served.sessions, OWNER, begun.id).rounds == (round_("a", fine=REPLY, base=REPLY),)
    assert sorted(rounds_on_disk(served).values()) == [1, 2]


def test_a_page_that_has_not_told_its_owner_saves_nothing(served):
    """It would be saved under a number that no browser knows."""
    for owner in ("", "AB" * 16, None):
        with pytest.raises(gr.Error, match="not loaded yet: try again in a moment, or reload it"):
            saving.page_of(served, "hash", owner, "")
    page = saving.page_of(served, "hash", OWNER, "")
    assert page.owner == OWNER and page is saving.page_of(served, "hash", "", "")  # it is known now


def test_a_save_that_failed_is_made_good_by_the_next(served, monkeypatch):
    page = new_page()
    begun = saving.new_transcript(served, page)
    saving.save_transcript(served, page, begun._replace(rounds=(round_("a"),)))
    with monkeypatch.context() as patched:
        patched.setattr(conversations, "save", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
        saving.save_transcript(served, page, page.transcript._replace(rounds=(round_("a", fine=CUT),)), quiet=True)
    assert page.transcript.rounds[0].replies["fine"] == CUT
    saving.save_transcript(served, page, page.transcript._replace(rounds=(round_("a", fine=REPLY),)))
    assert rounds_on_disk(served) == {begun.id: 1}
    assert conversations.load(served.sessions, OWNER, begun.id).rounds[0].replies["fine"] == REPLY


def test_a_folder_that_may_not_be_read_ends_no_answer(served, monkeypatch):
    page = new_page()
    monkeypatch.setattr(conversations, "load", lambda *_: (_ for _ in ()).throw(PermissionError("not yours")))
    saving.save_transcript(served, page, saving.new_transcript(served, page)._replace(rounds=(round_("a"),)))
    assert page.transcript.rounds[0].prompt == "a"
    saving.identify(served, new_page(), OWNER, "cd" * 16)
