"""Run the command line with everything outside this machine refused, and written down.

    python offline_app.py LOG SECONDS app RUN --port 7860

SECONDS: how long each token takes at least, so that there is time to look at answers while they are written. While
there is a file `hold` beside LOG, answers that have as many tokens as it says stay as they are; all else goes on. While
there is a file `loading`, no models are loaded.
"""

import ipaddress
import math
import sys
import time
from pathlib import Path


def is_local(name):
    if name in (None, "", b"", "localhost", b"localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def block(log):
    """Refuse every connection to elsewhere, and write it down in the file `log`."""

    def watch(event, given):
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            name = given[1][0] if isinstance(given[1], tuple) else None
        elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyname_ex"):
            name = given[0]
        else:
            return
        if not is_local(name):
            with Path(log).open("a") as file:
                file.write(f"{event} {name}\n")
            raise OSError("the outside is blocked")

    sys.addaudithook(watch)


if __name__ == "__main__":
    log, seconds, *arguments = sys.argv[1:]
    block(log)
    from lite_c2f.chat.engine import Chat
    from lite_c2f.cli import main

    load, hold = Chat._load, Path(log).with_name("hold")

    def slow(step, rows):
        time.sleep(float(seconds))
        try:
            most = float(hold.read_text())
        except FileNotFoundError:
            most = math.inf
        if any(len(row.tokens) < most for row in rows.rows if row.finish is None):
            step(rows)

    def load_later(chat):
        while Path(log).with_name("loading").exists():
            time.sleep(0.02)
        loaded = load(chat)
        from lite_c2f.chat.rows import AnswerRows

        step = AnswerRows.step
        AnswerRows.step = lambda rows: slow(step, rows)
        return loaded

    Chat._load = load_later
    main(arguments)
