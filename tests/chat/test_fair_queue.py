"""Fair queue: which question is started next."""

import pytest

from lite_c2f.chat import ChatSettings, fair_queue
from lite_c2f.chat.fair_queue import FairQueue
from lite_c2f.chat.panes import Pane
from lite_c2f.chat.stream import PendingQuestion
from lite_c2f.errors import C2FError


def question(client=None):
    return PendingQuestion([Pane("fine", "fine")], {}, ChatSettings(), client=client)


def put(queue, *clients, active=()):
    questions = [question(client) for client in clients]
    for each in questions:
        queue.put(each, active)
    return questions


def started(queue):
    while queue.first() is not None:
        yield queue.pop()


def test_questions_of_one_are_begun_as_they_came():
    for client in (None, "ann"):
        queue = FairQueue()
        assert list(started(queue)) == []
        questions = put(queue, *[client] * 5)
        assert [queue.position(each) for each in questions] == [0, 1, 2, 3, 4]
        assert list(started(queue)) == questions
        assert queue.position(questions[0]) is None


def test_clients_take_turns():
    """Turns by hand: ann 0 1 2, ben 0, eve 0 1."""
    queue = FairQueue()
    questions = put(queue, "ann", "ann", "ann", "ben", "eve", "eve")
    ann, ben, eve = questions[:3], questions[3], questions[4:]
    assert list(started(queue)) == [ann[0], ben, eve[0], ann[1], eve[1], ann[2]]


def test_who_comes_late_waits_for_one_question_of_each_and_loses_nothing_by_it():
    queue = FairQueue()
    many = put(queue, *["ann"] * 4)
    active = [queue.pop(), queue.pop()]  # turns 0 and 1
    late = put(queue, "ben", active=active)[0]  # turn 1, as the one begun last
    more = put(queue, "ann", active=active)[0]  # turn 4, after her 0 1 2 3
    assert list(started(queue)) == [late, *many[2:], more]


def test_who_comes_late_has_saved_up_no_turns():
    queue = FairQueue()
    many = put(queue, *["ann"] * 4)
    active = [queue.pop(), queue.pop(), queue.pop()]  # turns 0, 1, 2
    late = put(queue, "ben", "ben", active=active)  # turns 2 and 3: the second one comes after ann's, turn 3 too
    assert list(started(queue)) == [late[0], many[3], late[1]]


def test_a_client_whose_questions_are_active_has_had_its_turn():
    queue = FairQueue()
    put(queue, "ann")
    active = [queue.pop()]  # turn 0
    again, other = *put(queue, "ann", active=active), *put(queue, "ben", active=active)
    assert list(started(queue)) == [other, again]


def test_who_has_left_is_not_begun():
    queue = FairQueue()
    questions = put(queue, "ann", "ben", "eve")
    questions[0].stop_requests.add("fine")
    assert queue.first() is questions[1] and questions[0].not_started == {"fine": ("stopped", "")}
    assert len(queue) == 2
    two = PendingQuestion([Pane("fine", "fine"), Pane("coarse", "coarse")], {}, ChatSettings())
    two.stop_requests.add("fine")
    assert not two.cancelled  # the other one is
    two.stop_requests.add("coarse")
    assert two.cancelled


def test_the_line_ends_somewhere(monkeypatch):
    monkeypatch.setattr(fair_queue, "MAX_WAITING", 6)
    monkeypatch.setattr(fair_queue, "MAX_PER_CLIENT", 3)
    queue = FairQueue()
    put(queue, "ann", "ann", "ann")
    with pytest.raises(C2FError, match="3 questions of yours wait"):
        put(queue, "ann")
    put(queue, None, None, None)  # whose clients are not known
    with pytest.raises(C2FError, match="6 questions wait"):
        put(queue, "ben")
    assert len(queue) == 6


def test_one_that_was_loading_at_its_turn_takes_no_turns_from_others():
    """Turns by hand: ben 0 while his model is loaded, ann 0 1 2 3; eve comes once ann's 0 1 2 and ben's have begun."""
    queue = FairQueue()
    (ben,) = put(queue, "ben")
    ben.ready = False
    ann = put(queue, *["ann"] * 4)
    active = [queue.pop(), queue.pop(), queue.pop()]
    ben.ready = True
    active.append(queue.pop())
    assert active == [*ann[:3], ben]
    eve = put(queue, "eve", "eve", active=active)  # turns 2 and 3, as if ben had not come between
    assert list(started(queue)) == [eve[0], ann[3], eve[1]]


def test_the_question_whose_room_was_counted_is_the_one_that_is_started():
    queue = FairQueue()
    first, second = put(queue, "ann", "ben")
    first.ready = False
    counted = queue.first()
    first.ready = True  # in its own thread, meanwhile
    assert queue.pop(counted) is counted is second and queue.first() is first
