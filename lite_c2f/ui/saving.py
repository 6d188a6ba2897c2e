"""Conversations on the disk: saved as they grow, by their owner."""

import contextlib
import secrets
from collections.abc import Sequence

import gradio as gr

from lite_c2f.chat.prompts import clean
from lite_c2f.errors import C2FError, RunError
from lite_c2f.ui.answering import Served
from lite_c2f.ui.escaping import escape
from lite_c2f.ui.page_session import PageSession
from lite_c2f.ui.store import conversations
from lite_c2f.ui.store.conversations import Round, Transcript


def new_transcript(served: Served, visit: PageSession) -> Transcript:
    """An empty session of this visitor."""
    return conversations.new(visit.owner, served.facts)


def keep(served: Served, visit: PageSession, transcript: Transcript, *, quiet: bool = False) -> None:
    """Make it the visitor's conversation, and save it. One that another page has gone on with is saved beside that.

    quiet: say nothing where it cannot be saved; it is tried again soon.
    """
    system = str(transcript.rounds[-1].settings.get("system", "")) if transcript.rounds else ""
    transcript = transcript._replace(system=system)
    with contextlib.suppress(C2FError, OSError):
        if not is_same(visit.saved, conversations.load(served.sessions, visit.owner, transcript.id).rounds):
            transcript = transcript._replace(id=secrets.token_hex(16))
    visit.transcript = transcript
    try:
        if transcript.rounds:
            conversations.save(served.sessions, transcript)
        else:
            with contextlib.suppress(RunError):
                conversations.delete(served.sessions, visit.owner, transcript.id)
        visit.saved = transcript.rounds
    except (C2FError, OSError, ValueError) as error:  # a full disk, a folder that is gone: the answers are there
        if not quiet:
            gr.Warning(f"This conversation is not saved: {escape(' '.join(str(error).split())[:200])}")


def is_same(saved: Sequence[Round], found: Sequence[Round]) -> bool:
    """Is what is found on the disk what was saved, or that with more of its last answers?

    A page that is loaded anew while answers are written finds them as far as they have come; until the server has
    noticed that the old page is gone, they are saved once more.
    """
    if len(saved) != len(found) or saved[:-1] != found[:-1]:
        return False
    for mine, there in zip(saved[-1:], found[-1:], strict=True):
        if mine._replace(replies={}) != there._replace(replies={}):
            return False
        for pane, reply in mine.replies.items():
            other = there.replies.get(pane)
            if other == reply:
                continue
            if other is None or reply.finish != "stopped" or not other.text.startswith(reply.text):
                return False
    return True


def reopen(served: Served, visit: PageSession, id: str) -> None:
    """Make a saved session the visitor's conversation. Raises RunError where there is no such session."""
    transcript = conversations.load(served.sessions, visit.owner, id)
    with visit.changing:
        visit.forget("compare")
        visit.transcript, visit.saved = transcript, transcript.rounds


def arrive(served: Served, visit: PageSession, owner: str, id: str) -> None:
    """A page was loaded in a browser that knows its owner, and in a tab that may know its session."""
    visit.arrived = True
    with contextlib.suppress(C2FError, OSError):
        conversations.check_ids(owner)
        visit.owner = owner
        reopen(served, visit, id)


def choices(served: Served, visit: PageSession) -> Sequence[tuple[str, str]]:
    """The visitor's sessions, newest first: (what it is called, its id)."""
    return [
        (
            f"{clean(entry.title) or 'empty'} ({entry.created[:16].replace('T', ' ')} UTC, "
            f"{entry.rounds} round{'s'[: entry.rounds != 1]})",
            entry.id,
        )
        for entry in conversations.listing(served.sessions, visit.owner)
    ]


def visit_of(served: Served, session_hash: str | None, owner: str, id: str) -> PageSession:
    """The visit of a Gradio session; one that a restarted server does not know is taken up where it was saved."""
    visit = served.visits.of(session_hash)
    if not visit.arrived:
        arrive(served, visit, owner, id)
    return visit
