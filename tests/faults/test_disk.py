"""Disks that are full or read-only, and two processes in one run."""

import contextlib
import functools
import os
import subprocess

import pytest
from harness import leftovers, published, train
from processes import hold

from lite_c2f.errors import RunError
from lite_c2f.storage.lock import NAME, locked


@contextlib.contextmanager
def mounted(folder, options):
    """A small file system of its own; skips the test where mounting is not allowed."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_in_one_line_and_the_run_goes_on_later(tmp_path, toy_models):
    """One run in which it fills up three times, each time in another stage."""
    with mounted(tmp_path / "small", "size=32m") as small:
        run, filling = small / "run", small / "other people's data"
        for begun in ("reward/checkpoints/step-000002", "coarse/checkpoints/step-000002", "fine"):
            assert not (run / begun).exists()
            command = train(run, log=tmp_path / "said.txt")
            command.until((run / begun).exists)
            with contextlib.suppress(OSError), filling.open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(2**12))
            assert command.wait() == 2, command.said()
            last = command.said().splitlines()[-1]
            assert last.startswith("error:") and "make room" in last and "Traceback" not in command.said()
            assert "the disk is full" in last or "free under" in last
            assert not list(small.glob("run/**/.*partial*"))
            filling.unlink()
        said = train(run, log=tmp_path / "said.txt")
        assert said.wait() == 0, said.said()
        assert "already published" in said.said() or "going on after" in said.said()
        assert leftovers(run) == [] and len(published(run)) == 9


@pytest.mark.slow
def test_a_disk_without_room_is_noticed_before_anything_is_written(tmp_path, toy_models):
    with mounted(tmp_path / "small", "size=512k") as small:
        command = train(small / "run", log=tmp_path / "said.txt")
        assert command.wait() == 2
        assert "MiB free under" in command.said().splitlines()[-1]
        assert list(small.iterdir()) == []


@pytest.mark.slow
def test_a_read_only_disk_is_named(tmp_path, toy_models):
    with mounted(tmp_path / "ro", "size=1m") as place:
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        command = train(place / "run", log=tmp_path / "said.txt")
        assert command.wait() == 2
        last = command.said().splitlines()[-1]
    assert last == f"error: run.dir '{place}/run': Read-only file system; expected a writable folder; choose another"


@pytest.mark.slow
def test_a_run_in_use_is_refused_and_not_disturbed(tmp_path, toy_models):
    run = tmp_path / "run"
    hand = tmp_path / "hand"  # the first one waits before its second step is written down
    first = train(run, "--stage", "reward", patch=functools.partial(hold, run / "metrics.jsonl", "", hand))
    first.until_held(hand)
    second = train(run, log=tmp_path / "second.txt")
    assert second.wait() == 2
    assert f"'{run}' is in use by another process (process {first.process.pid})" in second.said()
    first.let_go(hand)
    assert first.wait() == 0, first.said()
    assert leftovers(run) == []


def test_one_process_at_a_time(tmp_path):
    run = tmp_path / "new" / "run"
    with locked(run):
        assert (run / NAME).read_text() == f"process {os.getpid()}\n"
        with (
            pytest.raises(RunError, match=rf"in use by another process \(process {os.getpid()}\).*one at a time"),
            locked(run),
        ):
            raise AssertionError("two at once")
        assert (run / NAME).is_file()
    assert not (tmp_path / "new").exists()  # nothing was put there
    with locked(run):
        (run / "config.yaml").write_text("x")
    assert [path.name for path in run.iterdir()] == ["config.yaml"]
