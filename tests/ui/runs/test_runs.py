"""Runs written by hand: half lines, missing stages, time left, what is read again and what is not."""

import json
import math
import os
import time
from pathlib import Path

import pytest

from lite_c2f.storage.lock import locked
from lite_c2f.ui.runs import downsample, follow, names
from lite_c2f.ui.runs.curves import Sample, curves, spread
from lite_c2f.ui.runs.follow import Tail
from lite_c2f.ui.runs.starts import trains


def at(seconds):
    """A time of the log, so many seconds after this test's beginning of time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) + ",000"


def write_log(run, *lines):
    """lines: (seconds since the epoch, message), INFO unless the message says ERROR."""
    told = [f"{at(when)} {'ERROR' if 'error' in text else 'INFO'} lite_c2f.run: {text}" for when, text in lines]
    (run / "log.txt").write_text("".join(f"{line}\n" for line in told))


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


def test_time_left_is_that_of_the_last_ten_updates(run):
    """Updates 1 and 2 took 100 s, 3 to 12 took 4, 5, ... 13 s: 8.5 s on average; 8 of 20 are left: 68 s."""
    (run / "config.yaml").write_text("coarse: {updates: 20}\n")
    seconds = [100, 100, *range(4, 14)]
    (run / "metrics.jsonl").write_text("".join(update(step, seconds=took) for step, took in enumerate(seconds, 1)))
    publish(run, "reward")
    with locked(run):
        now = time.time()
        write_log(run, (now, "started: x"), (now, "coarse actor"))
        state = follow(run)
        reward, coarse, fine, _ = state.stages
    assert state.state == "running" and state.working == f"process {os.getpid()}"
    assert (coarse.state, coarse.done, coarse.total, coarse.left) == ("running", 12, 20, pytest.approx(68.0))
    assert coarse.seconds == pytest.approx(285.0)  # 200 + 85: more than this start has been at it
    assert (reward.state, fine.state) == ("done", "waiting")
    after = follow(run)
    assert after.stages[1].state == "interrupted" and after.stages[1].left is None  # nobody works on it
    assert after.state == "killed"  # it did not say how it ended


def test_time_left_of_the_reward_model_is_from_the_log(run):
    """It went on after step 10; step 11 at 0 s, step 31 at 40 s: 2 s a step, and 19 of 50 are left: 38 s."""
    lines = "".join(json.dumps({"stage": "reward", "step": step, "loss": 0.5}) + "\n" for step in range(1, 32))
    (run / "metrics.jsonl").write_text(lines)
    began = round(time.time()) - 60
    with locked(run):
        os.utime(run / ".lock", (began - 5, began - 5))
        os.utime(run / "metrics.jsonl", (began + 40, began + 40))
        write_log(
            run,
            (began - 1, "started: x"),
            (began, "reward model: going on after step 10, from x"),
            (began, "reward model"),
            (began, "reward model: 50 steps"),
            (began + 30, "reward model 26/50  loss 0.5"),
        )
        before, stage, after = time.time(), follow(run).stages[0], time.time()
    assert (stage.state, stage.done, stage.total, stage.left) == ("running", 31, 50, pytest.approx(38.0))
    assert before - began - 0.01 <= stage.seconds <= after - began + 0.01


def test_a_log_older_than_its_worker_is_not_taken_for_his(run):
    """Who resumes reads data first: he is in no stage until his own log says so."""
    (run / "metrics.jsonl").write_text(update(1, seconds=2.0))
    with locked(run):
        now = (run / ".lock").stat().st_mtime
        write_log(run, (now - 100, "started: x"), (now - 90, "coarse actor: 40 updates"))
        stages = follow(run).stages
        assert [stage.state for stage in stages] == ["waiting", "interrupted", "waiting", "waiting"]
        write_log(run, (now - 100, "started: x"), (now, "started: x"), (now, "coarse actor: 30 updates"))
        assert follow(run).stages[1].state == "running" and follow(run).stages[1].total == 30


@pytest.mark.parametrize(
    ("last", "state", "why"),
    [
        ("interrupted", "interrupted", ""),
        ("ended", "unfinished", ""),
        ("an error: correct it", "failed", "an error: correct it"),
        ("coarse actor: 40 updates", "killed", ""),
    ],
)
def test_how_a_run_was_left(run, last, state, why):
    now = time.time()
    write_log(run, (now, "started: x"), (now, last))
    with (run / "log.txt").open("a") as file:
        file.write("Traceback (most recent call last):\n  ...\n" if state == "failed" else "")
    found = follow(run)
    assert (found.state, found.why) == (state, why)


def test_a_finished_run_has_its_summary(run):
    publish(run, "reward", "coarse", "fine", "comparison")
    write_log(run, (time.time(), "started: x"), (time.time(), "ended"))
    (run / "run.json").write_text('{"seconds": {"reward": 3.5, "evaluation": 1.5, "coarse": "x"}}')
    (run / "summary.json").write_text('{"schema": 1}')
    state = follow(run)
    assert (state.state, state.summary) == ("finished", {"schema": 1})
    assert [stage.seconds for stage in state.stages] == [3.5, None, None, 1.5]


def test_being_asked_to_stop_is_seen(run):
    with locked(run):
        asked = "SIGTERM: finishing this step and saving; once more stops at once"
        write_log(run, (time.time(), "started: x"), (time.time(), "coarse actor"), (time.time(), asked))
        assert follow(run).state == "stopping"


def test_a_start_that_failed_is_told(run):
    """Not by a process that lives: number 0 is nobody's."""
    folder = run.parent / ".started"
    folder.mkdir()
    (folder / "new.log").write_text("reading\n\x1b[1merror: no config file at 'x'; try y\n\n")
    (folder / "new.json").write_text(json.dumps({"process": 0, "created": 1.0, "began": 2.0, "command": "lite-c2f"}))
    state = follow(run.parent / "new")
    assert (state.state, state.why) == ("failed", "[1merror: no config file at 'x'; try y")
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
    found = spread([*rows, again], 3)
    assert [(sample.step, sample.response) for sample in found] == [
        (1, "a1"), (1, "b1"), (5, "a5"), (5, "b5"), (9, "a9"), (9, "again"),
    ]  # fmt: skip
    assert [sample.step for sample in spread(rows[:2], 3)] == [1, 1]


def test_what_was_read_is_not_read_again(tmp_path):
    parsed = []
    file = tmp_path / "file"
    tail = Tail(file, lambda line: parsed.append(line) or line)
    assert tail.read() == [] and tail.changed is None
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
    assert state.stages[1].done == 10_000 and len(state.series["coarse"]["reward"]) <= 400


@pytest.mark.parametrize(
    ("words", "is_training"),
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
def test_which_processes_train(words, is_training):
    assert trains(words) is is_training
