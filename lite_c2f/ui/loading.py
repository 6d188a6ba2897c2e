"""Loading a chat's models while its page is served."""

import contextlib
import threading

from lite_c2f.chat import Chat
from lite_c2f.runtime.lingering_threads import add_lingering

REFRESH_LOADING = 0.5  # seconds


def load_behind(chat: Chat) -> None:
    """Load the models in a thread, and raise what that raises.

    Python hands an interruption to the main thread alone: while that imports and loads itself, it is lost in a callback
    of the garbage collection now and then, or is taken for a failure of what is being imported.
    """

    ended = threading.Event()  # and no `join`: where that is interrupted, Python 3.11 takes the thread for ended

    def load() -> None:
        with contextlib.suppress(BaseException):  # raised below
            chat.load()
        ended.set()

    thread = threading.Thread(target=load, name="lite_c2f-load", daemon=True)
    add_lingering([thread])
    thread.start()
    while not ended.wait(REFRESH_LOADING):  # without a limit Windows would not interrupt it
        pass
    chat.load()
