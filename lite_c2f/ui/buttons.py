"""Buttons of the chat page: which of them can do something now."""

from lite_c2f.actors.names import FINE
from lite_c2f.ui.other_pane import SLOTS, slot_of
from lite_c2f.ui.page_session import PageSession
from lite_c2f.ui.round_stream import VIEW
from lite_c2f.ui.rounds import can_redo, can_turn, was_edited

# Buttons that `draw` enables or disables, by their element ids; each pane has one that stops it.
ACTIONS = ("send", "stop-all", "regenerate", "edit", "remove-last", "redo", "clear", "regenerate-fine")
TURNS = {"previous-answers": -1, "next-answers": 1}  # places among the answers that the last question got
BUTTONS = (*ACTIONS, *TURNS, *(f"stop-{slot}" for slot in SLOTS))


def can_act(page: PageSession, ratio: float | None) -> dict[str, bool]:
    """Which buttons can do something now, in the order of BUTTONS. ratio: of the slider."""
    shown = page.transcript.rounds if page.transcript else ()
    stream = page.streams.get(VIEW)
    writing = stream is not None
    fine = shown[-1].replies.get(FINE) if shown else None
    moved = fine is not None and fine.ratio is not None and ratio is not None and abs(fine.ratio - ratio) > 1e-9
    idle = bool(shown) and is_idle(page)
    can = {
        "send": not writing,
        "stop-all": writing,
        "regenerate": idle,
        "edit": bool(shown),
        "remove-last": bool(shown),
        "redo": can_redo(page),
        "clear": bool(shown),
        "regenerate-fine": idle and (moved or fine is None),
    }
    unfinished = {slot_of(pane) for pane in stream.unfinished} if stream else set()
    can |= {name: can_turn(page, step) for name, step in TURNS.items()}
    can |= {f"stop-{slot}": slot in unfinished for slot in SLOTS}
    return {name: can[name] for name in BUTTONS}


def is_idle(page: PageSession) -> bool:
    """Are no answers being written or scored?"""
    return not (VIEW in page.streams or VIEW in page.scoring)


def can_ask_again(page: PageSession) -> bool:
    """Can one pane alone be asked again? Its button stands under its last answer, not among those of `can_act`."""
    return is_idle(page) and not was_edited(page)
