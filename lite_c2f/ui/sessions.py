"""Sessions: a conversation survives a reload, is found again later, and can be taken along as JSON or Markdown.

A browser knows its owner by a random number in its local storage, and a tab its session by one in its session storage.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import gradio as gr
from gradio.context import Context

from lite_c2f.chat import TITLES, ChatSettings
from lite_c2f.errors import C2FError
from lite_c2f.ui import saving
from lite_c2f.ui.answering import QUICK, SPEAKING, Served, failure
from lite_c2f.ui.page_session import PageSession
from lite_c2f.ui.store import conversations
from lite_c2f.ui.store.conversations import Round, Transcript

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
  if (!name) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/octet-stream" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}"""
Page = Callable[[PageSession, bool, float], list[str]]


class Fold(NamedTuple):
    """Components of the fold. text, name: hidden boxes of a file that the browser makes."""

    chosen: gr.Dropdown
    remove: gr.Button
    as_json: gr.Button
    as_markdown: gr.Button
    text: gr.Textbox
    name: gr.Textbox


def _components() -> Fold:
    text, name = (gr.Textbox(visible="hidden", label=label) for label in ("text", "name"))
    with gr.Accordion("Sessions: saved as you go, for this browser alone", open=False), gr.Row(elem_classes="tools"):
        chosen = gr.Dropdown(
            [],
            label="Earlier ones",
            allow_custom_value=True,  # Gradio forgets the list of a page that was not used for long; ids are checked
            container=False,
            elem_classes="wide",
            elem_id="sessions",
        )
        remove = gr.Button("Delete", size="sm", elem_id="delete-session")
        as_json = gr.Button("Export JSON", size="sm", elem_id="export-json")
        as_markdown = gr.Button("Export Markdown", size="sm", elem_id="export-markdown")
    return Fold(chosen, remove, as_json, as_markdown, text, name)


def sessions_fold(
    served: Served, identity: list[Any], knob: list[Any], settings: list[Any], drawn: list[Any], page: Page
) -> Callable[[Any], Any]:
    """The fold of sessions.

    identity: hidden boxes of owner and session; knob: marks and ratio, for `page`, which draws `drawn`; settings: those
    of `settings_in`.
    Returns what to call with each event that changes the conversation.
    """
    owner, session = identity
    fold = _components()
    chosen, text, name = fold.chosen, fold.text, fold.name

    def state(visit: PageSession) -> list[Any]:
        found = saving.choices(served, visit)
        now = visit.transcript.id if visit.transcript else None
        known = any(now == id for _, id in found)
        return [now or "", gr.Dropdown(choices=list(found), value=now if known else None)]

    def after(request: gr.Request) -> list[Any]:
        return state(served.visits.of(request.session_hash))

    def everything(visit: PageSession, marks: bool, ratio: float) -> list[Any]:
        """The page with the settings of the last round: an answer made with them is then not stale."""
        rounds = visit.transcript.rounds if visit.transcript else ()
        found = settings_in(rounds[-1]) if rounds else [gr.skip()] * len(settings)
        shown = found[1] if rounds and isinstance(found[1], int | float) else ratio
        return [*page(visit, marks, shown), *found, *state(visit)]

    def arrive(who: str, id: str, marks: bool, ratio: float, request: gr.Request) -> list[Any]:
        visit = served.visits.of(request.session_hash)
        saving.arrive(served, visit, who, id)
        return [visit.owner, *everything(visit, marks, ratio)]

    def switch(id: str | None, marks: bool, ratio: float, who: str, now: str, request: gr.Request) -> list[Any]:
        visit = saving.visit_of(served, request.session_hash, who, now)
        try:
            saving.reopen(served, visit, id or "")
        except (C2FError, OSError) as error:
            raise failure(error) from None
        return everything(visit, marks, ratio)

    def drop(id: str | None, marks: bool, ratio: float, who: str, now: str, request: gr.Request) -> list[Any]:
        visit = saving.visit_of(served, request.session_hash, who, now)
        try:
            conversations.delete(served.sessions, visit.owner, id or "")
        except (C2FError, OSError) as error:
            raise failure(error) from None
        with visit.changing:
            if visit.transcript is not None and visit.transcript.id == id:
                visit.forget("compare")
                visit.transcript = None
        return [*page(visit, marks, ratio), *state(visit)]

    both = [session, chosen]
    if Context.root_block is not None:
        Context.root_block.load(
            arrive, [owner, session, *knob], [owner, *drawn, *settings, *both], js=IDENTITY, **QUICK
        )
    session.change(None, session, None, js=KEEP)
    chosen.input(switch, [chosen, *knob, *identity], [*drawn, *settings, *both], **SPEAKING)
    fold.remove.click(drop, [chosen, *knob, *identity], [*drawn, *both], **SPEAKING)
    for button, write, ending in (
        (fold.as_json, conversations.as_json, "json"),
        (fold.as_markdown, lambda transcript: conversations.as_markdown(transcript, TITLES), "md"),
    ):
        button.click(_export(served, write, ending), identity, [text, name], **SPEAKING).then(
            None, [text, name], None, js=DOWNLOAD
        )
    return lambda event: event.then(after, None, both, **QUICK)


def _export(served: Served, write: Callable[[Transcript], str], ending: str) -> Any:
    """The handler of a button that saves the conversation as a file."""

    def exported(who: str, now: str, request: gr.Request) -> list[Any]:
        visit = saving.visit_of(served, request.session_hash, who, now)
        if visit.transcript is None or not visit.transcript.rounds:
            gr.Info("Ask something first")
            return ["", ""]
        # The owner's number opens all sessions of that owner: it is not for those who are shown one.
        return [write(visit.transcript._replace(owner="0" * 32)), f"lite_c2f-{visit.transcript.id[:8]}.{ending}"]

    return exported


def settings_in(round_: Round) -> list[Any]:
    """A round's settings for the page: show the base, ratio, and those of the fold without the seed."""
    default = ChatSettings()._asdict()
    values = default | {key: value for key, value in round_.settings.items() if key in default}
    fine = round_.replies.get("fine")
    ratio = fine.ratio if fine is not None and fine.ratio is not None else values["ratio"]
    names = ("system", "temperature", "top_p", "top_k", "repetition_penalty", "max_tokens")
    return ["base" in round_.replies, gr.skip() if ratio is None else ratio, *(values[name] for name in names)]
