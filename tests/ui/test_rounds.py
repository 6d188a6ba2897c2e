"""Rounds of a page without models: what editing and removing leave on the disk, what a reloaded tab finds again."""

from types import SimpleNamespace

import pytest

pytest.importorskip("gradio")

from lite_c2f.chat import ChatSettings
from lite_c2f.ui import page_session, round_stream, rounds, saving
from lite_c2f.ui.answering import Notice, Served, restored
from lite_c2f.ui.buttons import can_act, can_ask_again
from lite_c2f.ui.page_session import PageSession, PageSessions, history
from lite_c2f.ui.store import conversations
from lite_c2f.ui.store.conversations import PREVIOUS_PANE, Reply, Round
from lite_c2f.ui.store.variants import all_variants

OWNER, TAB = "ab" * 16, "cd" * 16
REPLY = Reply("fine", "It is 5.", 4, 80.0, "eos", "", 0.1, reward=0.5, repeated=0.0, ratio=1.0, seed=7)
FIRST, LAST = (Round(prompt, {"seed": 7}, {"fine": REPLY}) for prompt in ("a", "b"))


@pytest.fixture
def served(tmp_path):
    return Served(None, PageSessions(), tmp_path / "app", {"name": "toy"})


@pytest.fixture
def page(served):
    page = PageSession()
    page.owner = OWNER
    saving.save_transcript(served, page, saving.new_transcript(served, page)._replace(rounds=(FIRST, LAST)))
    return page


def on_disk(served, page):
    return conversations.load(served.sessions, OWNER, page.transcript.id).rounds


def test_edit_leaves_the_disk_as_it_is_until_there_is_a_replacement(served, page):
    assert rounds.edit(page) == "b"
    assert page.transcript.rounds == (FIRST,) and on_disk(served, page) == (FIRST, LAST)
    id = page.transcript.id
    new = Round("c", {"seed": 7}, {})
    saving.save_transcript(served, page, page.transcript._replace(rounds=(FIRST, new)))
    assert page.transcript.id == id and on_disk(served, page) == (FIRST, new)  # the same session, not a second one


def test_redo_takes_an_edit_back_and_brings_removed_rounds_back(served, page):
    assert [rounds.edit(page), rounds.edit(page)] == ["b", "a"]
    with pytest.raises(Notice, match="Ask something first"):
        rounds.edit(page)
    assert rounds.redo(served, page) == "a"
    assert page.transcript.rounds == (FIRST, LAST) == on_disk(served, page)
    rounds.edit(page)
    rounds.remove_last(served, page)  # the first one, with the last one taken off: both are to be had again
    assert page.transcript.rounds == ()
    assert rounds.redo(served, page) == ""
    assert page.transcript.rounds == (FIRST,) == on_disk(served, page)
    rounds.redo(served, page)
    assert page.transcript.rounds == (FIRST, LAST) == on_disk(served, page)
    with pytest.raises(Notice, match="nothing to bring back"):
        rounds.redo(served, page)


def test_nothing_comes_back_where_another_question_stands(served, page):
    rounds.remove_last(served, page)
    new = Round("c", {"seed": 7}, {})
    saving.save_transcript(served, page, page.transcript._replace(rounds=(FIRST, new)))
    assert not rounds.can_redo(page)
    rounds.remove_last(served, page)
    rounds.redo(served, page)
    assert page.transcript.rounds == (FIRST, new)
    rounds.remove_last(served, page)
    rounds.start_over(page)
    assert not rounds.can_redo(page)


def test_a_question_asked_after_an_edit_leaves_the_old_branch_saved(served, page):
    old = page.transcript.id
    rounds.edit(page)
    served = served._replace(chat=chat_of(Stream("One.")))
    *_, last = rounds.ask(served, page, "c", ["fine"], ChatSettings(seed=7))
    assert [round_.prompt for round_ in last.rounds] == ["a", "c"] and page.transcript.id != old
    assert on_disk(served, page) == last.rounds
    assert conversations.load(served.sessions, OWNER, old).rounds == (FIRST, LAST)


def test_a_new_chat_takes_no_edit_back(served, page):
    rounds.edit(page)
    rounds.start_over(page)
    with pytest.raises(Notice, match="Ask something first"):
        rounds.remove_last(served, page)


class Stream:
    """Answers as `Chat.stream` gives them: written, ended, and then scored; `meanwhile` is called before the scores."""

    waiting, awaited, unfinished = 0, "", frozenset({"fine"})

    def __init__(self, text, meanwhile=lambda: None):
        self.reply, self.meanwhile = REPLY._replace(text=text), meanwhile

    def batches(self, timeout):
        yield [self.reply._replace(text="", finish=None, reward=None)]
        yield [self.reply._replace(reward=None)]
        self.meanwhile()
        yield [self.reply]

    def stop(self, pane=None):
        pass

    def close(self):
        pass


def chat_of(*streams):
    streams = list(streams)
    return SimpleNamespace(ratio=0.5, stream=lambda *_, **__: streams.pop(0))


def test_the_next_question_may_be_asked_while_the_last_answers_are_scored(served):
    page, settings, second = PageSession(), ChatSettings(seed=7), []

    def meanwhile():
        with pytest.raises(Notice, match="still being scored"):
            next(rounds.regenerate(served, page, ["fine"], settings))
        second.append(rounds.ask(served, page, "next?", ["fine"], settings))
        shown = next(second[0])
        assert [round_.prompt for round_ in shown.rounds] == ["first?", "next?"]
        assert shown.rounds[0].replies["fine"].text == "One."  # which it reads as the conversation so far

    served = served._replace(chat=chat_of(Stream("One.", meanwhile), Stream("Two.")))
    first = rounds.ask(served, page, "first?", ["fine"], settings)
    next(first)
    assert next(first).rounds[0].replies["fine"].finish is None
    with pytest.raises(Notice, match="still being written"):
        next(rounds.ask(served, page, "too early", ["fine"], settings))
    assert next(first).rounds[0].replies["fine"].finish == "eos"
    assert {name for name, can in can_act(page, 1.0).items() if can} == {"send", "edit", "remove-last", "clear"}
    assert list(first) == [None]  # the second round shows itself
    *_, last = second[0]
    assert [round_.replies["fine"] for round_ in last.rounds] == [
        REPLY._replace(text="One."),
        REPLY._replace(text="Two."),
    ]
    assert conversations.load(served.sessions, page.owner, page.transcript.id).rounds == last.rounds
    assert not page.streams and not page.scoring


def texts(round_):
    """Fine's answers to a question, the oldest first, and the place of the one in view."""
    return [variant.replies["fine"].text for variant in all_variants(round_)], round_.place


def asked(served, page, *answers):
    """A question that was answered so, and asked again for each further answer."""
    served = served._replace(chat=chat_of(*map(Stream, answers)))
    for number, _ in enumerate(answers):
        settings = ChatSettings(seed=number)
        again = rounds.regenerate(served, page, ["fine"], settings)
        list(again if number else rounds.ask(served, page, "first?", ["fine"], settings))


def test_regenerate_keeps_the_answers_before_and_the_next_question_reads_those_in_view(served):
    page = PageSession()
    page.owner = OWNER
    asked(served, page, "One.", "Two.", "Three.")
    assert texts(page.transcript.rounds[-1]) == (["One.", "Two.", "Three."], 2)
    assert on_disk(served, page) == page.transcript.rounds
    rounds.turn(served, page, -1)
    assert texts(page.transcript.rounds[-1]) == (["One.", "Two.", "Three."], 1)
    assert page.transcript.rounds[-1].settings["seed"] == 1
    reloaded = PageSession()  # by the disk alone
    saving.identify(served, reloaded, OWNER, page.transcript.id)
    assert texts(reloaded.transcript.rounds[-1]) == (["One.", "Two.", "Three."], 1)
    read = {}
    chat = SimpleNamespace(ratio=0.5, stream=lambda turns, *_, **__: read.update(turns) or Stream("Four."))
    list(rounds.ask(served._replace(chat=chat), reloaded, "next?", ["fine"], ChatSettings()))
    assert [turn.text for turn in read["fine"]] == ["first?", "Two.", "next?"]
    assert len(conversations.list_sessions(served.sessions, OWNER)) == 1


def test_answers_that_had_not_begun_when_the_page_was_reloaded_were_stopped(served):
    page = PageSession()
    page.owner = OWNER
    chat = chat_of(Stream("One."))
    begun = rounds.ask(served._replace(chat=chat), page, "first?", ["coarse", "fine"], ChatSettings(seed=7))
    assert next(begun).rounds[-1].replies == {}  # the page waits for them
    (round_,) = on_disk(served, page)
    assert {pane: (reply.text, reply.finish, reply.seed, reply.ratio) for pane, reply in round_.replies.items()} == {
        "coarse": ("", "stopped", 7, None),
        "fine": ("", "stopped", 7, 0.5),
    }
    list(begun)
    (round_,) = on_disk(served, page)  # of the coarse one nothing was heard
    assert [(reply.text, reply.finish) for reply in round_.replies.values()] == [("", "stopped"), ("One.", "eos")]
    # The next question builds on no answer that was never given.
    assert [len(history(page.transcript, pane)) for pane in ("coarse", "fine")] == [0, 2]


def test_a_server_killed_while_it_regenerates_has_lost_no_answer(served, monkeypatch):
    """What is on the disk at each moment has the earlier answer, in view or not."""
    monkeypatch.setattr(round_stream, "SAVE_EVERY", -1)
    page = PageSession()
    page.owner = OWNER
    asked(served, page, "One.")
    begun = rounds.regenerate(served._replace(chat=chat_of(Stream("Two."))), page, ["fine"], ChatSettings())
    seen = [texts(on_disk(served, page)[-1]) for _ in begun]
    assert seen[:2] == [(["One."], 0), (["One.", ""], 1)] and seen[-1] == (["One.", "Two."], 1)


def test_which_answers_can_be_turned_to(served):
    page = PageSession()
    page.owner = OWNER
    asked(served, page, "One.", "Two.")

    def on():
        return {name for name, can in can_act(page, 1.0).items() if can} & {"previous-answers", "next-answers"}

    assert on() == {"previous-answers"}
    rounds.turn(served, page, -1)
    assert on() == {"next-answers"}
    with pytest.raises(Notice, match="no other answers"):
        rounds.turn(served, page, -1)
    page.scoring["compare"] = None  # its scores would be lost
    assert on() == set()
    with pytest.raises(Notice, match="still being scored"):
        rounds.turn(served, page, 1)
    page.scoring.clear()
    list(rounds.ask(served._replace(chat=chat_of(Stream("Three."))), page, "next?", ["fine"], ChatSettings()))
    before = on_disk(served, page)
    rounds.edit(page)  # the round with two is shown as the last, and a later one is saved
    assert on() == set()
    with pytest.raises(Notice, match="no other answers"):
        rounds.turn(served, page, 1)
    assert on_disk(served, page) == before


def test_removed_variants_come_back_all_of_them(served):
    page = PageSession()
    asked(served, page, "One.", "Two.")
    rounds.turn(served, page, -1)
    before = page.transcript.rounds
    rounds.remove_last(served, page)
    rounds.redo(served, page)
    assert page.transcript.rounds == before and texts(before[-1]) == (["One.", "Two."], 0)


def test_one_pane_is_asked_again_beside_the_answers_of_the_others(served):
    page, coarse = PageSession(), REPLY._replace(pane="coarse", text="C.")
    first = Round("?", {"seed": 1}, {"coarse": coarse, "fine": REPLY, PREVIOUS_PANE: REPLY})
    saving.save_transcript(served, page, saving.new_transcript(served, page)._replace(rounds=(first,)))
    settings = ChatSettings(seed=5, max_tokens=9)
    begun = rounds.ask_again(served._replace(chat=chat_of(Stream("Two."))), page, "fine", settings)
    shown = next(begun).rounds[-1]
    assert shown.replies == {"coarse": coarse}  # the answer before is not shown as this one
    list(begun)
    last = page.transcript.rounds[-1]
    assert {pane: reply.text for pane, reply in last.replies.items()} == {"coarse": "C.", "fine": "Two."}
    assert (last.settings, last.pane_settings) == ({"seed": 1}, {"fine": settings._asdict()})
    rounds.turn(served, page, -1)
    assert page.transcript.rounds[-1].replies == first.replies and page.transcript.rounds[-1].pane_settings == {}


def test_no_pane_is_asked_again_while_a_question_is_taken_off(served, page):
    assert can_ask_again(page)
    rounds.edit(page)  # the round before is shown as the last: its pane is not the one that would be asked
    assert not can_ask_again(page)
    with pytest.raises(Notice, match="bring it back"):
        next(rounds.ask_again(served, page, "fine", ChatSettings()))
    assert on_disk(served, page) == (FIRST, LAST)


def test_fine_at_another_ratio_keeps_the_answers_before_and_a_pane_that_joins_replaces_none(served):
    page = PageSession()
    asked(served, page, "One.", "Two.")
    base = Stream("Base.")
    base.reply = base.reply._replace(pane="base")
    list(rounds.regenerate_panes(served._replace(chat=chat_of(base)), page, ["base"]))
    joined = page.transcript.rounds[-1]
    assert texts(joined) == (["One.", "Two."], 1) and list(joined.replies) == ["fine", "base"]
    list(rounds.regenerate_panes(served._replace(chat=chat_of(Stream("Half."))), page, ["fine"], 0.5))
    last = page.transcript.rounds[-1]
    assert texts(last) == (["One.", "Two.", "Half."], 2)
    assert (last.replies["base"].text, last.replies[PREVIOUS_PANE].text) == ("Base.", "Two.")


def test_scores_of_a_round_that_was_removed_bring_nothing_back(served):
    page, settings = PageSession(), ChatSettings(seed=7)
    served = served._replace(chat=chat_of(Stream("One.", lambda: rounds.remove_last(served, page))))
    *_, last = rounds.ask(served, page, "first?", ["fine"], settings)
    assert last.rounds == () and page.transcript.rounds == ()


def test_rewards_that_come_after_the_page_was_left_are_saved(served):
    """Gradio closes the stream of such a page with the next update."""
    page = PageSession()
    page.owner = OWNER
    stream = rounds.ask(served._replace(chat=chat_of(Stream("One."))), page, "first?", ["fine"], ChatSettings(seed=7))
    for shown in stream:
        if shown.rounds[-1].replies and shown.rounds[-1].replies["fine"].reward is not None:
            stream.close()
    assert on_disk(served, page)[-1].replies["fine"].reward == REPLY.reward


def test_which_buttons_can_do_something(page):
    def on(ratio=1.0):
        return {name for name, can in can_act(page, ratio).items() if can}

    assert on() == {"send", "regenerate", "edit", "remove-last", "clear"}
    assert on(ratio=0.5) - on() == {"regenerate-fine"}  # its answer was made at 1
    rounds.edit(page), rounds.edit(page)
    assert on() == {"send", "redo"}
    page.transcript = None
    assert on() == {"send"}
    page.streams["compare"] = SimpleNamespace(unfinished={"fine", "base"})
    assert on() == {"stop-all", "stop-fine", "stop-base"}  # the others' answers have ended


def test_a_reloaded_tab_goes_on_with_its_views_and_no_other_does():
    pages = PageSessions()
    pages.continued("before", TAB).view_state["vote"] = "a ballot"
    pages.close("before")
    assert pages.continued("after", TAB).view_state == {"vote": "a ballot"}
    assert pages.continued("another", "ef" * 16).view_state == {}
    duplicate = pages.continued("duplicate", TAB)
    duplicate.view_state["vote"] = "its own ballot"
    assert pages.continued("reloaded", TAB).view_state == {"vote": "its own ballot"}  # of the one that came last
    for name, ballot in (("after", "a ballot"), ("duplicate", "its own ballot")):  # each view of a page asks for it
        assert pages.continued(name, TAB).view_state == {"vote": ballot}
    for invalid in ("", TAB.upper(), TAB + "\n"):  # is nobody's: two pages that have it share nothing
        pages.continued("one", invalid).view_state["vote"] = "a ballot"
        assert pages.continued("two", invalid).view_state == {}


def test_rounds_removed_before_a_tab_was_duplicated_come_back_in_both(served):
    pages = served.pages
    page = pages.continued("one", TAB)
    saving.save_transcript(served, page, saving.new_transcript(served, page)._replace(rounds=(FIRST,)))
    rounds.remove_last(served, page)
    duplicate = pages.continued("two", TAB)
    rounds.start_over(duplicate)
    rounds.redo(served, page)
    assert page.transcript.rounds == (FIRST,)


def test_a_page_whose_connection_was_lost_comes_back_as_it_was(monkeypatch):
    monkeypatch.setattr(page_session, "MAX_LEFT", 2)
    pages, stopped = PageSessions(), []
    mine, *_ = opened = [pages.of(name) for name in "abc"]
    mine.view_state["vote"], mine.identified = "a ballot", True
    mine.begin("vote", SimpleNamespace(stop=stopped.append))
    for name in "ab":
        pages.close(name)
    assert stopped == [None]
    assert pages.of("a") is mine is pages.of("a")
    for name in "ac":
        pages.close(name)
    assert [pages.of(name) is page for name, page in zip("abc", opened, strict=True)] == [True, False, True]
    pages.close(None), pages.close("unknown")
    assert pages.of("unknown").view_state == {}


def test_an_answer_that_a_reload_interrupted_was_stopped():
    replies = restored({"A": REPLY, "B": REPLY._replace(finish=None), "C": REPLY._replace(finish="")})
    assert [reply.finish for reply in replies.values()] == ["eos", "stopped", "stopped"]
