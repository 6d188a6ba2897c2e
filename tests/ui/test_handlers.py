"""Inputs of the chat page, by name: the order in which compare.py hands them over."""

from lite_c2f.chat import ALL_PANES, PANES
from lite_c2f.ui.handlers import PageInputs
from lite_c2f.ui.page_session import Display


def test_inputs_are_named_in_their_order():
    page = PageInputs.of(True, False, "coarse", 0.75, "system", 0.7, 1.0, "an owner", "a session")
    assert (page.base, page.display, page.settings) == (True, Display(False, "coarse", 0.75), ("system", 0.7, 1.0))
    assert (page.owner, page.session) == ("an owner", "a session")
    assert page.panes == ALL_PANES and page._replace(base=False).panes == PANES
