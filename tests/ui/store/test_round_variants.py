"""Variants of a round: which is in view, in what order they stand, and that none is lost."""

import pytest

from lite_c2f.ui.store.conversations import PREVIOUS_PANE, Reply, Round, Variant
from lite_c2f.ui.store.variants import (
    all_variants,
    merged,
    other_replies,
    settings_of_pane,
    turned,
    with_variant,
    without,
)


def reply(text, pane="fine"):
    return Reply(pane, text, 4, 80.0, "eos")


def made(number):
    return Variant({"seed": number}, {"fine": reply(f"It is {number}.")}, {"fine": {"seed": -number}})


FIRST = Round("?", *made(0))


def test_the_newest_is_in_view_and_all_are_kept_in_their_order():
    round_ = with_variant(with_variant(FIRST, *made(1)), *made(2))
    assert round_ == Round("?", *made(2), (made(0), made(1)), 2)
    assert all_variants(round_) == [made(0), made(1), made(2)]


def test_turning_shows_each_in_its_place():
    round_ = with_variant(with_variant(FIRST, *made(1)), *made(2))
    middle = turned(round_, -1)
    assert middle == Round("?", *made(1), (made(0), made(2)), 1)
    assert turned(middle, -1) == Round("?", *made(0), (made(1), made(2)), 0)
    assert turned(middle, 1) == turned(turned(middle, -1), 2) == round_
    for there, step in ((round_, 1), (turned(middle, -1), -1), (FIRST, 1), (FIRST, -1)):
        with pytest.raises(IndexError):
            turned(there, step)


def test_one_asked_from_the_middle_is_the_last():
    middle = turned(with_variant(with_variant(FIRST, *made(1)), *made(2)), -1)
    assert all_variants(with_variant(middle, *made(3))) == [made(0), made(1), made(2), made(3)]


def test_what_a_pane_said_else_is_told_once():
    """In the second variant Fine alone was asked again: the other has Coarse's answer too."""
    coarse, others = reply("C", "coarse"), [reply("a"), reply("b"), reply("a")]
    round_ = Round("?", {}, {"coarse": coarse, "fine": others[0]})
    for other in others[1:]:
        round_ = with_variant(round_, {}, {"coarse": coarse, "fine": other})
    assert other_replies(round_, "coarse") == other_replies(round_, "base") == []
    assert other_replies(round_, "fine") == [reply("b")]  # in view is "a" again
    assert other_replies(turned(round_, -1), "fine") == [reply("a")]


def test_settings_of_a_pane_are_its_own_or_the_round_s():
    round_ = Round("?", {"seed": 1}, {}, {"fine": {"seed": 2}})
    assert (settings_of_pane(round_, "fine"), settings_of_pane(round_, "coarse")) == ({"seed": 2}, {"seed": 1})


def test_replies_keep_the_order_of_the_panes():
    before = {"fine": reply("f"), PREVIOUS_PANE: reply("old"), "unknown": reply("u")}
    replies = merged(before, {"coarse": reply("c", "coarse"), "fine": reply("F")}, ["coarse", "fine"])
    assert list(replies) == ["coarse", "fine", PREVIOUS_PANE, "unknown"]
    assert replies["fine"].text == "F"
    assert list(without(replies, ["fine"])) == ["coarse", "unknown"]
    assert list(without(replies, ["coarse"])) == ["fine", PREVIOUS_PANE, "unknown"]
