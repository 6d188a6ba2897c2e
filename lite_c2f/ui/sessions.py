"""Saved sessions on the page: a conversation survives a reload, is reopened later, and exported as JSON or Markdown.

A browser keeps the owner's random number in its local storage, and a tab that of its session in its session storage.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import gradio as gr
from gradio.context import Context

from lite_c2f.actors.names import BASELINE, COARSE
from lite_c2f.chat import ChatSettings
from lite_c2f.chat.panes import title_of
from lite_c2f.errors import C2FError
from lite_c2f.ui import saving
from lite_c2f.ui.answering import NOTIFYING, QUICK, SECRET_NUMBER, Served, failure
from lite_c2f.ui.other_pane import other_in
from lite_c2f.ui.page_session import Display, PageSession
from lite_c2f.ui.store import conversations
from lite_c2f.ui.store.conversations import Round, Transcript

# The identity, the views as the tab had them, and what else is displayed.
IDENTITY = f"""(_, __, marks, against, together, fully, ...display) => {{
  {SECRET_NUMBER}
  let session = "", views = [marks, against, together, fully];
  try {{
    session = sessionStorage.getItem("lite_c2f.session") || "";
    const kept = JSON.parse(sessionStorage.getItem("lite_c2f.views"));
    const known = kept?.length === views.length && {json.dumps(["", COARSE, BASELINE])}.includes(kept[1]);
    if (known) views = kept; // a list that has no such choice would refuse it
  }} catch {{}}
  return [secret("localStorage", "lite_c2f.owner"), session, ...views, ...display];
}}"""
STORE_SESSION = "(id) => { try { sessionStorage.setItem('lite_c2f.session', id) } catch {} }"
# How the answers are shown is kept for the tab: a reload changes nothing of it.
STORE_VIEWS = "(...views) => { try { sessionStorage.setItem('lite_c2f.views', JSON.stringify(views)) } catch {} }"
# The file is made in the browser: the server hands out no files at all.
DOWNLOAD = """(text, name) => {
  if (!name) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/octet-stream" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}"""
Draw = Callable[[PageSession, Display], list[Any]]


class Fold(NamedTuple):
    """Components of the fold. text, name: hidden boxes with the file that the browser saves."""

    chosen: gr.Dropdown
    remove: gr.Button
    as_json: gr.Button
    as_markdown: gr.Button
    text: gr.Textbox
    name: gr.Textbox


def _components() -> Fold:
    text, name = (gr.Textbox(elem_classes="unseen", label=label) for label in ("text", "name"))
    with gr.Accordion("Sessions: saved as you go, for this browser alone", open=False), gr.Row(elem_classes="tools"):
        chosen = gr.Dropdown(
            [],
            label="Earlier ones",
            allow_custom_value=True,  # Gradio forgets the list of a page that was not used for long; ids are checked
            container=False,
            elem_classes="wide",
            elem_id="sessions",
        )
        remove = gr.Button("Delete", size="sm", interactive=False, elem_id="delete-session")
        as_json = gr.Button("Export JSON", size="sm", interactive=False, elem_id="export-json")
        as_markdown = gr.Button("Export Markdown", size="sm", interactive=False, elem_id="export-markdown")
    return Fold(chosen=chosen, remove=remove, as_json=as_json, as_markdown=as_markdown, text=text, name=name)


def sessions_fold(
    served: Served,
    identity: list[Any],
    display: list[Any],
    settings: list[Any],
    views: list[Any],
    drawn: list[Any],
    draw: Draw,
) -> Callable[[Any], Any]:
    """The fold of sessions.

    identity: hidden boxes of owner and session id; display: the inputs of a `Display`; settings: the inputs that
    `settings_in` fills; views: inputs whose values stay over a reload, the first two those of `display` too; drawn: the
    outputs of `draw`. Returns what to call with each event that changes the conversation.
    """
    (owner, session), fold = identity, _components()

    def listed(page: PageSession) -> list[Any]:
        entries, id = saving.choices(served, page), page.transcript.id if page.transcript else None
        value = id if id in [entry[1] for entry in entries] else None
        buttons = [gr.Button(interactive=value is not None)] * 3
        return [id or "", gr.Dropdown(choices=list(entries), value=value), *buttons]

    def refresh(request: gr.Request, owner: str, session: str) -> list[Any]:
        return listed(saving.page_of(served, request.session_hash, owner, session))

    def restore(page: PageSession, display: Display) -> list[Any]:
        """The page with the settings of the last round: an answer made with them is then not stale."""
        rounds = page.transcript.rounds if page.transcript else ()
        values = settings_in(rounds[-1]) if rounds else [gr.skip()] * len(settings)
        ratio = values[1] if rounds and isinstance(values[1], int | float) else display.ratio
        other = values[2] if rounds else display.other
        return [*draw(page, display._replace(ratio=ratio, other=other)), *values, *listed(page)]

    def load(request: gr.Request, owner: str, id: str, *shown: Any) -> list[Any]:
        page, kept = served.pages.of(request.session_hash), shown[: len(views)]
        saving.identify(served, page, owner, id)
        return [page.owner, *kept, *restore(page, Display(*kept[:2], *shown[len(views) :]))]

    def switch(request: gr.Request, id: str | None, *shown_and_identity: Any) -> list[Any]:
        *shown, owner, session = shown_and_identity
        page = saving.page_of(served, request.session_hash, owner, session)
        if page.transcript is not None and page.transcript.id == id:  # a list that is left tells its value again
            return [gr.skip()] * len([*drawn, *settings, *sessions])  # and answers may be on their way
        try:
            saving.reopen(served, page, id or "")
        except (C2FError, OSError) as error:
            raise failure(error) from None
        return restore(page, Display(*shown))

    def delete(request: gr.Request, id: str | None, *shown_and_identity: Any) -> list[Any]:
        *shown, owner, session = shown_and_identity
        page = saving.page_of(served, request.session_hash, owner, session)
        try:
            conversations.delete(served.sessions, page.owner, id or "")
        except (C2FError, OSError) as error:
            raise failure(error) from None
        with page.lock:
            if page.transcript is not None and page.transcript.id == id:
                page.forget("compare")
                page.transcript = None
        return [*draw(page, Display(*shown)), *listed(page)]

    chosen = [fold.chosen, *display, *identity]
    sessions = [session, fold.chosen, fold.remove, fold.as_json, fold.as_markdown]
    if Context.root_block is not None:
        loaded = [owner, *views, *drawn, *settings, *sessions]
        Context.root_block.load(load, [*identity, *views, *display[2:]], loaded, js=IDENTITY, **QUICK)
    for view in views:
        view.input(None, views, None, js=STORE_VIEWS)
    session.change(None, session, None, js=STORE_SESSION)
    fold.chosen.input(switch, chosen, [*drawn, *settings, *sessions], **NOTIFYING)
    fold.remove.click(delete, chosen, [*drawn, *sessions], **NOTIFYING)
    file = [fold.text, fold.name]
    for button, write, ending in (
        (fold.as_json, conversations.as_json, "json"),
        (fold.as_markdown, _as_markdown, "md"),
    ):
        button.click(_export(served, write, ending), identity, file, **NOTIFYING).then(None, file, None, js=DOWNLOAD)
    return lambda event: event.then(refresh, identity, sessions, **QUICK)


def _as_markdown(transcript: Transcript) -> str:
    keys = {key for round_ in transcript.rounds for key in round_.replies}
    return conversations.as_markdown(transcript, {key: title_of(key) or key for key in keys})


def _export(served: Served, write: Callable[[Transcript], str], ending: str) -> Any:
    """The handler of a button that saves the conversation as a file."""

    def export(owner: str, session: str, request: gr.Request) -> list[Any]:
        page = saving.page_of(served, request.session_hash, owner, session)
        if page.transcript is None or not page.transcript.rounds:
            gr.Info("Ask something first")
            return ["", ""]
        # The owner's number opens all sessions of that owner: it is not for others who see the file.
        return [write(page.transcript._replace(owner="0" * 32)), f"lite_c2f-{page.transcript.id[:8]}.{ending}"]

    return export


def settings_in(round_: Round) -> list[Any]:
    """A round's settings for the page: show the base, ratio, other pane, and those of the fold without the seed."""
    default = ChatSettings()._asdict()
    values = default | {key: value for key, value in round_.settings.items() if key in default}
    fine = round_.replies.get("fine")
    ratio = fine.ratio if fine is not None and fine.ratio is not None else values["ratio"]
    names = ("system", "temperature", "top_p", "top_k", "repetition_penalty", "max_tokens")
    shown = ["base" in round_.replies, gr.skip() if ratio is None else ratio, other_in(round_)]
    return [*shown, *(values[name] for name in names)]
