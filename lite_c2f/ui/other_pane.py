"""The other pane of Compare, beside the fixed ones: the Fine Actor once more, at a ratio of its own, or another actor.

Another actor is the Coarse Actor of another moment of the training, an actor of another run in the same folder, a model
of another server, or one of the folder of models. The
replies are saved under a name that says what made them, such as `fine@0.5` or `coarse@best`: under another name it is
another pane, which reads nothing that was answered in this one. A page shows one such pane at a time. The page offers
names that the server lists; a name that comes from a page is only looked up in that list.
"""

import math
import time
from collections.abc import Iterator, Sequence

from lite_c2f.actors.names import FINE, ratio_in
from lite_c2f.chat import ALL_PANES
from lite_c2f.chat.folder_names import ABOUT_FOLDER, folder_model_in
from lite_c2f.chat.other_actors import about_other_actor, other_actor_in
from lite_c2f.chat.panes import Listed, pane_of, title_of
from lite_c2f.chat.server_names import ABOUT, server_model_in
from lite_c2f.ui.answering import Notice
from lite_c2f.ui.page_session import Display
from lite_c2f.ui.store.conversations import Round, Transcript

REOPENED = 0.5  # seconds that a pane which is opened again is closed: the page needs them to draw it so
OTHER = "other"  # its place in the page: part of element ids, never a key of replies
SLOTS = (*ALL_PANES, OTHER)  # places of panes in the page
SECOND_FINE = ("A second Fine, at a ratio of its own", "")  # a choice: label, value


def second_fine(ratio: float | None) -> str:
    """The pane of the Fine Actor at a ratio. Raises Notice for what is no ratio."""
    if ratio is None or not (math.isfinite(ratio) and ratio >= 0):
        raise Notice("Give the second Fine a ratio first: a number, 0 or more")
    return f"{FINE}@{ratio:g}"


def choices(listed: Sequence[Listed]) -> list[tuple[str, str]]:
    """What can be opened as the other pane: (label, value)."""
    return [SECOND_FINE, *((other.label, other.name) for other in listed)]


def chosen_pane(choice: str | None, ratio: float | None, listed: Sequence[Listed]) -> str:
    """The pane that a choice opens. Raises Notice for what is not listed, or no ratio."""
    if not choice:
        return second_fine(ratio)
    if choice not in [other.name for other in listed]:
        raise Notice("There is no such actor (any more): choose one from the list")
    return choice


def known(key: str | None) -> str:
    """The key of an other pane, as a page sent it; "" where it is none."""
    if not isinstance(key, str):
        return ""
    ratio = ratio_in(key)
    names_other = other_actor_in(key) or server_model_in(key) or folder_model_in(key)
    return key if names_other or (ratio is not None and math.isfinite(ratio)) else ""


def actor_of(key: str) -> str:
    """The actor of a pane, the other one included; any other key is its own."""
    return pane_of(key).actor if known(key) else key


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
    other = other_actor_in(key)
    if server_model_in(key):
        return title_of(key), ABOUT
    if folder_model_in(key):
        return title_of(key), ABOUT_FOLDER
    return title_of(key), about_other_actor(other) if other else "Instruct model + another share of what RL learned"


def opening(key: str, now: str, transcript: Transcript | None) -> Iterator[str]:
    """The keys that the page is given in turn to open a pane. now: the key of the one that is open.

    A pane that is opened again, as the last question has no answer of it yet, is closed in between: the page acts on
    another key alone.
    """
    last = transcript.rounds[-1] if transcript and transcript.rounds else None
    if key == now and last is not None and key not in last.replies:
        yield ""
        time.sleep(REOPENED)
    yield key
