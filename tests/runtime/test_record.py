"""RUN/progress.json as it is written: what is done, how long it will take, and how it ended."""

import json
import os
import signal

import pytest

from lite_c2f.errors import RunError
from lite_c2f.runtime import record
from lite_c2f.runtime.progress import SilentSink
from lite_c2f.runtime.record import ProgressFile, read_progress, recording
from lite_c2f.runtime.signals import graceful


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets; every step is far enough from the last one to be written."""
    now = [1000.0]
    monkeypatch.setattr(record.time, "time", lambda: now[0])
    monkeypatch.setattr(record.time, "monotonic", lambda: 10 * now[0])
    return now


def never(run):
    return False


def test_steps_and_the_time_left(tmp_path, clock):
    """Going on after step 10 of 50: 11 at 1000 s, then 2 s for each; after step 31, 19 are left: 38 s."""
    file = ProgressFile(tmp_path, SilentSink())
    file.on_stage("reward model", 0, "steps")
    file.on_stage("reward model", 50, "steps")
    assert read_progress(tmp_path).seconds_left is None
    for place, step in enumerate(range(11, 32)):
        clock[0] = 1000.0 + 2 * place
        file.on_step(step, {})
    progress = read_progress(tmp_path)
    assert (progress.stage, progress.part, progress.step, progress.total_steps) == ("reward", "reward model", 31, 50)
    assert progress.seconds_left == pytest.approx(38.0) and (progress.stage_began, progress.updated) == (1000.0, 1040.0)
    assert progress.process == os.getpid() and progress.unit == "steps"
    content = json.loads((tmp_path / "progress.json").read_text())
    fields = {*record.Progress._fields} - {"total_steps"}
    assert content["schema"] == 1 and content["of"] == 50 and set(content) == {"schema", "of", *fields}


def test_the_time_left_is_that_of_the_last_ten_steps(tmp_path, clock):
    """Steps 1 and 2 took 100 s, 3 to 12 took 4, 5, ... 13 s: 8.5 s on average; 8 of 20 are left: 68 s."""
    file = ProgressFile(tmp_path, SilentSink())
    file.on_stage("coarse actor", 20, "updates")
    for step, took in enumerate([100, 100, *range(4, 14)], 1):
        clock[0] += took
        file.on_step(step, {})
    assert read_progress(tmp_path).seconds_left == pytest.approx(68.0)


def test_parts_of_a_stage_share_its_beginning(tmp_path, clock):
    file = ProgressFile(tmp_path, SilentSink())
    for name, stage, began in (
        ("ratios", "fine", 1000.0),
        ("merge", "fine", 1000.0),
        ("comparison", "comparison", 1010.0),
    ):
        file.on_stage(name, 3, "x")
        progress = read_progress(tmp_path)
        assert (progress.stage, progress.stage_began, progress.step) == (stage, began, None)
        clock[0] += 5
    file.on_stage("judgments", 3, "judgments")
    assert (read_progress(tmp_path).part, read_progress(tmp_path).stage) == ("judgments", None)


@pytest.mark.parametrize(
    ("error", "state", "interrupted", "message"),
    [
        (None, "stopped", False, None),
        (KeyboardInterrupt(), "stopped", True, None),
        (RunError("got x; expected y; do z"), "failed", False, "got x; expected y; do z"),
        (ZeroDivisionError("by\nzero hf_abcdefghijklmnop"), "failed", False, "ZeroDivisionError: by zero hf_***"),
    ],
)
def test_how_it_ended(tmp_path, error, state, interrupted, message):
    with (
        pytest.raises(type(error)) if error else pytest.MonkeyPatch.context(),
        recording(tmp_path, SilentSink(), never),
    ):
        assert read_progress(tmp_path).state == "running"
        if error:
            raise error
    progress = read_progress(tmp_path)
    assert (progress.state, progress.interrupted, progress.message) == (state, interrupted, message)
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_finished_is_what_is_published(tmp_path):
    with recording(tmp_path, SilentSink(), lambda run: run == tmp_path):
        pass
    assert read_progress(tmp_path).state == "finished"


def test_a_signal_is_written_down_while_the_step_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt), recording(tmp_path, SilentSink(), never), graceful():
        os.kill(os.getpid(), signal.SIGTERM)
        assert read_progress(tmp_path).stopping
    assert read_progress(tmp_path).interrupted and not read_progress(tmp_path).stopping


def test_a_full_disk_leaves_the_last_whole_file_and_nothing_beside_it(tmp_path, monkeypatch):
    file = ProgressFile(tmp_path, SilentSink())

    def full(path, text, encoding):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record.Path, "write_text", full)
    file.on_stage("merge", 3, "MiB")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"] and read_progress(tmp_path).part is None


def test_a_folder_that_takes_no_file_stops_nothing(tmp_path):
    file = ProgressFile(tmp_path / "gone", SilentSink())
    file.on_stage("merge", 3, "MiB")
    file.on_step(1, {})
    assert read_progress(tmp_path / "gone") is None
