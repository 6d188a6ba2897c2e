"""Calls of reward functions: where they are found, and what becomes of those that misbehave."""

import os
import time
from pathlib import Path

import pytest

from lite_c2f.config.rewards import Watched
from lite_c2f.reward.calls import RewardError, RewardFunction, load_function, source_hash
from lite_c2f.reward.functions import RewardInputs, Row

FILE = """
import asyncio, os, time
import numpy as np

def good(inputs): return [len(text) for text in inputs.responses]
async def later(inputs):
    await asyncio.sleep(0)
    return [1.0 if text == "ab" else None for text in inputs.responses]
def arrays(inputs): return np.array([0.5] * len(inputs.responses), dtype="float32")
def scaled(inputs, by): return [by * len(text) for text in inputs.responses]
def raises(inputs):
    return [float(text) for text in inputs.responses]
def column(inputs): return [row["level"] for row in inputs.rows]
def together(inputs):
    if len(inputs.responses) > 1: raise RuntimeError("too many")
    return [0.0]
def nan(inputs): return [1.0, float("nan"), 2.0][: len(inputs.responses)]
def few(inputs): return [1.0]
def text(inputs): return ["good"] * len(inputs.responses)
def one(inputs): return 3.0
def nothing(inputs): return None
def leaves(inputs): os.sys.exit(3)
def lazy(inputs): yield inputs.rows[2]["level"]
def huge(inputs): return [0.0, 10**400, 0.0]
def large(inputs): return [0.0, 0.0, -1e200]
def prints(inputs):
    print("hello\\nthere")
    return [0.0] * len(inputs.responses)
def hangs(inputs): time.sleep(60)
def processes(inputs):
    if inputs.prompts[0] == "hang": time.sleep(60)
    return [os.getpid()] * len(inputs.responses)
"""
INPUTS = RewardInputs(
    ["p1", "p2", "p3"], ["ab", "12", "abcd"], [[1], [2], [3]], ["eos"] * 3,
    [Row(level=1), Row(level=2), Row(topic="x")], [[]] * 3,
)  # fmt: skip


@pytest.fixture
def call(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILE)

    def run(name, messages=None, **settings):
        function = RewardFunction(Watched(function=f"{file}:{name}", **settings), messages and messages.append)
        try:
            return function(INPUTS)
        finally:
            function.close()

    return run


def test_numbers_of_any_kind_and_none(call):
    assert call("good") == [2.0, 2.0, 4.0]
    assert call("later") == [1.0, None, None]
    assert call("arrays") == [0.5, 0.5, 0.5]
    assert call("scaled", arguments={"by": 2}) == [4.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "at row 1 (prompt 'p1', response 'ab') raised ValueError: could not convert string to float: 'ab'"),
        ("column", "at row 3 (prompt 'p3', response 'abcd') raised KeyError: no column 'level', the row has topic"),
        ("together", "at all 3 rows together raised RuntimeError: too many (line 15 of mine.py)"),
        ("nan", "gave nan for row 2 (prompt 'p2', response '12'); expected a number of at most 1e+30, or None"),
        ("few", "gave 1 values for 3 rows; expected one per row"),
        ("text", "gave 'good' for row 1"),
        ("one", "gave 3.0 for 3 rows; expected a list of one number per row"),
        ("nothing", "gave None for 3 rows; expected a list"),
        ("leaves", "raised SystemExit: 3"),
        ("lazy", "raised KeyError: no column 'level', the row has topic"),
        ("huge", "for row 2 (prompt 'p2', response '12'); expected a number of at most 1e+30"),
        ("large", "gave -1e+200 for row 3"),
    ],
)
def test_one_line_names_source_row_and_what_it_gave(call, name, said):
    with pytest.raises(RewardError) as error:
        call(name)
    assert said in str(error.value) and f"reward '{name}' (" in str(error.value)
    assert "\n" not in str(error.value) and "what a run has done is saved" in str(error.value)


def test_one_that_hangs_is_left_at_its_time_limit(call):
    began = time.monotonic()
    with pytest.raises(RewardError, match=r"reward 'hangs' .* gave nothing for 3 rows in 0\.2 s"):
        call("hangs", timeout=0.2)
    assert time.monotonic() - began < 20


def test_what_one_prints_is_told_once_and_not_shown(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(FILE)
    messages = []
    function = RewardFunction(Watched(function=f"{tmp_path / 'mine.py'}:prints"), messages.append)
    assert function(INPUTS) == function(INPUTS) == [0.0] * 3
    assert len(messages) == 1 and "reward 'prints' prints, here 'hello'" in messages[0]
    assert capsys.readouterr().out == ""


def test_in_a_process_of_its_own_which_is_ended_at_the_time_limit(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    function = RewardFunction(Watched(function=f"{tmp_path / 'mine.py'}:processes", workers=1))
    process = int(function(INPUTS)[0])
    assert process != os.getpid() and Path(f"/proc/{process}").exists()
    function._source = function._source.model_copy(update={"timeout": 0.2})
    with pytest.raises(RewardError, match=r"gave nothing for 3 rows in 0\.2 s"):
        function(INPUTS._replace(prompts=["hang"] * 3))
    deadline = time.monotonic() + 20
    while Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{process}").exists()


def test_a_name_that_is_not_there(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    with pytest.raises(RewardError, match=r"no function 'goood' in .*; expected one of good, later, arrays"):
        load_function(f"{tmp_path / 'mine.py'}:goood")
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(RewardError, match=r"broken.py:f': SyntaxError: .*; expected a file or a module that can"):
        load_function(f"{tmp_path / 'broken.py'}:f")
    with pytest.raises(RewardError, match=r"gone\.py:f': FileNotFoundError"):
        load_function(f"{tmp_path / 'gone.py'}:f")
    with pytest.raises(RewardError, match="ModuleNotFoundError: No module named 'no_such'"):
        load_function("no_such.module:f")
    assert load_function("lite_c2f.reward.functions:ended").__name__ == "ended"


def test_the_hash_is_that_of_the_whole_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("LIMIT = 1\ndef f(inputs): return [LIMIT]\n")
    before = source_hash(f"{file}:f")
    file.write_text("LIMIT = 2\ndef f(inputs): return [LIMIT]\n")
    assert source_hash(f"{file}:f") != before
    assert load_function(f"{file}:f")(None) == [2]
