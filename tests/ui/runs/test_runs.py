"""Runs written by hand: half lines, missing stages, time left, what is read again and what is not."""

import json
import math
import os
import time
from pathlib import Path

import pytest

from lite_c2f.storage.lock import locked
from lite_c2f.ui.runs import downsample, follow, names
from lite_c2f.ui.runs.curves import Sample, curves, evenly_spaced
from lite_c2f.ui.runs.follow import Tail
from lite_c2f.ui.runs.starts import is_training


def write_progress(run, **values):
    """RUN/progress.json of this process, as it was written now."""
    now = time.time()
    content = {"state": "running", "process": os.getpid(), "began": now, "updated": now, **values}
    (run / "progress.json").write_text(json.dumps(content))


def update(step, **values):
    return json.dumps({"stage": "coarse", "step": step, **values}) + "\n"


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "runs" / "hand"
    run.mkdir(parents=True)
    return run


def publish(run, *stages):
    for stage in stages:
        file = {"fine": "fine/model/config.json", "comparison": "evaluation/actors.json"}.get(
            stage, f"{stage}/metrics.json"
        )
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).write_text("{}")


def test_a_folder_that_is_missing_or_empty_is_no_error(run):
    for folder in (run, run / "missing"):
        state = follow(folder)
        assert (state.state, state.working, state.samples, state.series) == ("empty", None, (), {})
        assert [stage.state for stage in state.stages] == ["waiting"] * 4


def test_half_a_line_waits_until_it_is_whole(run):
    file = run / "metrics.jsonl"
    file.write_text(update(1, reward=0.5) + update(2, reward=0.75)[:30])
    assert follow(run).series["coarse"]["reward"] == [(1, 0.5)]
    first = follow(run).version
    with file.open("a") as more:
        more.write(update(2, reward=0.75)[30:])
    assert follow(run).series["coarse"]["reward"] == [(1, 0.5), (2, 0.75)]
    assert follow(run).version != first


def test_lines_that_are_no_updates_are_left_out(run):
    lines = ["null\n", "[1]\n", "{}\n", '{"stage": "coarse", "step": "x"}\n', "\xff\n", "[" * 5000 + "\n"]
    numbers = '{"stage": "coarse", "step": 3, "reward": NaN, "kl": Infinity, "limit": 8}\n'
    (run / "metrics.jsonl").write_text("".join(lines) + numbers)
    assert follow(run).series == {"coarse": {"limit": [(3, 8.0)]}}


def test_a_step_that_was_done_again_counts_once():
    lines = [{"stage": "coarse", "step": step, "kl": kl} for step, kl in ((1, 0.1), (2, 0.2), (3, 9.0), (3, 0.3))]
    assert curves(lines) == {"coarse": {"kl": [(1, 0.1), (2, 0.2), (3, 0.3)]}}


def test_a_running_stage(run):
    """Of 20 updates 12 are done, in 285 s; the process says what it will take."""
    (run / "config.yaml").write_text("coarse: {updates: 20}\n")
    seconds = [100, 100, *range(4, 14)]
    (run / "metrics.jsonl").write_text("".join(update(step, seconds=took) for step, took in enumerate(seconds, 1)))
    publish(run, "reward")
    with locked(run):
        write_progress(run, stage="coarse", part="coarse actor", stage_began=time.time(), step=12, seconds_left=68.0)
        state = follow(run)
        reward, coarse, fine, _ = state.stages
    assert state.state == "running" and state.working == f"process {os.getpid()}"
    assert (coarse.state, coarse.done, coarse.total, coarse.seconds_left) == ("running", 12, 20, 68.0)
    assert coarse.seconds == pytest.approx(285.0)  # 200 + 85: more than this start has been at it
    assert (reward.state, fine.state) == ("done", "waiting")
    after = follow(run)
    assert after.stages[1].state == "interrupted" and after.stages[1].seconds_left is None  # nobody works on it
    assert after.state == "killed"  # it did not say how it ended


def test_progress_of_another_process_is_not_that_of_the_one_that_works(run):
    """A run that is resumed reads data first: it is in no stage until it has said so itself."""
    (run / "metrics.jsonl").write_text(update(1, seconds=2.0))
    with locked(run):
        write_progress(run, process=0, stage="coarse", part="coarse actor", of=40)
        stages = follow(run).stages
        assert [stage.state for stage in stages] == ["waiting", "interrupted", "waiting", "waiting"]
        write_progress(run, stage="coarse", part="coarse actor", of=30)
        assert follow(run).stages[1].state == "running" and follow(run).stages[1].total == 30


@pytest.mark.parametrize(
    ("saved", "state", "message"),
    [
        ({"state": "stopped", "interrupted": True}, "interrupted", ""),
        ({"state": "stopped"}, "unfinished", ""),
        ({"state": "finished"}, "unfinished", ""),  # its files are gone: what is published counts
        ({"state": "failed", "message": "an error: correct it"}, "failed", "an error: correct it"),
        ({"state": "running", "stage": "coarse"}, "killed", ""),
    ],
)
def test_how_a_run_was_left(run, saved, state, message):
    write_progress(run, **saved)
    found = follow(run)
    assert (found.state, found.message) == (state, message)


@pytest.mark.parametrize(
    "saved", [{"state": "running", "part": "comparison"}, {"state": "failed", "message": "x"}, None]
)
def test_a_finished_run_stays_finished_whatever_is_done_with_it(run, saved):
    """A comparison that was made again and killed, or a benchmark that failed, takes nothing away."""
    publish(run, "reward", "coarse", "fine", "comparison")
    if saved is not None:
        write_progress(run, **saved)
    (run / "run.json").write_text('{"seconds": {"reward": 3.5, "evaluation": 1.5, "coarse": "x"}}')
    (run / "summary.json").write_text('{"schema": 1}')
    state = follow(run)
    assert (state.state, state.summary) == ("finished", {"schema": 1})
    assert [stage.seconds for stage in state.stages] == [3.5, None, None, 1.5]


def test_being_asked_to_stop_is_seen(run):
    with locked(run):
        write_progress(run, stage="coarse", part="coarse actor", stopping=True)
        assert follow(run).state == "stopping"


@pytest.mark.parametrize("text", ["", "null", "[]", "{", '{"state": 1}', '{"process": "x"}', "[" * 5000])
def test_progress_that_cannot_be_read_is_none(run, text):
    (run / "progress.json").write_text(text)
    assert follow(run).state == "empty"


def test_a_start_that_failed_is_told(run):
    """Not by a process that lives: number 0 is nobody's."""
    folder = run.parent / ".started"
    folder.mkdir()
    (folder / "new.log").write_text("reading\n\x1b[1merror: no config file at 'x'; try y\n\n")
    (folder / "new.json").write_text(json.dumps({"process": 0, "created": 1.0, "began": 2.0, "command": "lite-c2f"}))
    state = follow(run.parent / "new")
    assert (state.state, state.message) == ("failed", "[1merror: no config file at 'x'; try y")
    assert names(run.parent) == ["new"]  # the other one is an empty folder


def test_downsampling_keeps_ends_and_spikes():
    points = [(float(step), math.sin(step / 500)) for step in range(10_001)]
    points[7_777] = (7_777.0, 50.0)
    points[3_333] = (3_333.0, -50.0)
    kept = downsample(points)
    assert len(kept) <= 400 and kept == sorted(kept)
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert points[7_777] in kept and points[3_333] in kept
    assert downsample(points[:400]) == points[:400]
    by_hand = [(0, 0.0), (1, 5.0), (2, 1.0), (3, 3.0), (4, 4.0), (5, 2.0)]  # 1.0 and 5.0 are the inner extremes
    assert downsample(by_hand, 4) == [(0, 0.0), (1, 5.0), (2, 1.0), (5, 2.0)]


def test_samples_of_a_few_updates():
    rows = [Sample(step, 8, prompt, f"{prompt}{step}", "stop", 3, 0.0) for step in range(1, 10) for prompt in "ab"]
    again = Sample(9, 8, "b", "again", "stop", 3, 0.0)
    found = evenly_spaced([*rows, again], 3)
    assert [(sample.step, sample.response) for sample in found] == [
        (1, "a1"), (1, "b1"), (5, "a5"), (5, "b5"), (9, "a9"), (9, "again"),
    ]  # fmt: skip
    assert [sample.step for sample in evenly_spaced(rows[:2], 3)] == [1, 1]


def test_what_was_read_is_not_read_again(tmp_path):
    parsed = []
    file = tmp_path / "file"
    tail = Tail(file, lambda line: parsed.append(line) or line)
    assert tail.read() == []
    file.write_bytes(b"a\nb\n")
    assert tail.read() == [b"a", b"b"]
    with file.open("ab") as more:
        more.write(b"c\nhal")
    assert tail.read() == [b"a", b"b", b"c"] and tail.read() == [b"a", b"b", b"c"]
    assert parsed == [b"a", b"b", b"c"]


@pytest.mark.parametrize("way", ["replaced", "in place", "shorter", "removed"])
def test_a_file_that_was_written_anew_is_read_anew(tmp_path, way):
    file = tmp_path / "file"
    tail = Tail(file, bytes)
    file.write_bytes(b"one\ntwo\n")
    tail.read()
    before = tail.version
    if way == "replaced":
        Path(tmp_path / "other").write_bytes(b"six\nten\nnew\n")
        Path(tmp_path / "other").replace(file)
    elif way == "removed":
        file.unlink()
    else:
        file.write_bytes(b"six\nten\nnew\n" if way == "in place" else b"six\n")
    expected = {"removed": [], "shorter": [b"six"]}.get(way, [b"six", b"ten", b"new"])
    assert tail.read() == expected and tail.version != before


def test_a_second_look_at_ten_thousand_updates_is_cheap(run):
    (run / "metrics.jsonl").write_text("".join(update(step, reward=step / 7, kl=0.1) for step in range(1, 10_001)))
    follow(run)
    began = time.process_time()
    for _ in range(10):
        state = follow(run)
    assert time.process_time() - began < 1.0  # 0.1 s a look; reading all again would take more
    assert state.stages[1].done == len(state.series["coarse"]["reward"]) == 10_000


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/usr/bin/python", "-m", "lite_c2f", "train", "x.yaml"], True),
        (["/usr/bin/python", "/home/me/lite_c2f/__main__.py", "demo"], True),
        (["/usr/bin/python", "/home/me/.venv/bin/lite-c2f", "--debug", "train", "x"], True),
        (["/usr/bin/python", "-m", "lite_c2f", "app", "runs/x"], False),
        (["/usr/bin/vim", "lite_c2f", "train"], False),
        (["train", "lite-c2f"], False),
        ([], False),
    ],
)
def test_which_processes_train(words, expected):
    assert is_training(words) is expected
