"""Calls of reward functions: where they are found, and what becomes of those that misbehave."""

import copy
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lite_c2f.config.rewards import Watched
from lite_c2f.reward.calls import RewardError, RewardFunction, load_function, source_hash
from lite_c2f.reward.functions import RewardInputs, Row
from lite_c2f.reward.workers import _ending

FILE = """
import asyncio, decimal, itertools, os, time

class Late:  # processes start sooner without the large ones
    def __init__(self, name): self.name = name
    def __getattr__(self, part): return getattr(__import__(self.name), part)
np, torch = Late("numpy"), Late("torch")

def good(inputs): return [len(text) for text in inputs.responses]
async def later(inputs):
    await asyncio.sleep(0)
    return [1.0 if text == "ab" else None for text in inputs.responses]
def arrays(inputs): return np.array([0.5] * len(inputs.responses), dtype="float32")
def column_of_tensor(inputs): return torch.tensor([[0.5], [1.0], [2.0]], requires_grad=True)
def mixed(inputs): return iter([decimal.Decimal("0.25"), True, np.int64(3)])
def none(inputs): return [None] * len(inputs.responses)
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
def endless(inputs): return itertools.repeat(1.0)
def many(inputs): return np.zeros(5)
def matrix(inputs): return torch.zeros(3, 2)
def zero_d(inputs): return torch.tensor(1.0)
def unordered(inputs): return {1.0, 2.0, 3.0}
def no_decimal(inputs): return [0.0, decimal.Decimal("NaN"), 0.0]
def bytes_(inputs): return [b"1", b"2", b"3"]
def shy(inputs):
    class Shy:
        def __repr__(self): raise RuntimeError("no")
        __float__ = __repr__
    return [0.0, 0.0, Shy()]
def leaves_late(inputs):
    yield 0.0
    raise SystemExit("late")
def interrupts(inputs): raise KeyboardInterrupt
def row_three(inputs): return ["x" if text == "abcd" else 0.0 for text in inputs.responses]
def breaks_at_three(inputs): return [1 / (text != "abcd") for text in inputs.responses]
def chosen(inputs, name): return globals()[name](inputs)
def large(inputs): return [0.0, 0.0, -1e200]
def prints(inputs):
    print("hello\\nthere")
    return [0.0] * len(inputs.responses)
def hangs(inputs): time.sleep(60)
async def hangs_in_a_thread(inputs): await asyncio.to_thread(time.sleep, 300)
def changes(inputs, names):
    for row, ids in zip(inputs.rows, inputs.token_ids):
        row.clear(), ids.clear()
    inputs.turns[0].append(("human", "more")), inputs.responses.pop(), names.append("x")
    return [float(len(names))] * len(inputs.prompts)
def dies(inputs): os._exit(3)
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

    def run(name, inputs=INPUTS, numbers=None, **settings):
        function = RewardFunction(Watched(function=f"{file}:{name}", **settings))
        try:
            return function(inputs, numbers)
        finally:
            function.close()

    return run


def test_numbers_of_any_kind_and_none(call):
    assert call("good") == [2.0, 2.0, 4.0]
    assert call("later") == [1.0, None, None]
    assert call("arrays") == [0.5, 0.5, 0.5]
    assert call("scaled", arguments={"by": 2}) == [4.0, 4.0, 8.0]
    assert call("column_of_tensor") == [0.5, 1.0, 2.0]
    assert call("mixed") == [0.25, 1.0, 3.0]
    assert call("none") == [None, None, None]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "at row 1 (prompt 'p1', response 'ab') raised ValueError: could not convert string to float: 'ab'"),
        ("column", "at row 3 (prompt 'p3', response 'abcd') raised KeyError: no column 'level', the row has topic"),
        ("together", "at all 3 rows together raised RuntimeError: too many (line 22 of mine.py)"),
        ("nan", "gave nan for row 2 (prompt 'p2', response '12'); expected a number of at most 1e+30, or None"),
        ("few", "gave 1 values for 3 rows; expected one per row"),
        ("text", "gave 'good' for row 1"),
        ("one", "gave 3.0 for 3 rows; expected a list of one number per row"),
        ("nothing", "gave None for 3 rows; expected a list"),
        ("leaves", "raised SystemExit: 3"),
        ("lazy", "raised KeyError: no column 'level', the row has topic"),
        ("huge", "for row 2 (prompt 'p2', response '12'); expected a number of at most 1e+30"),
        ("large", "gave -1e+200 for row 3"),
        ("endless", "gave more than 3 values for 3 rows; expected one per row"),
        ("many", "gave 5 values for 3 rows"),
        ("matrix", "gave tensor([0., 0.]) for row 1"),
        ("zero_d", "gave tensor(1.) for 3 rows; expected a list"),
        ("unordered", "gave {1.0, 2.0, 3.0} for 3 rows; expected a list"),
        ("no_decimal", "gave Decimal('NaN') for row 2"),
        ("bytes_", "gave b'1' for row 1"),
        ("shy", "gave a Shy for row 3"),
        ("leaves_late", "raised SystemExit: late"),
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


def test_rows_have_their_numbers_in_the_batch(call):
    """Of three rows that a function applies to, the third is number 8; in processes, the second of the second part."""
    with pytest.raises(RewardError, match=r"gave 'x' for row 8 \(prompt 'p3', response 'abcd'\)"):
        call("row_three", numbers=[2, 5, 8])
    with pytest.raises(RewardError, match=r"at row 8 \(prompt 'p3', response 'abcd'\) raised ZeroDivisionError"):
        call("breaks_at_three", numbers=[2, 5, 8])


def test_an_interrupt_stays_one(call):
    with pytest.raises(KeyboardInterrupt):
        call("interrupts")


def test_processes_give_what_a_thread_gives(tmp_path):
    """Two of them, each with two rows: the second row of the second part is row 4."""
    (tmp_path / "mine.py").write_text(FILE)
    function = RewardFunction(Watched(function=f"{tmp_path / 'mine.py'}:chosen", workers=2))
    four = RewardInputs(*([column[0], *column] for column in INPUTS))

    def there(name, inputs=four):
        function._source = function._source.model_copy(update={"arguments": {"name": name}})
        return function(inputs)

    last = r"row 4 \(prompt 'p3', response 'abcd'\)"
    refused = {
        "row_three": f"gave 'x' for {last}",
        "breaks_at_three": rf"at {last} raised ZeroDivisionError: .*line \d+ of mine\.py",
        "bytes_": r"gave 3 values for 2 rows",
        "shy": r"gave 3 values for 2 rows",
        "text": "gave 'good' for row 1",
        "one": r"gave 3\.0 for 2 rows; expected a list",
        "leaves": r"at row 1 .* raised SystemExit: 3",
        "endless": "gave more than 2 values",
    }
    try:
        assert there("good") == [2.0, 2.0, 2.0, 4.0] and there("later") == [1.0, 1.0, None, None]
        for name, said in refused.items():
            with pytest.raises(RewardError, match=said):
                there(name)
        with pytest.raises(KeyboardInterrupt):
            there("interrupts")
        with pytest.raises(
            RewardError, match=r"cannot be called in processes of its own: .*columns that can be pickled"
        ):
            there("good", INPUTS._replace(rows=[Row(level=lambda: 0)] * 3))
        assert there("good", INPUTS) == [2.0, 2.0, 4.0]  # and goes on
    finally:
        function.close()


def test_a_file_that_ends_the_program_is_refused(tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text("import sys\nsys.exit('usage: script')\n")
    with pytest.raises(RewardError, match=r"script\.py:f': SystemExit: usage: script .*; expected a file or a module"):
        load_function(f"{tmp_path / 'script.py'}:f")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RewardError, match="'script:f': SystemExit"):
        load_function("script:f")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("raise SystemExit\n")
    with pytest.raises(RewardError, match=r"no file 'package\.inner'"):
        source_hash("package.inner:f")
    with pytest.raises(RewardError, match=r"no file 'no_such\.module'"):
        source_hash("no_such.module:f")
    (tmp_path / "stopped.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_function(f"{tmp_path / 'stopped.py'}:f")


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


def test_a_process_that_dies_is_missed_at_once(call):
    """Not at the time limit of a minute."""
    began = time.monotonic()
    said = r"a process of its own ended \(exit code 3\) without a result for .* 3 rows"
    with pytest.raises(RewardError, match=said):
        call("dies", workers=1)
    assert time.monotonic() - began < 50
    assert [_ending(code) for code in (1, -9, -200)] == ["exit code 1", "SIGKILL", "signal 200"]


def test_what_a_function_changes_is_its_own(call):
    inputs = RewardInputs(["p"], ["r"], [[1, 2]], ["eos"], [Row(tests=[1])], [[("human", "p")]])
    before, names = copy.deepcopy(inputs), ["a"]
    for _ in range(2):
        assert call("changes", inputs, arguments={"names": names}) == [2.0]
    assert inputs == before and names == ["a"]


def test_a_command_ends_in_spite_of_a_thread_that_hangs(tmp_path):
    """The thread is the function's own and no daemon: Python would wait for its 300 seconds."""
    (tmp_path / "mine.py").write_text(FILE)
    program = f"""
from lite_c2f.cli import app, main
from lite_c2f.config.rewards import Watched
from lite_c2f.reward.calls import RewardFunction
from lite_c2f.reward.functions import RewardInputs
@app.command()
def hung():
    function = RewardFunction(Watched(function="{tmp_path / "mine.py"}:hangs_in_a_thread", timeout=0.2))
    function(RewardInputs(["p"], ["r"], [[1]], ["eos"], [{{}}], [[]]))
main(["hung"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "gave nothing for 1 rows in 0.2 s" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_name_that_is_not_there(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    with pytest.raises(RewardError, match=r"no function 'goood' in .*; expected one of good, later, arrays"):
        load_function(f"{tmp_path / 'mine.py'}:goood")
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(RewardError, match=r"broken.py:f': SyntaxError: .*; expected a file or a module that can"):
        load_function(f"{tmp_path / 'broken.py'}:f")
    with pytest.raises(RewardError, match=r"gone\.py:f': no file '.*gone\.py'; expected a Python file; check the path"):
        load_function(f"{tmp_path / 'gone.py'}:f")
    with pytest.raises(RewardError, match=r"ModuleNotFoundError: No module named 'no_such'; expected"):
        load_function("no_such.module:f")
    assert load_function("lite_c2f.reward.functions:ended").__name__ == "ended"
    with pytest.raises(RewardError, match="expected one of ended, length, tokens"):  # none that the module imports
        load_function("lite_c2f.reward.functions:end")


def test_the_hash_is_that_of_the_whole_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("LIMIT = 1\ndef f(inputs): return [LIMIT]\n")
    before = source_hash(f"{file}:f")
    file.write_text("LIMIT = 2\ndef f(inputs): return [LIMIT]\n")
    assert source_hash(f"{file}:f") != before
    assert load_function(f"{file}:f")(None) == [2]
