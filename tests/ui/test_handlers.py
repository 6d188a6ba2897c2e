"""Inputs of the chat page, by name: the order in which compare.py hands them over."""

import re

from lite_c2f.chat import ALL_PANES, PANES
from lite_c2f.ui.handlers import PageInputs, _draw
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
        parts = _draw(page, ShownRounds(rounds[:count], queued), display)[1 : 2 * len(ALL_PANES) : len(ALL_PANES)]
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
    page = PageInputs.of(True, False, "coarse", 0.75, "system", 0.7, 1.0, "an owner", "a session")
    assert (page.base, page.display, page.settings) == (True, Display(False, "coarse", 0.75), ("system", 0.7, 1.0))
    assert (page.owner, page.session) == ("an owner", "a session")
    assert page.panes == ALL_PANES and page._replace(base=False).panes == PANES
