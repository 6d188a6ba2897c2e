"""The other pane: its key, its replies among those of a round, and the buttons that stand for it."""

import asyncio
import gc
from types import SimpleNamespace

import gradio as gr
import pytest
from chat_servers import ChatServer, says

from lite_c2f.chat import Pane
from lite_c2f.chat.panes import Listed, pane_of, title_of
from lite_c2f.chat.remote_servers import RemoteServers
from lite_c2f.data.records import Turn
from lite_c2f.errors import ConfigError
from lite_c2f.ui import other_pane
from lite_c2f.ui.answering import Notice
from lite_c2f.ui.buttons import can_act
from lite_c2f.ui.open_vote import comparable
from lite_c2f.ui.other_pane import SECOND_FINE, about_other, choices, chosen_pane, known, other_in, second_fine, slot_of
from lite_c2f.ui.other_row import ABOUT, LISTED_LATER, _about, _listed, connect_other, other_row
from lite_c2f.ui.page_session import Display, PageSession, history
from lite_c2f.ui.render import conversation, round_figures
from lite_c2f.ui.sessions import _as_markdown, settings_in
from lite_c2f.ui.store import conversations
from lite_c2f.ui.store.conversations import PREVIOUS_PANE, Reply, Round, Transcript

COARSE = Reply("coarse", "one two three four five six seven eight", 8, 1.0, "eos", "", 0.1, reward=1.0)
FINE = COARSE._replace(pane="fine", text="It is a blue box.", ratio=0.5)
SECOND = COARSE._replace(pane="fine@0.5", text="one two three four and a red box", ratio=0.5)


def test_a_ratio_names_its_pane():
    assert [second_fine(ratio) for ratio in (0, 0.5, 2, 1e-7)] == ["fine@0", "fine@0.5", "fine@2", "fine@1e-07"]
    assert pane_of("fine@1e-07") == Pane("fine@1e-07", "fine", 1e-07)
    for ratio in (None, -0.5, float("nan"), float("inf")):
        with pytest.raises(Notice, match="a number, 0 or more"):
            second_fine(ratio)
    with pytest.raises(ConfigError, match=r"pane .coarse@0\.5."):
        pane_of("coarse@0.5")


def test_what_is_listed_can_be_opened_and_nothing_else():
    listed = [Listed("coarse@best", "Coarse Actor, best policy (adds 40 MiB)")]
    assert choices(listed) == [("A second Fine, at a ratio of its own", ""), (listed[0].label, "coarse@best")]
    assert chosen_pane("coarse@best", None, listed) == "coarse@best"
    assert [chosen_pane(choice, 0.5, listed) for choice in ("", None)] == ["fine@0.5"] * 2
    for choice in ("coarse@last", "coarse", "fine@0.5", "/etc/passwd", "http://127.0.0.1/v1", listed[0].label):
        with pytest.raises(Notice, match="no such actor"):
            chosen_pane(choice, 0.5, listed)


def test_another_actor_is_a_pane_of_its_own():
    policy = COARSE._replace(pane="coarse@best", text="one two three four and <b>")
    merged = FINE._replace(pane="fine@merged:<b>x", ratio=0.25)
    round_ = Round("?", {}, {"coarse": COARSE, "fine": FINE, "coarse@best": policy, "fine@merged:<b>x": merged})
    assert [known(key) for key in round_.replies] == ["", "", "coarse@best", "fine@merged:<b>x"]
    assert other_in(round_) == "fine@merged:<b>x" and other_in(round_._replace(replies={"coarse@best": policy}))
    assert about_other("coarse@best")[1] == "Base model after RL, at another update of this run"
    assert "this run's reward model" in about_other("fine@merged:<b>x")[1]
    table = round_figures(round_)
    assert "<th>Coarse Actor, best policy" in table and "<th>Fine Actor of &lt;b&gt;x" in table
    assert "<del>" in conversation([round_], "fine@merged:<b>x", Display(against="coarse"))
    assert "<del>" not in conversation([round_], "coarse@best", Display(against="coarse"))
    html = conversation([round_], "coarse@best", Display(ratio=0.75), acts=True)
    assert 'aria-label="ask again: Coarse Actor, best policy"' in html and "stale" not in html
    assert comparable(round_) == ("coarse", "fine")  # it takes no part in votes


def test_a_session_with_another_actor_opens_again(tmp_path):
    policy = COARSE._replace(pane="coarse@best:a b")
    saved = conversations.new("a" * 32, {})._replace(
        rounds=(Round("?", {}, {"fine": FINE, "coarse@best:a b": policy}),)
    )
    conversations.save(tmp_path, saved)
    assert conversations.load(tmp_path, saved.owner, saved.id) == saved
    assert settings_in(saved.rounds[0])[2] == "coarse@best:a b"
    assert "Coarse Actor of a b, best policy" in _as_markdown(saved)


def test_a_model_of_another_server_is_a_pane_of_its_own(tmp_path):
    key = "server@h:1/<b>/m"
    cut = COARSE._replace(pane=key, text="one two three four and <b>", finish="limit")
    round_ = Round("?", {}, {"coarse": COARSE, "fine": FINE, key: cut})
    assert known(key) == other_in(round_) == settings_in(round_)[2] == key and slot_of(key) == "other"
    assert about_other(key)[0] == "<b>/m at h:1" and "without top-k and repetition penalty" in about_other(key)[1]
    assert "<th>&lt;b&gt;/m at h:1" in round_figures(round_)
    html = conversation([round_], key, Display(ratio=0.75, against="coarse", marks=True), acts=True)
    assert "<b>" not in html and "<del>" not in html and "stale" not in html and "kept" not in html
    assert 'data-target="again-other" aria-label="ask again: &lt;b&gt;/m at h:1"' in html
    assert "continue-other" not in html and "continue-fine" in conversation(
        [round_._replace(replies={"fine": FINE._replace(finish="limit")})], "fine", acts=True
    )
    assert comparable(round_) == ("coarse", "fine")  # it takes no part in votes
    of_folder = conversation([Round("?", {}, {"folder@m": cut._replace(pane="folder@m")})], "folder@m", acts=True)
    assert "continue-other" in of_folder and 'aria-label="ask again: m"' in of_folder
    assert about_other("folder@m")[0] == "m" and "own chat template" in about_other("folder@m")[1]
    saved = conversations.new("a" * 32, {})._replace(rounds=(round_,))
    conversations.save(tmp_path, saved)
    assert conversations.load(tmp_path, saved.owner, saved.id) == saved and "m at h" in _as_markdown(saved)
    assert history(saved, key) == [Turn("human", "?"), Turn("assistant", cut.text)]


# Gradio leaves event loops and their sockets to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_servers_are_asked_for_their_models_when_the_page_has_been_drawn(monkeypatch):
    """The row begins without them; a list that has nothing of a server says why."""
    server = ChatServer()
    servers = RemoteServers([server.url])
    others = SimpleNamespace(
        ratio=1.0,
        servers=servers,
        models=None,
        loading="",
        listed_others=lambda *, fresh=True: servers.listed(fresh=fresh),
    )
    served, page = SimpleNamespace(chat=others), PageSession()
    try:
        with gr.Blocks():
            row = other_row(served)
            assert server.requests == [] and row.choice.visible is True and len(row.choice.choices) == 1
            server.listing = says(b"{}", status=500)
            first = _listed(served, page)
            assert first.choices == [SECOND_FINE]
            assert f"{server.place}: its models cannot be listed: HTTP 500." in first.info
            assert _listed(served, page) == gr.skip()  # nothing is new
            assert len(server.requests) == 1
            server.listing = server.give_list
            others.servers = servers = RemoteServers([server.url])
            assert _listed(served, page).choices[1:] == [
                (f"llama at {server.place} (another server)", f"server@{server.place}/llama")
            ]
            others.servers = servers = RemoteServers()
            assert _about(others) == ABOUT
            others.loading = "the models are being loaded"
            assert _about(others) == ABOUT + LISTED_LATER
            name = f"server@{server.place}/llama"  # the list, which may be open, becomes no shorter
            assert _listed(served, page).choices[1:] == [(f"llama at {server.place} (no longer there)", name)]
            assert _listed(served, page) == gr.skip()
            assert _listed(served, page, opened=True).choices == [SECOND_FINE]
            assert _listed(served, page) == gr.skip() != _listed(served, page, opened=True)
    finally:
        server.close()
        gc.collect()


def test_what_is_no_key_has_no_place():
    assert known("fine@0.5") == "fine@0.5"
    assert [known(key) for key in ("", None, "fine", "fine@", "fine@x", PREVIOUS_PANE, "fine@1e999")] == [""] * 7
    assert (slot_of("fine"), slot_of("fine@0.5"), title_of("fine@0.5")) == ("fine", "other", "Second Fine at ratio 0.5")
    assert title_of(PREVIOUS_PANE) == title_of("<b>") == ""


def test_its_conversation_is_that_of_its_ratio_alone():
    rounds = (Round("a", {}, {"fine": FINE, "fine@0.5": SECOND}), Round("b", {}, {"fine": FINE}))
    transcript = Transcript("", "", "", "", rounds, {})
    assert history(transcript, "fine@0.5") == [Turn("human", "a"), Turn("assistant", SECOND.text)]
    assert history(transcript, "fine@0.25") == []


def test_a_saved_session_opens_the_pane_that_answered_last():
    quarter = SECOND._replace(pane="fine@0.25")
    both = Round("?", {}, {"fine": FINE, "fine@0.5": SECOND, "fine@0.25": quarter, PREVIOUS_PANE: FINE})
    assert other_in(both) == "fine@0.25" == settings_in(both)[2]
    old = Round("?", {}, {"fine": FINE, PREVIOUS_PANE: FINE})  # of a session from before there was such a pane
    assert other_in(old) == "" == settings_in(old)[2]


def test_two_fines_at_one_ratio_have_columns_of_their_own():
    table = round_figures(Round("?", {}, {"coarse": COARSE, "fine": FINE, "fine@0.5": SECOND}))
    assert table.count("<th>Fine Actor at ratio 0.5") == table.count("<th>Second Fine at ratio 0.5") == 1
    assert "50%" in table  # 4 of the second one's 8 words


def test_its_answer_has_marks_and_changes_and_buttons_of_its_own():
    round_ = Round("?", {}, {"coarse": COARSE, "fine": FINE, "fine@0.5": SECOND})
    marked = conversation([round_], "fine@0.5", Display(marks=True))
    assert '<mark class="kept">one two three four</mark>' in marked
    assert "<del>" in conversation([round_], "fine@0.5", Display(against="coarse"))
    html = conversation([round_], "fine@0.5", acts=True)
    assert 'data-target="again-other" aria-label="ask again: Second Fine at ratio 0.5"' in html
    assert comparable(round_) == ("coarse", "fine")  # it takes no part in votes


def test_its_stop_stands_for_whatever_ratio_it_has():
    page = PageSession()
    page.streams["compare"] = SimpleNamespace(unfinished={"fine@0.5"})
    assert {name for name, can in can_act(page, 1.0).items() if can} == {"stop-all", "stop-other"}


def test_a_pane_that_is_opened_again_is_closed_in_between(monkeypatch):
    """So that it answers the last question, of which it has no answer: else nothing would have changed."""
    monkeypatch.setattr(other_pane, "REOPENED", 0)
    transcript = conversations.new("a" * 32, {})._replace(rounds=(Round("?", {}, {"fine": FINE}),))
    for key, now, of, given in (
        ("fine@0.5", "", transcript, ["fine@0.5"]),
        ("fine@0.5", "fine@0.5", transcript, ["", "fine@0.5"]),
        ("fine@0.5", "fine@0.5", None, ["fine@0.5"]),
        ("fine@0.5", "fine@0.5", transcript._replace(rounds=()), ["fine@0.5"]),
        ("fine", "fine", transcript, ["fine"]),  # it has answered
    ):
        assert list(other_pane.opening(key, now, of)) == given


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_page_of_the_last_moment_of_loading_lists_what_was_loaded(monkeypatch):
    """The event may begin when there is nothing to wait for any more."""
    chat = SimpleNamespace(
        ratio=1.0,
        servers=RemoteServers(),
        models=None,
        loading="the models are being loaded",
        is_loaded=False,
        listed_others=lambda *, fresh=True: (
            [] if chat.loading else [Listed("coarse@best", "Coarse Actor, best policy")]
        ),
    )
    served = SimpleNamespace(chat=chat, pages=SimpleNamespace(of=lambda session: page))
    page, request = PageSession(), SimpleNamespace(session_hash="s")
    with gr.Blocks() as blocks:
        row = other_row(served)
        connect_other(served, row, lambda *_: None, [gr.Column(), gr.HTML()])
    (when_loaded,) = (each.fn for each in blocks.fns.values() if each.name == "listed_when_loaded")
    assert _listed(served, page, opened=True).choices == [SECOND_FINE]
    chat.loading = ""
    assert ("Coarse Actor, best policy", "coarse@best") in asyncio.run(when_loaded(request)).choices
    del blocks
    gc.collect()
