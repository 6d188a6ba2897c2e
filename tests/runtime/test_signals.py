"""A signal asks for an end; the same one again insists."""

import os
import signal
import threading

import pytest

from lite_c2f.runtime.signals import AT_ONCE, graceful


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_asks_and_the_second_insists(number):
    told, before = [], signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), graceful(told.append) as interruption:
        assert not interruption.requested
        send(number)
        assert interruption.requested and len(told) == 1 and signal.Signals(number).name in told[0]
        with pytest.raises(KeyboardInterrupt, match=AT_ONCE):
            send(number)
    assert signal.getsignal(number) is before


def test_a_launcher_that_passes_ctrl_c_on_does_not_insist():
    told = []
    with pytest.raises(KeyboardInterrupt), graceful(told.append) as interruption:
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert interruption.requested and len(told) == 1


def test_outside_the_main_thread_nothing_changes():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with graceful() as interruption:
            seen.append((signal.getsignal(signal.SIGINT), interruption.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), graceful():
        _ = 1 / 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_was_asked_too_late_is_not_forgotten():
    """After the last look at it, the work in the block goes on to its end; then the interruption follows."""
    done = []
    with pytest.raises(KeyboardInterrupt), graceful():
        send(signal.SIGINT)
        done.append("all of it")
    assert done == ["all of it"]
    with graceful():
        pass  # and nothing follows where nothing was asked
