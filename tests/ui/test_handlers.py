"""Inputs of the chat page, by name: the order in which compare.py hands them over."""

import re
from types import SimpleNamespace

from lite_c2f.chat import ALL_PANES, PANES
from lite_c2f.ui.handlers import Handlers, PageInputs, _draw
from lite_c2f.ui.other_pane import SLOTS
from lite_c2f.ui.page_session import Display, PageSession
from lite_c2f.ui.round_stream import ShownRounds
from lite_c2f.ui.store.conversations import Reply, Round


def test_earlier_rounds_are_sent_once(tmp_path):
    """Of 9 rounds 8 are earlier ones once the ninth has ended; the tenth question sends none of them again."""
    reply = Reply("fine", "Five.", 1, 1.0, "eos", "", 0.1, reward=0.5, repeated=0.0, ratio=1.0, seed=0)
    rounds = tuple(Round(f"Question {n}.", {}, {"fine": reply}) for n in range(10))
    page = PageSession()

    def sent(count, queued=None, display=Display()):
        """The numbers of the rounds in the two parts of Fine's pane; None where it stays as it is."""
        parts = _draw(page, ShownRounds(rounds[:count], queued), display)[1 : 2 * len(SLOTS) : len(SLOTS)]
        return [re.findall(r"Question (\d)", part) if isinstance(part, str) else None for part in parts]

    def numbers(*bounds):
        return [str(n) for n in range(*bounds)]

    assert sent(8) == [[], numbers(8)]
    assert sent(9, queued=0) == [None, numbers(9)]
    assert sent(9) == [numbers(8), numbers(8, 9)]
    assert sent(10, queued=0) == [None, numbers(8, 10)]
    assert sent(10, queued=0, display=Display(marks=True)) == [numbers(8), numbers(8, 10)]
    assert sent(7) == [[], numbers(7)]


def test_inputs_are_named_in_their_order():
    page = PageInputs.of(True, False, "coarse", 0.75, "", "system", 0.7, 1.0, "an owner", "a session")
    assert (page.base, page.display, page.settings) == (True, Display(False, "coarse", 0.75), ("system", 0.7, 1.0))
    assert (page.owner, page.session) == ("an owner", "a session")
    assert page.panes == ALL_PANES and page._replace(base=False).panes == PANES


def test_another_pane_answers_beside_the_fixed_ones_and_only_one_that_the_server_knows():
    def panes(other):
        return PageInputs.of(False, False, "", 1.0, other, "an owner", "a session").panes

    assert panes("fine@0.5") == (*PANES, "fine@0.5")
    assert panes("coarse@best") == (*PANES, "coarse@best")
    assert panes("server@h:1/m") == (*PANES, "server@h:1/m")
    assert panes("folder@a b") == (*PANES, "folder@a b")
    for text in (
        "",
        None,
        "other",
        "fine",
        "coarse@0.5",
        "coarse@best:../other",
        "/etc/passwd",
        "http://127.0.0.1/v1",
        "fine@1e999",
        "fine@-1",
        "server@h",
        "folder@../x",
        "folder@a/b",
        "server@h/" + "m" * 201,
    ):
        assert panes(text) == PANES


def test_the_other_pane_shows_the_answers_of_its_own_ratio():
    reply = Reply("fine@0.5", "Half.", 1, 1.0, "eos", "", 0.1, ratio=0.5, seed=0)
    replies = {"fine@0.5": reply, "fine@0.25": reply._replace(pane="fine@0.25", text="Quarter.", ratio=0.25)}
    state = ShownRounds((Round("?", {}, replies),))

    def other(key):
        return _draw(PageSession(), state, Display(ratio=1.0, other=key))[2 * len(SLOTS) - 1]

    assert "Half." in other("fine@0.5") and "Quarter." not in other("fine@0.5")
    assert "Quarter." in other("fine@0.25")
    assert "stale" not in other("fine@0.5")  # the slider is not its ratio
    for key in ("", "fine@0.75"):
        assert "Half." not in other(key) and "Quarter." not in other(key)


def test_what_is_drawn_later_is_drawn_as_the_page_shows_it(tmp_path):
    """Rewards come when another pane may have been opened, or another session."""
    page, display = PageSession(), Display(other="fine@0.5")
    Handlers(SimpleNamespace(votes=tmp_path / "votes.jsonl")).draw(page, display)
    assert page.display == display
