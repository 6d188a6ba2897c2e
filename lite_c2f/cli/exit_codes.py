"""Exit codes (0 done, 2 an error that the user can fix, 1 a bug, 130 interrupted), and the libraries' output."""

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
from lite_c2f.runtime.signals import AT_ONCE, HANGUP, discard_output

PROCESS_LOST = "another process ended (killed, or out of memory?); the same command continues from the last checkpoint"


@contextlib.contextmanager
def handled_errors(words: Sequence[str], commands: Collection[str]) -> Iterator[None]:
    """In the block, an error that the user can fix becomes one line on stderr and exit code 2 (--debug: a traceback).

    words: of the command line; commands: names of the commands, to name the --help to read.
    """
    debug = "--debug" in words
    _interrupt_on_sigterm()
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
            sys.exit(_fail(f"error: {PROCESS_LOST}", 1))
        if not hasattr(error, "format_message"):  # no usage error of typer's: a bug
            raise
        text = " ".join(error.format_message().split()) if words else error.format_message()
        command = next((f" {word}" for word in words if word in commands), "")
        sys.exit(_fail(f"error: {text.rstrip('.')}; see lite-c2f{command} --help" if words else text, 2))


@contextlib.contextmanager
def interruption_hint(
    close: Callable[[], None], command: str, begun: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """In the block, an interruption prints how to continue.

    close: always called at the end; command: to continue with; begun: whether there is anything to continue.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        close()
        if process_number() == 0:
            done = "the step was not saved, earlier ones are" if error.args == (AT_ONCE,) else "what was done is saved"
            saved = f"{done}. Continue with: {command}" if begun() else "nothing was begun"
            typer.echo(f"interrupted; {saved}", err=True)
        raise
    finally:
        close()


def move_debug_first(words: Sequence[str]) -> list[str]:
    """The words with --debug first, so that it is accepted anywhere in the command."""
    return [*(["--debug"] if "--debug" in words else []), *(word for word in words if word != "--debug")]


def process_number() -> int:
    """The number of this process among those of a launcher, from 0."""
    return int(os.environ.get("RANK", "0"))


def silence_libraries() -> None:
    """Silence the libraries' progress bars and messages, unless --debug is given."""
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
    number = process_number()
    print(text if number == 0 else f"process {number}: {text}", file=sys.stderr)
    return code


def _process_lost(error: Exception) -> bool:
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    from lite_c2f.runtime.distributed import is_lost

    return is_lost(error)


def _interrupt_on_sigterm() -> None:
    """Let SIGTERM and a closed terminal end a command as Ctrl-C does: with cleanup and exit code 130."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:
        signal.signal(HANGUP, _hung_up)


def _hung_up(number: int, frame: FrameType | None) -> None:
    discard_output()
    raise KeyboardInterrupt
