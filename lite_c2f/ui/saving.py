"""Saving of conversations: written to disk as they grow, by owner."""

import contextlib
import secrets
from collections.abc import Sequence

import gradio as gr

from lite_c2f.chat.history import clean
from lite_c2f.errors import C2FError, RunError
from lite_c2f.ui.answering import Served
from lite_c2f.ui.escaping import escape
from lite_c2f.ui.page_session import PageSession
from lite_c2f.ui.store import conversations
from lite_c2f.ui.store.conversations import Round, Transcript
from lite_c2f.ui.store.owner_files import is_id


def new_transcript(served: Served, page: PageSession) -> Transcript:
    """An empty conversation of this page's owner."""
    return conversations.new(page.owner, served.facts)


def save_transcript(served: Served, page: PageSession, transcript: Transcript, *, quiet: bool = False) -> None:
    """Make it the page's conversation, and save it: under a new id where another page has continued the saved one.

    quiet: no warning where it cannot be saved; another attempt follows soon.
    """
    system = str(transcript.rounds[-1].settings.get("system", "")) if transcript.rounds else ""
    transcript = transcript._replace(system=system)
    with contextlib.suppress(C2FError, OSError):
        on_disk = conversations.load(served.sessions, page.owner, transcript.id).rounds
        if not is_continuation(page.saved_rounds, on_disk):
            transcript = transcript._replace(id=secrets.token_hex(16))
    page.transcript = transcript
    try:
        if transcript.rounds:
            conversations.save(served.sessions, transcript)
        else:
            with contextlib.suppress(RunError):
                conversations.delete(served.sessions, page.owner, transcript.id)
        page.saved_rounds = transcript.rounds
    except (C2FError, OSError, ValueError) as error:  # a full disk, a folder that is gone: the answers are still shown
        if not quiet:
            gr.Warning(f"This conversation is not saved: {escape(' '.join(str(error).split())[:200])}")


def is_continuation(saved: Sequence[Round], on_disk: Sequence[Round]) -> bool:
    """Are the rounds on disk those that were saved, or the same with longer last answers, or their rewards?

    A page that is reloaded while answers are written or scored reads them as far as they have come; until the server
    has noticed that the old page is gone, they are saved once more.
    """
    if len(saved) != len(on_disk) or saved[:-1] != on_disk[:-1]:
        return False
    for before, after in zip(saved[-1:], on_disk[-1:], strict=True):
        if before._replace(replies={}) != after._replace(replies={}):
            return False
        whole = before.replies and all(reply.finish != "stopped" for reply in before.replies.values())
        if whole and before.replies.keys() != after.replies.keys():  # another tab has shown one more pane
            return False
        for pane, reply in before.replies.items():
            longer = after.replies.get(pane)
            if longer is None:
                return False
            if longer != reply._replace(reward=longer.reward) and (
                reply.finish != "stopped" or not longer.text.startswith(reply.text)
            ):
                return False
    return True


def reopen(served: Served, page: PageSession, id: str) -> None:
    """Make a saved session the page's conversation. Raises RunError where there is no such session."""
    transcript = conversations.load(served.sessions, page.owner, id)
    with page.lock:
        page.forget("compare")
        page.transcript, page.saved_rounds = transcript, transcript.rounds


def identify(served: Served, page: PageSession, owner: str, id: str) -> None:
    """Take the owner that a browser has stored, and reopen the session that its tab has stored, if it has one."""
    page.identified = True
    with contextlib.suppress(C2FError, OSError):
        conversations.FILES.check(owner)
        page.owner = owner
        reopen(served, page, id)


def choices(served: Served, page: PageSession) -> Sequence[tuple[str, str]]:
    """The owner's sessions, newest first: (label, id)."""
    return [
        (
            f"{clean(entry.title) or 'empty'} ({entry.created[:16].replace('T', ' ')} UTC, "
            f"{entry.rounds} round{'s'[: entry.rounds != 1]})",
            entry.id,
        )
        for entry in conversations.list_sessions(served.sessions, page.owner)
    ]


def page_of(served: Served, session_hash: str | None, owner: str, id: str) -> PageSession:
    """The page of a Gradio session; one that is not known continues its saved session.

    Not known are the pages of a server that was restarted, and one that is being left: it may ask once more, and its
    tab stores which session that was.

    Raises gr.Error where the browser has not told its owner yet: what would be saved could never be found again.
    """
    page = served.pages.of(session_hash)
    if not page.identified:
        if not is_id(owner):
            raise gr.Error("This page is not loaded yet: try again in a moment, or reload it", print_exception=False)
        identify(served, page, owner, id)
    return page
