"""How a command ends (0 done, 2 the user can fix it, 1 a bug, 130 interrupted), and what libraries may say in it."""

import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from types import FrameType

import typer

from lite_c2f.errors import C2FError, FollowerError
from lite_c2f.runtime.signals import HANGUP, fall_silent

LOST = "another process ended (killed, or out of memory?); the same command goes on from the last checkpoint"


@contextlib.contextmanager
def codes(words: Sequence[str], commands: Collection[str]) -> Iterator[None]:
    """Inside the block what people can fix ends in one line on stderr and code 2; with --debug in a traceback.

    given: the words of the command line; commands: names of the commands, to say whose --help to read.
    """
    debug = "--debug" in words
    _end_on_sigterm()
    try:
        yield
    except FollowerError as error:
        sys.exit(error.exit_code)
    except C2FError as error:
        if debug:
            traceback.print_exc()
        sys.exit(_fail(f"error: {' '.join(str(error).split())}", error.exit_code))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        from lite_c2f.runtime.disk_errors import refusal

        message = None if debug else refusal(error)
        if message is None:
            raise
        sys.exit(_fail(f"error: {message}", 2))
    except Exception as error:
        if _process_lost(error):
            sys.exit(_fail(f"error: {LOST}", 1))
        if not hasattr(error, "format_message"):  # not typer's own usage errors: a bug of ours
            raise
        text = " ".join(error.format_message().split()) if words else error.format_message()
        command = next((f" {word}" for word in words if word in commands), "")
        sys.exit(_fail(f"error: {text.rstrip('.')}; see lite-c2f{command} --help" if words else text, 2))


@contextlib.contextmanager
def going_on(close: Callable[[], None], command: str, begun: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Inside the block an interruption is followed by what to do to go on.

    close: called at the end in any case; command: to continue with; begun: is there anything to continue?
    """
    try:
        yield
    except KeyboardInterrupt:
        close()
        if process() == 0:
            saved = f"what was done is saved. Continue with: {command}" if begun() else "nothing was begun"
            typer.echo(f"interrupted; {saved}", err=True)
        raise
    finally:
        close()


def debug_first(words: Sequence[str]) -> list[str]:
    """Let --debug stand anywhere in the command."""
    return [*(["--debug"] if "--debug" in words else []), *(word for word in words if word != "--debug")]


def process() -> int:
    """The number of this process among those of a launcher, from 0."""
    return int(os.environ.get("RANK", "0"))


def quiet() -> None:
    """Keep the libraries' own bars and notices off the terminal, unless --debug asks for them.

    Threads that wait for each other spin only shortly: with the default, a second busy process on a two-core machine
    made training 5 to 20 times slower; with this 2.5 times, and nothing is lost alone (benchmarks/LOG.md).
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "--debug" in sys.argv:
        return
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore")
    for name in ("bitsandbytes", "transformers", "datasets", "accelerate", "torch", "trl", "lm_eval"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def _fail(text: str, code: int) -> int:
    number = process()
    print(text if number == 0 else f"process {number}: {text}", file=sys.stderr)
    return code


def _process_lost(error: Exception) -> bool:
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    from lite_c2f.runtime.distributed import is_lost

    return is_lost(error)


def _end_on_sigterm() -> None:
    """SIGTERM and a closed terminal end a command as Ctrl-C does: things are put away, exit code 130."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:
        signal.signal(HANGUP, _hung_up)


def _hung_up(number: int, frame: FrameType | None) -> None:
    fall_silent()
    raise KeyboardInterrupt
