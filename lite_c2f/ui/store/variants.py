"""Variants of a round: the answers that one question got each time it was asked again. One of them is in view.

They belong to the round, all panes together: what is compared is answers to one question, made with the same settings,
and the next question has to build on one definite set of them. Where one pane alone was asked again, its variant has
the other panes' answers too.

`Round` has the variant in view in its own fields, so that whoever reads a conversation needs to know of no others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lite_c2f.ui.store.conversations import PREVIOUS_PANE, Reply, Round, Variant

CUT_OFF = ("limit", "stopped")  # how answers end that can be continued; others have ended by themselves, or failed


def all_variants(round_: Round) -> list[Variant]:
    """All variants of a round, the oldest first, the one in view in its place."""
    in_view = Variant(round_.settings, round_.replies, round_.pane_settings)
    return [*round_.others[: round_.place], in_view, *round_.others[round_.place :]]


def with_variant(
    round_: Round,
    settings: dict[str, Any],
    replies: dict[str, Reply],
    pane_settings: dict[str, dict[str, Any]] | None = None,
) -> Round:
    """The round with one variant more, the newest, in view."""
    before = tuple(all_variants(round_))
    return Round(round_.prompt, settings, replies, pane_settings or {}, before, len(before))


def turned(round_: Round, step: int) -> Round:
    """The round with another variant in view. step: how many places further; -1 is the one before.

    Raises IndexError where there is none.
    """
    variants, place = all_variants(round_), round_.place + step
    if not 0 <= place < len(variants):
        raise IndexError(place)
    settings, replies, pane_settings = variants.pop(place)
    return Round(round_.prompt, settings, replies, pane_settings, tuple(variants), place)


def other_replies(round_: Round, pane: str) -> list[Reply]:
    """What a pane said in the variants that are not in view, the oldest first, each answer once."""
    found: list[Reply] = []
    for variant in round_.others:
        reply = variant.replies.get(pane)
        if reply is not None and reply != round_.replies.get(pane) and reply not in found:
            found.append(reply)
    return found


def settings_of_pane(round_: Round, pane: str) -> dict[str, Any]:
    """The settings that a pane's answer in view was made with."""
    return round_.pane_settings.get(pane, round_.settings)


def merged(replies: Mapping[str, Reply], new: Mapping[str, Reply], order: Sequence[str]) -> dict[str, Reply]:
    """Replies with new ones in their places. order: of the panes; what it does not name comes last, as it came."""
    both = {**replies, **new}
    first = [pane for pane in order if pane in both]
    return {pane: both[pane] for pane in (*first, *(name for name in both if name not in first))}


def without(replies: Mapping[str, Reply], panes: Sequence[str]) -> dict[str, Reply]:
    """Replies without those of some panes; without Fine's goes its earlier one too, which is shown beside it."""
    gone = {*panes, *([PREVIOUS_PANE] if "fine" in panes else [])}
    return {pane: reply for pane, reply in replies.items() if pane not in gone}
