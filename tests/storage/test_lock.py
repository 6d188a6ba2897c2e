"""Lock of a run directory: who holds it, as a value and as text."""

import fcntl
import os

import pytest

from lite_c2f.errors import RunError
from lite_c2f.storage.lock import LockOwner, locked, owner


def test_the_owner_is_a_process_while_it_holds_the_lock(tmp_path):
    run = tmp_path / "run"
    assert owner(run) is None
    with locked(run):
        assert owner(run) == LockOwner(os.getpid())
        assert str(owner(run)) == f"process {os.getpid()}"
        with pytest.raises(RunError, match=rf"in use by another process \(process {os.getpid()}\)"), locked(run):
            pass
    assert owner(run) is None and not run.exists()


@pytest.mark.parametrize("text", ["", "process\n", "process x\n", "process 12 on another machine\n", "process ²\n"])
def test_a_lock_that_names_no_process_has_an_owner_all_the_same(tmp_path, text):
    file = tmp_path / ".lock"
    file.write_text(text)
    assert owner(tmp_path) is None  # nobody holds it
    with file.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert owner(tmp_path) == LockOwner(None) and str(owner(tmp_path)) == "another process"
        with pytest.raises(RunError, match=r"in use by another process[^ (]"), locked(tmp_path):
            pass
