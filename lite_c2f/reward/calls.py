"""Calls of reward functions: found by name, run under a time limit, and their results checked.

A function runs in a thread of this process, which cannot be ended but is not waited for, or in processes of its own,
which are. What it prints is kept from the terminal.
"""

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import io
import math
import multiprocessing
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.config.rewards import Watched
from lite_c2f.errors import C2FError
from lite_c2f.reward.functions import RewardInputs
from lite_c2f.storage.files import hash_of

Scores = list[float | None]
LARGEST = 1e30  # of a score: beyond, its square or its float32 would not be finite
RESUME = "correct it; what a run has done is saved, and the same command goes on, with --force as the file is another"


class RewardError(C2FError):
    """A reward function cannot be used, or gave something else than numbers."""


class Outcome(NamedTuple):
    """The result of one call: what the function returned, or what it raised, and what it printed."""

    result: Any
    error: str | None
    printed: str


def load_function(reference: str) -> Callable[..., Any]:
    """The function FILE.py:NAME or package.module:NAME. Raises RewardError naming what cannot be found or imported."""
    place, _, name = reference.rpartition(":")
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # any: the file is a user's
        got = f"reward function '{reference}': {_where(error)}"
        raise RewardError.because(got, "a file or a module that can be imported", "correct it or its name") from None
    function = getattr(module, name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        got = f"reward function '{reference}': no function '{name}' in '{place}'"
        raise RewardError.because(got, f"one of {', '.join(names[:12]) or 'its functions'}", "correct the name")
    return function


def source_file(reference: str) -> Path:
    """The file that a function is defined in. Raises RewardError where there is none."""
    place = reference.rpartition(":")[0]
    if place.endswith(".py"):
        file = Path(place)
    else:
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(place)
            file = Path(str(spec.origin)) if spec is not None else Path(place)
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
        self._function = load_function(source.function)
        self._on_message = on_message
        self._pool: Any = None

    def __call__(self, inputs: RewardInputs) -> Scores:
        """One finite number per response, or None. Raises RewardError naming the source, the row and what it gave."""
        if not inputs.responses:
            return []
        outcomes, parts = self._run(inputs), self._parts(len(inputs.responses))
        for outcome in outcomes:
            if outcome.error is not None:
                raise self._error(inputs, outcome.error)
        if printed := next((outcome.printed.strip() for outcome in outcomes if outcome.printed.strip()), None):
            self._report_printed(printed)
        results = zip(outcomes, parts, strict=True)
        return [score for outcome, part in results for score in self._checked(outcome.result, inputs.part(part))]

    def close(self) -> None:
        """End the processes of a function that has some."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None

    def _parts(self, count: int) -> list[list[int]]:
        size = math.ceil(count / max(1, self._source.workers))
        return [list(range(start, min(start + size, count))) for start in range(0, count, size)]

    def _run(self, inputs: RewardInputs) -> list[Outcome]:
        arguments = dict(self._source.arguments)
        if not self._source.workers:
            return [_run_here(self._function, inputs, arguments, self._source.timeout, self._timed_out)]
        if self._pool is None:  # spawned: a forked process would inherit torch's threads and the GPU
            self._pool = multiprocessing.get_context("spawn").Pool(self._source.workers, _quiet)
        calls = [(self._reference, inputs.part(part), arguments) for part in self._parts(len(inputs.responses))]
        try:
            return self._pool.map_async(_run_there, calls, chunksize=1).get(self._source.timeout)
        except multiprocessing.TimeoutError:
            self.close()
            raise self._timed_out(len(inputs.responses)) from None

    def _timed_out(self, count: int) -> RewardError:
        return RewardError.because(
            f"reward '{self._source.name}' ({self._reference}) gave nothing for {count} rows in "
            f"{self._source.timeout:g} s",
            "a result within its time limit",
            f"raise its timeout, or {RESUME}",
        )

    def _error(self, inputs: RewardInputs, error: str) -> RewardError:
        """The error, with the first row that raises it alone; there is time for as many rows as fit into the limit."""
        place = f"all {len(inputs.responses)} rows together"
        if len(inputs.responses) > 1 and not self._source.workers:
            alone = _first_failing(self._function, inputs, dict(self._source.arguments), self._source.timeout)
            if alone is not None:
                row, error = alone
                place = _place(inputs, row)
        elif len(inputs.responses) == 1:
            place = _place(inputs, 0)
        got = f"reward '{self._source.name}' ({self._reference}) at {place} raised {error}"
        return RewardError.because(got, "a number per row, or None", RESUME)

    def _checked(self, result: Any, inputs: RewardInputs) -> Scores:
        about, count = f"reward '{self._source.name}' ({self._reference})", len(inputs.responses)
        try:
            scores = None if isinstance(result, str | bytes | dict) else list(result)
        except Exception as error:  # any: a generator runs the user's code here
            if not isinstance(error, TypeError):
                raise self._error(inputs, _where(error)) from None
            scores = None
        if scores is None:
            got = f"{about} gave {_shown(result)} for {count} rows"
            raise RewardError.because(got, "a list of one number per row", RESUME)
        if len(scores) != count:
            raise RewardError.because(f"{about} gave {len(scores)} values for {count} rows", "one per row", RESUME)
        checked: Scores = []
        for row, score in enumerate(scores):
            number = _number(score)
            if score is not None and number is None:
                got = f"{about} gave {_shown(score)} for {_place(inputs, row)}"
                raise RewardError.because(
                    got, f"a number of at most {LARGEST:g}, or None where it does not apply", RESUME
                )
            checked.append(number)
        return checked

    def _report_printed(self, text: str) -> None:
        if self._on_message is not None:
            line = text.splitlines()[0][:120]
            self._on_message(
                f"reward '{self._source.name}' prints, here {line!r}: its output is not shown; write to a file instead"
            )
            self._on_message = None  # once


def _run_here(
    function: Callable[..., Any],
    inputs: RewardInputs,
    arguments: dict[str, Any],
    timeout: float,
    timed_out: Callable[[int], RewardError],
) -> Outcome:
    """Call it in a thread. One that hangs is left behind; it does not keep the process from ending."""
    outcomes: list[Outcome] = []
    printed = io.StringIO()
    thread = threading.Thread(target=lambda: outcomes.append(_outcome(function, inputs, arguments)), daemon=True)
    with contextlib.redirect_stdout(printed):
        thread.start()
        thread.join(timeout)
    if not outcomes:
        raise timed_out(len(inputs.responses))
    return outcomes[0]._replace(printed=printed.getvalue())


def _run_there(call: tuple[str, RewardInputs, dict[str, Any]]) -> Outcome:
    """Call a function in a process of its own, which imports it at its first call."""
    reference, inputs, arguments = call
    if reference not in _loaded:
        _loaded[reference] = load_function(reference)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        outcome = _outcome(_loaded[reference], inputs, arguments)
    result = outcome.result if outcome.result is None or isinstance(outcome.result, str) else _portable(outcome.result)
    return outcome._replace(result=result, printed=printed.getvalue())


_loaded: dict[str, Callable[..., Any]] = {}


def _quiet() -> None:
    """A worker leaves signals to the process that started it: Ctrl-C lets the update finish."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _portable(result: Any) -> Any:
    """A result in plain types, which can be sent to another process."""
    try:
        return [score if isinstance(score, str) or score is None else float(score) for score in result]
    except (TypeError, ValueError):
        return repr(result)[:120]


def _outcome(function: Callable[..., Any], inputs: RewardInputs, arguments: dict[str, Any]) -> Outcome:
    async def awaited(value: Any) -> Any:
        return await value

    try:
        result = function(inputs, **arguments)
        return Outcome(asyncio.run(awaited(result)) if inspect.isawaitable(result) else result, None, "")
    except BaseException as error:  # SystemExit too: a function must not end the run
        return Outcome(None, _where(error), "")


def _first_failing(
    function: Callable[..., Any], inputs: RewardInputs, arguments: dict[str, Any], timeout: float
) -> tuple[int, str] | None:
    """(row, error) of the first row that raises alone; None where none does, or where time runs out."""
    failing: list[tuple[int, str]] = []

    def search() -> None:
        for row in range(len(inputs.responses)):
            if error := _outcome(function, inputs.part([row]), arguments).error:
                failing.append((row, error))
                return

    thread = threading.Thread(target=search, daemon=True)
    with contextlib.redirect_stdout(io.StringIO()):
        thread.start()
        thread.join(timeout)
    return failing[0] if failing else None


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
    """A float of at most LARGEST of a number (also NumPy's and torch's); None for anything else."""
    if isinstance(score, str | bytes):
        return None
    try:
        number = float(score)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    return number if abs(number) <= LARGEST else None  # NaN compares as false


def _place(inputs: RewardInputs, row: int) -> str:
    return f"row {row + 1} (prompt {_shown(inputs.prompts[row])}, response {_shown(inputs.responses[row])})"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}..."


def _where(error: BaseException) -> str:
    """The kind of an error, its first line, and the last line of code in its way."""
    trace = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in trace if frame.filename != __file__ and frame.name != "__missing__"]
    line = f" (line {frames[-1].lineno} of {Path(frames[-1].filename).name})" if frames else ""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())[:160]}{line}"
