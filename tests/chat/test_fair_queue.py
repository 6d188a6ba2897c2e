"""Who is answered next."""

import pytest

from lite_c2f.chat import ChatSettings, fair_queue
from lite_c2f.chat.fair_queue import FairQueue
from lite_c2f.chat.panes import Pane
from lite_c2f.chat.stream import PendingQuestion
from lite_c2f.errors import C2FError


def question(asker=None):
    return PendingQuestion(0, [Pane("fine", "fine")], {}, ChatSettings(), asker)


def put(queue, *askers, under_way=()):
    asked = [question(asker) for asker in askers]
    for each in asked:
        queue.put(each, under_way)
    return asked


def begun(queue):
    while queue.first() is not None:
        yield queue.begin()


def test_questions_of_one_are_begun_as_they_came():
    for asker in (None, "ann"):
        queue = FairQueue()
        assert list(begun(queue)) == []
        asked = put(queue, *[asker] * 5)
        assert [queue.place_of(each) for each in asked] == [0, 1, 2, 3, 4]
        assert list(begun(queue)) == asked
        assert queue.place_of(asked[0]) is None


def test_askers_take_turns():
    """Turns by hand: ann 0 1 2, ben 0, eve 0 1."""
    queue = FairQueue()
    asked = put(queue, "ann", "ann", "ann", "ben", "eve", "eve")
    ann, ben, eve = asked[:3], asked[3], asked[4:]
    assert list(begun(queue)) == [ann[0], ben, eve[0], ann[1], eve[1], ann[2]]


def test_who_comes_late_waits_for_one_question_of_each_and_loses_nothing_by_it():
    queue = FairQueue()
    many = put(queue, *["ann"] * 4)
    going = [queue.begin(), queue.begin()]  # turns 0 and 1
    late = put(queue, "ben", under_way=going)[0]  # turn 1, as the one begun last
    more = put(queue, "ann", under_way=going)[0]  # turn 4, after her 0 1 2 3
    assert list(begun(queue)) == [late, *many[2:], more]


def test_who_comes_late_has_saved_up_no_turns():
    queue = FairQueue()
    many = put(queue, *["ann"] * 4)
    going = [queue.begin(), queue.begin(), queue.begin()]  # turns 0, 1, 2
    late = put(queue, "ben", "ben", under_way=going)  # turns 2 and 3: the second one comes after ann's, turn 3 too
    assert list(begun(queue)) == [late[0], many[3], late[1]]


def test_an_asker_whose_questions_are_under_way_has_had_his_turn():
    queue = FairQueue()
    put(queue, "ann")
    going = [queue.begin()]  # turn 0
    again, other = *put(queue, "ann", under_way=going), *put(queue, "ben", under_way=going)
    assert list(begun(queue)) == [other, again]


def test_who_has_left_is_not_begun():
    queue = FairQueue()
    asked = put(queue, "ann", "ben", "eve")
    asked[0].stopped.add("fine")
    assert queue.first() is asked[1] and asked[0].unbegun == {"fine": ("stopped", "")}
    assert len(queue) == 2
    two = PendingQuestion(0, [Pane("fine", "fine"), Pane("coarse", "coarse")], {}, ChatSettings())
    two.stopped.add("fine")
    assert not two.unwanted  # the other one is
    two.stopped.add("coarse")
    assert two.unwanted


def test_the_line_ends_somewhere(monkeypatch):
    monkeypatch.setattr(fair_queue, "MOST_WAITING", 6)
    monkeypatch.setattr(fair_queue, "MOST_OF_ONE", 3)
    queue = FairQueue()
    put(queue, "ann", "ann", "ann")
    with pytest.raises(C2FError, match="3 questions of yours wait"):
        put(queue, "ann")
    put(queue, None, None, None)  # whose askers are not known
    with pytest.raises(C2FError, match="6 questions wait"):
        put(queue, "ben")
    assert len(queue) == 6
