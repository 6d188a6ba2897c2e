"""The other pane of Compare: the Fine Actor once more, at a ratio of its own, beside the fixed panes.

Its replies are saved under a name that says what made them, such as `fine@0.5`: at another ratio it is another pane,
which reads nothing that was answered at this one. A page shows one such pane at a time.
"""

import math

from lite_c2f.actors.names import FINE, ratio_in
from lite_c2f.chat import ALL_PANES
from lite_c2f.chat.panes import title_of
from lite_c2f.ui.answering import Notice
from lite_c2f.ui.page_session import Display
from lite_c2f.ui.store.conversations import Round

OTHER = "other"  # its place in the page: part of element ids, never a key of replies
SLOTS = (*ALL_PANES, OTHER)  # places of panes in the page


def second_fine(ratio: float | None) -> str:
    """The pane of the Fine Actor at a ratio. Raises Notice for what is no ratio."""
    if ratio is None or not (math.isfinite(ratio) and ratio >= 0):
        raise Notice("Give the second Fine a ratio first: a number, 0 or more")
    return f"{FINE}@{ratio:g}"


def known(key: str | None) -> str:
    """The key of an other pane, as a page sent it; "" where it is none."""
    return key if key and ratio_in(key) is not None and math.isfinite(ratio_in(key) or 0.0) else ""


def key_in(slot: str, display: Display) -> str:
    """The key of the replies that a place shows; "" for the other pane where none is open."""
    return known(display.other) if slot == OTHER else slot


def slot_of(key: str) -> str:
    """The place of the pane with that key."""
    return key if key in ALL_PANES else OTHER


def other_in(round_: Round) -> str:
    """The other pane that answered last in a round; "" where none did."""
    return next((key for key in reversed(round_.replies) if known(key)), "")


def about_other(key: str) -> tuple[str, str]:
    """Title of the other pane, and what it is."""
    return title_of(key), "Instruct model + another share of what RL learned"
