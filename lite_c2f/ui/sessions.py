"""Sessions: a conversation survives a reload, is found again later, and can be taken along as JSON or Markdown.

A browser knows its owner by a random number in its local storage, and a tab its session by one in its session storage.
"""

import contextlib
import secrets
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.context import Context

from lite_c2f import transcripts
from lite_c2f.chat import TITLES
from lite_c2f.errors import C2FError, RunError
from lite_c2f.transcripts import Transcript
from lite_c2f.ui.answering import Served, failure
from lite_c2f.ui.visits import Visit

IDENTITY = """(_, __, marks, ratio) => {
  const read = (store, key) => { try { return window[store].getItem(key) || "" } catch { return "" } };
  let owner = read("localStorage", "lite_c2f.owner");
  if (!/^[0-9a-f]{32}$/.test(owner)) {
    const bytes = [...crypto.getRandomValues(new Uint8Array(16))];
    owner = bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
    try { localStorage.setItem("lite_c2f.owner", owner) } catch {}
  }
  return [owner, read("sessionStorage", "lite_c2f.session"), marks, ratio];
}"""
KEEP = "(id) => { try { sessionStorage.setItem('lite_c2f.session', id) } catch {} }"
# The file is made in the browser: the server hands out no files at all.
DOWNLOAD = """(text, name) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/octet-stream" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}"""
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
Page = Callable[[Visit, bool, float], list[str]]


def new_transcript(served: Served, visit: Visit) -> Transcript:
    """An empty session of this visitor."""
    return transcripts.new(visit.owner, served.facts)


def keep(served: Served, visit: Visit, transcript: Transcript) -> None:
    """Make it the visitor's conversation, and save it. One that another tab has gone on with is saved beside that."""
    system = str(transcript.rounds[-1].settings.get("system", "")) if transcript.rounds else ""
    transcript = transcript._replace(system=system)
    with contextlib.suppress(C2FError):
        if transcripts.load(served.sessions, visit.owner, transcript.id).rounds != visit.saved:
            transcript = transcript._replace(id=secrets.token_hex(16))
    visit.transcript, visit.saved = transcript, transcript.rounds
    if transcript.rounds:
        transcripts.save(served.sessions, transcript)
    else:
        with contextlib.suppress(RunError):
            transcripts.delete(served.sessions, visit.owner, transcript.id)


def sessions_fold(served: Served, knob: list[Any], shown: list[Any], page: Page) -> Callable[[Any], Any]:
    """The fold of sessions. knob: marks and ratio, for `page`, which draws `shown`.

    Returns what to call with each event that changes the conversation.
    """
    owner, session, text, name = (gr.Textbox(visible="hidden", label=label) for label in ("", " ", "  ", "   "))
    with gr.Accordion("Sessions", open=False), gr.Row(elem_classes="tools"):
        chosen = gr.Dropdown([], label="Earlier ones", container=False, elem_classes="wide", elem_id="sessions")
        reopen = gr.Button("Open", size="sm", elem_id="reopen")
        remove = gr.Button("Delete", size="sm")
        as_json = gr.Button("Export JSON", size="sm", elem_id="export-json")
        as_markdown = gr.Button("Export Markdown", size="sm", elem_id="export-markdown")

    def choices(visit: Visit) -> Any:
        entries = transcripts.listing(served.sessions, visit.owner)
        named = [(f"{entry.title or 'empty'} ({entry.created[:16].replace('T', ' ')})", entry.id) for entry in entries]
        now = visit.transcript.id if visit.transcript else None
        return gr.Dropdown(choices=named, value=now if any(now == id for _, id in named) else None)

    def state(visit: Visit) -> list[Any]:
        return [visit.transcript.id if visit.transcript else "", choices(visit)]

    def after(request: gr.Request) -> list[Any]:
        return state(served.visits.of(request.session_hash))

    def arrive(who: str, id: str, marks: bool, ratio: float, request: gr.Request) -> list[Any]:
        visit = served.visits.of(request.session_hash)
        with contextlib.suppress(C2FError):
            transcripts.listing(served.sessions, who)  # refuses what is no owner
            visit.owner = who
            open_session(visit, id)
        return [*page(visit, marks, ratio), *state(visit)]

    def open_session(visit: Visit, id: str) -> None:
        found = transcripts.load(served.sessions, visit.owner, id)
        visit.forget("compare")
        visit.transcript, visit.saved = found, found.rounds

    def switch(id: str | None, marks: bool, ratio: float, request: gr.Request) -> list[Any]:
        visit = served.visits.of(request.session_hash)
        try:
            open_session(visit, id or "")
        except C2FError as error:
            raise failure(error) from None
        return [*page(visit, marks, ratio), *state(visit)]

    def drop(id: str | None, marks: bool, ratio: float, request: gr.Request) -> list[Any]:
        visit = served.visits.of(request.session_hash)
        try:
            transcripts.delete(served.sessions, visit.owner, id or "")
        except C2FError as error:
            raise failure(error) from None
        if visit.transcript is not None and visit.transcript.id == id:
            visit.forget("compare")
            visit.transcript = None
        return [*page(visit, marks, ratio), *state(visit)]

    def current(request: gr.Request) -> Transcript:
        visit = served.visits.of(request.session_hash)
        if visit.transcript is None or not visit.transcript.rounds:
            raise gr.Error("Nothing has been asked yet", print_exception=False)
        return visit.transcript

    def json_of(request: gr.Request) -> list[str]:
        found = current(request)
        return [transcripts.as_json(found), f"lite_c2f-{found.id[:8]}.json"]

    def markdown_of(request: gr.Request) -> list[str]:
        found = current(request)
        return [transcripts.as_markdown(found, TITLES), f"lite_c2f-{found.id[:8]}.md"]

    both = [session, chosen]
    if Context.root_block is not None:
        Context.root_block.load(arrive, [owner, session, *knob], [*shown, *both], js=IDENTITY, **QUICK)
    session.change(None, session, None, js=KEEP)
    reopen.click(switch, [chosen, *knob], [*shown, *both], **QUICK)
    remove.click(drop, [chosen, *knob], [*shown, *both], **QUICK)
    as_json.click(json_of, None, [text, name], **QUICK).then(None, [text, name], None, js=DOWNLOAD)
    as_markdown.click(markdown_of, None, [text, name], **QUICK).then(None, [text, name], None, js=DOWNLOAD)
    return lambda event: event.then(after, None, both, **QUICK)
