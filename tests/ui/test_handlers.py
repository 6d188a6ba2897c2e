"""Inputs of the chat page, by name: the order in which compare.py hands them over."""

from lite_c2f.chat import ALL_PANES, PANES
from lite_c2f.ui.handlers import PageInputs


def test_inputs_are_named_in_their_order():
    page = PageInputs.of(True, False, 0.75, "system", 0.7, 1.0, "an owner", "a session")
    assert (page.base, page.marks, page.ratio, page.settings) == (True, False, 0.75, ("system", 0.7, 1.0))
    assert (page.owner, page.session) == ("an owner", "a session")
    assert page.panes == ALL_PANES and page._replace(base=False).panes == PANES
