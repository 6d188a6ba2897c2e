"""A command ends although a thread still runs, with its own exit code and all that it printed."""

import subprocess
import sys

import pytest

CODE = """
import sys, threading, time
from lite_c2f.runtime.lingering_threads import add_lingering, exit_if_lingering
thread = threading.Thread(target=lambda: time.sleep({seconds}))
add_lingering([thread])
thread.start()
time.sleep(0.1)
print("said", end="")
exit_if_lingering(3)
print(", went on", end="")
"""


@pytest.mark.parametrize(("seconds", "code", "text"), [(600, 3, "said"), (0, 0, "said, went on")])
def test_the_end_waits_for_no_thread_that_lingers(seconds, code, text):
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(seconds=seconds)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (code, text), done.stderr
