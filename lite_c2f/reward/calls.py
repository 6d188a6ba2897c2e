"""Calls of reward functions: found by name, run under a time limit, and their results checked.

A function runs in a thread of this process, which cannot be ended but is not waited for, or in processes of its own,
which are. What it prints is kept from the terminal.
"""

import asyncio
import contextlib
import copy
import importlib
import importlib.util
import inspect
import io
import math
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.config.rewards import Watched
from lite_c2f.errors import C2FError
from lite_c2f.reward.functions import RewardInputs
from lite_c2f.reward.workers import WorkerDiedError, Workers
from lite_c2f.runtime.lingering_threads import add_lingering
from lite_c2f.storage.files import hash_of

Scores = list[float | None]
TEXTS = str, bytes, bytearray, memoryview  # which are no numbers, nor lists of some
LARGEST = 1e30  # of a score: beyond, its square or its float32 would not be finite
RESUME = "correct it; what a run has done is saved, and the same command goes on, with --force as the file is another"


class RewardError(C2FError):
    """A reward function cannot be used, or gave something else than numbers."""


class Outcome(NamedTuple):
    """The result of one call, in plain types: scores, or what the function raised, or what it gave in their place."""

    scores: Sequence[float | None] = ()
    raised: str | None = None
    given: str | None = None  # in place of scores
    expected: str = ""  # in place of `given`
    row: int | None = None  # that `given` is of, among those of the call
    printed: str = ""
    interrupted: bool = False

    @property
    def failed(self) -> bool:
        return self.interrupted or self.raised is not None or self.given is not None


def load_function(reference: str) -> Callable[..., Any]:
    """The function FILE.py:NAME or package.module:NAME. Raises RewardError naming what cannot be found or imported."""
    place, _, name = reference.rpartition(":")
    if place.endswith(".py"):
        source_file(reference)
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (Exception, SystemExit) as error:  # any: the file is a user's
        got = f"reward function '{reference}': {_where(error)}"
        raise RewardError.because(got, "a file or a module that can be imported", "correct it or its name") from None
    function = getattr(module, name, None)
    if not callable(function):
        own = [
            value
            for value in vars(module).values()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        names = [value.__name__ for value in own if not value.__name__.startswith("_")]
        got = f"reward function '{reference}': no function '{name}' in '{place}'"
        raise RewardError.because(got, f"one of {', '.join(names[:12]) or 'its functions'}", "correct the name")
    return function


def source_file(reference: str) -> Path:
    """The file that a function is defined in. Raises RewardError where there is none."""
    place = reference.rpartition(":")[0]
    file = Path(place).expanduser()
    if not place.endswith(".py"):
        with contextlib.suppress(Exception, SystemExit):  # any: it imports the packages that hold the module
            spec = importlib.util.find_spec(place)
            file = Path(str(spec.origin)) if spec is not None else file
    if not file.is_file():
        raise RewardError.because(f"reward function '{reference}': no file '{file}'", "a Python file", "check the path")
    return file


def source_hash(reference: str) -> str:
    """Hash of the whole file that a function is defined in: with another one, a run would learn from another reward."""
    return hash_of(source_file(reference))[:16]


class RewardFunction:
    """A source that is a function, ready to be called."""

    def __init__(self, source: Watched, on_message: Callable[[str], None] | None = None) -> None:
        assert source.function is not None
        self._source, self._reference = source, source.function
        self._about = f"reward '{source.name}' ({source.function})"
        self._function = load_function(source.function)
        self._on_message = on_message
        self._workers: Workers | None = None

    def __call__(self, inputs: RewardInputs, numbers: Sequence[int] | None = None) -> Scores:
        """One finite number per response, or None. numbers: those of the rows in messages, by default from 1.

        Raises RewardError naming the source, the row and what it gave.
        """
        numbers = range(1, len(inputs.responses) + 1) if numbers is None else numbers
        parts = self._parts(len(inputs.responses))
        outcomes = self._run([inputs.part(part) for part in parts]) if parts else []
        for part, outcome in zip(parts, outcomes, strict=True):
            if outcome.interrupted:
                raise KeyboardInterrupt
            if outcome.failed:
                raise self._error(outcome, inputs.part(part), [numbers[row] for row in part])
        if printed := next((outcome.printed.strip() for outcome in outcomes if outcome.printed.strip()), None):
            self._report_printed(printed)
        return [score for outcome in outcomes for score in outcome.scores]

    def close(self) -> None:
        """End the processes of a function that has some."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _parts(self, count: int) -> list[list[int]]:
        size = max(1, math.ceil(count / max(1, self._source.workers)))
        return [list(range(start, min(start + size, count))) for start in range(0, count, size)]

    def _run(self, parts: Sequence[RewardInputs]) -> list[Outcome]:
        """The outcomes of these calls, which have one time limit; in a thread, none follows one that failed."""
        arguments, timeout = dict(self._source.arguments), self._source.timeout
        count = sum(len(part.responses) for part in parts)
        if self._source.workers and self._workers is None:
            self._workers = Workers(self._source.workers, _run_there)
        try:
            if self._workers is None:
                return _run_here(self._function, parts, arguments, timeout)
            return self._workers.map([(self._reference, part, arguments) for part in parts], timeout)
        except BaseException as error:
            self.close()  # a call may still run there
            if not isinstance(error, Exception) or isinstance(error, RewardError):
                raise
            raise self._no_result(error, count) from None

    def _no_result(self, error: Exception, count: int) -> RewardError:
        """The error of a call that did not come back. count: of its rows."""
        if isinstance(error, TimeoutError):
            got = f"{self._about} gave nothing for {count} rows in {self._source.timeout:g} s"
            return RewardError.because(got, "a result within its time limit", f"raise its timeout, or {RESUME}")
        if isinstance(error, WorkerDiedError):
            got = f"{self._about}: a process of its own ended ({error}) without a result for its part of {count} rows"
            remedy = "see whether memory ran out; a script that trains needs `if __name__ == '__main__':` before it"
            return RewardError.because(got, "scores", f"{remedy}; or {RESUME}")
        got = f"{self._about} cannot be called in processes of its own: {_where(error)}"  # of sending it a column
        return RewardError.because(got, "columns that can be pickled", "leave out its `workers`")

    def _error(self, outcome: Outcome, inputs: RewardInputs, numbers: Sequence[int]) -> RewardError:
        """The error of a call, with the first row that raises the same kind alone, where the time limit allows that."""
        count = len(numbers)
        if outcome.given is not None:
            place = f"{count} rows" if outcome.row is None else _place(inputs, outcome.row, numbers)
            return RewardError.because(f"{self._about} gave {outcome.given} for {place}", outcome.expected, RESUME)
        place, raised = f"all {count} rows together", outcome.raised
        with contextlib.suppress(RewardError):  # no time was left
            alone = [outcome] if count == 1 else self._run([inputs.part([row]) for row in range(count)])
            for row, single in enumerate(alone):
                if single.raised is not None and _kind(single.raised) == _kind(str(raised)):
                    place, raised = _place(inputs, row, numbers), single.raised
                    break
        got = f"{self._about} at {place} raised {raised}"
        return RewardError.because(got, "a number per row, or None", RESUME)

    def _report_printed(self, text: str) -> None:
        if self._on_message is not None:
            line = text.splitlines()[0][:120]
            self._on_message(
                f"reward '{self._source.name}' prints, here {line!r}: its output is not shown; write to a file instead"
            )
            self._on_message = None  # once


def _run_here(
    function: Callable[..., Any], parts: Sequence[RewardInputs], arguments: dict[str, Any], timeout: float
) -> list[Outcome]:
    """The calls, in a thread. One that hangs is left behind; it does not keep a command from ending.

    Each gets copies: what a function changes is not seen by another one, nor by the next call, nor in the data.
    """
    outcomes: list[Outcome] = []

    def call() -> None:
        for part in parts:
            outcomes.append(_outcome(function, part.copied(), copy.deepcopy(arguments)))
            if outcomes[-1].failed:
                return

    printed, thread, others = io.StringIO(), threading.Thread(target=call, daemon=True), set(threading.enumerate())
    with contextlib.redirect_stdout(printed):
        thread.start()
        thread.join(timeout)
    if thread.is_alive():
        add_lingering(set(threading.enumerate()) - others - {thread})  # its own thread is no executor's
        raise TimeoutError
    return [*outcomes[:-1], outcomes[-1]._replace(printed=printed.getvalue())]


def _run_there(call: tuple[str, RewardInputs, dict[str, Any]]) -> Outcome:
    """Call a function in a process of its own, which imports it at its first call."""
    reference, inputs, arguments = call
    if reference not in _loaded:
        _loaded[reference] = load_function(reference)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        outcome = _outcome(_loaded[reference], inputs, arguments)
    return outcome._replace(printed=printed.getvalue())


_loaded: dict[str, Callable[..., Any]] = {}


def _outcome(function: Callable[..., Any], inputs: RewardInputs, arguments: dict[str, Any]) -> Outcome:
    async def awaited(value: Any) -> Any:
        return await value

    count = len(inputs.responses)  # before the function, which may change its inputs
    try:
        result = function(inputs, **arguments)
        return _read(asyncio.run(awaited(result)) if inspect.isawaitable(result) else result, count)
    except KeyboardInterrupt:
        return Outcome(interrupted=True)
    except BaseException as error:  # SystemExit too: a function must not end the run
        return Outcome(raised=_where(error))


def _read(result: Any, count: int) -> Outcome:
    """The scores in what a function returned for `count` rows; a generator runs the user's code here."""
    try:
        values = None if isinstance(result, (*TEXTS, Mapping, Set)) else iter(result)
    except TypeError:
        values = None
    if values is None:
        return Outcome(given=_shown(result), expected="a list of one number per row")
    scores = list(islice(values, count + 1))
    if len(scores) != count:
        more = f"more than {count}" if len(scores) > count else len(scores)  # a generator may have no end
        return Outcome(given=f"{len(result) if hasattr(result, '__len__') else more} values", expected="one per row")
    numbers = [None if score is None else _number(score) for score in scores]
    for row, (score, value) in enumerate(zip(scores, numbers, strict=True)):
        if score is not None and value is None:
            expected = f"a number of at most {LARGEST:g}, or None where it does not apply"
            return Outcome(given=_shown(score), expected=expected, row=row)
    return Outcome(numbers)


def _import_file(file: Path) -> Any:
    """Import a file under a name of its own, so that two files of one name do not meet."""
    file = file.expanduser().resolve()
    name = f"lite_c2f_reward_{hash_of(file)[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"'{file}' is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _number(score: Any) -> float | None:
    """A float of at most LARGEST of a number (also NumPy's, torch's and an array of one); None for anything else."""
    if isinstance(score, TEXTS):
        return None
    try:
        number = float(score.item() if getattr(score, "shape", ()) else score)
    except Exception:  # any: the type may be a user's
        return None
    return number if abs(number) <= LARGEST else None  # NaN compares as false


def _place(inputs: RewardInputs, row: int, numbers: Sequence[int]) -> str:
    return f"row {numbers[row]} (prompt {_shown(inputs.prompts[row])}, response {_shown(inputs.responses[row])})"


def _kind(raised: str) -> str:
    return raised.partition(":")[0]


def _shown(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())
    except Exception:  # any: the type may be a user's
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:56]}..."


def _where(error: BaseException) -> str:
    """The kind of an error, its first line, and the last line of code in its way."""
    trace = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in trace if frame.filename != __file__ and frame.name != "__missing__"]
    frames = [frame for frame in frames if not frame.filename.startswith(("<frozen", str(importlib.__file__)))]
    line = f" (line {frames[-1].lineno} of {Path(frames[-1].filename).name})" if frames else ""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())[:160]}{line}"
