"""Questions and their streamed answers, and the components around them: shared by all views."""

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from lite_c2f.actors.reply import Reply
from lite_c2f.chat import Chat, ChatSettings, Pane
from lite_c2f.chat.history import History, clean
from lite_c2f.chat.panes import AnswerForm
from lite_c2f.errors import C2FError, ConfigError
from lite_c2f.runs.corpus import example_questions
from lite_c2f.runs.model_pair import TOY
from lite_c2f.ui.escaping import escape
from lite_c2f.ui.page_session import PageSession, PageSessions
from lite_c2f.ui.store.votes import votes_of

PAUSE = 0.08  # seconds between two updates of the answers
PATIENCE = 1.0  # seconds after which a waiting page shows how many questions are before it
EXAMPLES = (
    "Explain why the sky is blue to a ten-year-old.",
    "What should I weigh up before I change jobs?",
    "Plan three cheap dinners for two people.",
)
TOY_ANSWERS = "These toy models can add and subtract, 2 to 4 steps in such words, and nothing else:"

# For events that only draw or stop: at once, beside the queue.
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
# For events that may show a notice or an error: Gradio shows those of queued events alone.
NOTIFYING: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
# JavaScript: the 32 hex digits that a store of the browser has under a key; made and stored where there are none.
SECRET_NUMBER = """const secret = (store, key) => {
    let number = "";
    try { number = window[store].getItem(key) || "" } catch {}
    if (/^[0-9a-f]{32}$/.test(number)) return number;
    const bytes = [...crypto.getRandomValues(new Uint8Array(16))];
    number = bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
    try { window[store].setItem(key, number) } catch {}
    return number;
  };"""
TAB_NUMBER = f"(_) => {{ {SECRET_NUMBER} return secret('sessionStorage', 'lite_c2f.tab') }}"


class Served(NamedTuple):
    """What all views of the app share."""

    chat: Chat
    pages: PageSessions
    folder: Path  # RUN/app: sessions and votes
    facts: dict[str, Any]  # of the run: its name, hashes of its models and adapter

    @property
    def sessions(self) -> Path:
        return self.folder / "sessions"

    @property
    def votes(self) -> Path:
        return votes_of(self.folder.parent)


class Snapshot(NamedTuple):
    """How far the answers of a question are."""

    replies: dict[str, Reply]  # by pane
    waiting: int  # questions before this one; 0 once it has begun
    ended: bool = False  # every answer has ended; what still comes are rewards
    awaited: str = ""  # what is loaded before it can begin

    @property
    def waits_for(self) -> str:
        """What is told where an answer has not begun."""
        return waits_for(self.awaited, self.waiting)


def waits_for(awaited: str, waiting: int | None) -> str:
    """What an answer that has not begun waits for. awaited: what is loaded; waiting: questions before it."""
    return awaited or (f"{waiting} before you" if waiting else "reading the question")


def answers(
    served: Served,
    page: PageSession,
    view: str,
    turns: Mapping[str, History],
    panes: Sequence[str | Pane],
    settings: ChatSettings,
    on_end: Callable[[dict[str, Reply]], None] = lambda _: None,
    form: AnswerForm = AnswerForm(),
) -> Iterator[Snapshot]:
    """Snapshots of the answers as they grow; the last one is complete. Ends early where the page has left them.

    on_end: called once with the replies when all have ended, before the view may ask again; rewards come after that.

    Raises gr.Error, in one line, for what a user can correct.
    """
    try:
        stream = served.chat.stream(turns, panes, settings, score=True, pause=PAUSE, asker=page.owner, form=form)
    except C2FError as error:
        raise failure(error) from None
    page.begin(view, stream)
    replies, ended = dict[str, Reply](), False
    try:
        yield Snapshot({}, stream.waiting, awaited=stream.awaited)
        for batch in stream.batches(PATIENCE):
            if not (ended or page.is_current(view, stream)):
                return
            replies |= {reply.pane: reply for reply in batch}
            if not ended and len(replies) == len(panes) and all(reply.finish for reply in replies.values()):
                with page.lock:
                    on_end(dict(replies))
                    page.written(view, stream)
                ended = True
            yield Snapshot(dict(replies), stream.waiting, ended, stream.awaited)
    finally:
        page.end(view, stream)


def restored(replies: Mapping[str, Reply]) -> dict[str, Reply]:
    """Answers that a reload has interrupted: what was not finished was stopped."""
    return {key: reply if reply.finish else reply._replace(finish="stopped") for key, reply in replies.items()}


class Notice(Exception):  # noqa: N818  it is no error
    """A message to the visitor instead of an answer."""


def refuse_while_answering(page: PageSession, view: str, *, scoring: bool = False) -> None:
    """Raise Notice while a view's last answers are being written; scoring: also while they are scored."""
    if view in page.streams:
        raise Notice("The last answers are still being written: stop them, or wait")
    if scoring and view in page.scoring:
        raise Notice("The last answers are still being scored: wait a moment")


def question_of(text: str | None) -> str:
    """The question typed into the box. Raises Notice where it is empty."""
    if not (text or "").strip():
        raise Notice("Type a question first")
    return clean(text or "").strip()


def failure(error: Exception) -> gr.Error:
    """The error as a page shows it."""
    return gr.Error(escape(str(error)), print_exception=False)


def settings_of(
    ratio: float | None,
    system: str | None = "",
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: float | None = None,
    penalty: float | None = None,
    max_tokens: float | None = None,
    seed: str | int | None = None,
) -> ChatSettings:
    """Settings from a page's inputs: an empty one is its default, an empty seed a random one. Raises ConfigError."""
    default = ChatSettings()
    digits = str("" if seed is None else seed).strip()
    if not re.fullmatch("[0-9]*", digits):
        raise ConfigError.because(f"seed '{digits}'", "a whole number, or nothing", "correct it")
    return ChatSettings(
        max_tokens=int(default.max_tokens if max_tokens is None else max_tokens),
        temperature=default.temperature if temperature is None else temperature,
        top_p=default.top_p if top_p is None else top_p,
        top_k=int(top_k or 0),
        repetition_penalty=default.repetition_penalty if penalty is None else penalty,
        seed=int(digits) if digits else secrets.randbelow(1 << 31),
        ratio=ratio,
        system=clean(system or ""),
    )


def page_settings(*values: Any) -> ChatSettings:
    """`settings_of`, for a page. Raises gr.Error."""
    try:
        return settings_of(*values)
    except ConfigError as error:
        raise failure(error) from None


def settings_fold(chat: Chat) -> list[gr.components.Component]:
    """The fold of settings; its inputs in the order of `settings_of` without the ratio."""
    max_tokens, default = min(1024, chat.context // 2), ChatSettings()
    with gr.Accordion("Settings of this tab", open=False):
        system = gr.Textbox(
            label="System prompt",
            info="Stands before the first question, for every actor.",
            lines=2,
            max_length=8192,
            elem_id="system",
        )
        with gr.Row():
            temperature = gr.Slider(0, 2, default.temperature, step=0.05, label="Temperature", info="0 is greedy.")
            top_p = gr.Slider(0.05, 1, default.top_p, step=0.05, label="Top-p", info="1 is off.")
            top_k = gr.Slider(0, 200, default.top_k, step=1, label="Top-k", info="0 is off.")
        with gr.Row():
            penalty = gr.Slider(1, 2, 1, step=0.05, label="Repetition penalty", info="1 is off.")
            tokens = gr.Slider(
                1,
                max_tokens,
                min(default.max_tokens, max_tokens),
                step=1,
                label="Max new tokens",
                info="The ending counts.",
            )
            seed = gr.Textbox(label="Seed", info="Empty: a new one for each question.", max_lines=1, max_length=19)
    return [system, temperature, top_p, top_k, penalty, tokens, seed]


def ask_row(placeholder: str, prefix: str = "", *, focus: bool = False) -> tuple[gr.Textbox, gr.Button, gr.Button]:
    """(prompt box, Send, Stop all), at the bottom of the window. prefix: of their element ids."""
    with gr.Row(elem_id=f"{prefix}ask", elem_classes="asking"):
        gr.HTML(elem_classes="notice")  # page.js shows Gradio's notices here, where they cover no answer
        prompt = gr.Textbox(
            placeholder=placeholder,
            label="Question",
            show_label=False,
            container=False,
            scale=8,
            max_lines=6,
            elem_classes="prompt",
            elem_id=f"{prefix}prompt",
            autofocus=focus,
        )
        send = gr.Button("Send", variant="primary", scale=1, min_width=70, elem_classes="send", elem_id=f"{prefix}send")
        stop_all = gr.Button(
            "Stop all", scale=1, min_width=70, interactive=False, elem_classes="stop-all", elem_id=f"{prefix}stop-all"
        )
    prompt.change(None, prompt, None, js=f"(text) => {{ window.lite_c2f?.promptChanged('{prefix}prompt', text) }}")
    return prompt, send, stop_all


def ratio_slider(chat: Chat, name: str) -> gr.Slider:
    """The Fine Actor's ratio."""
    return gr.Slider(
        0,
        max(1.5, chat.ratio),
        chat.ratio,
        step=0.05,
        label="Ratio of the Fine Actor",
        info=f"{chat.ratio:g} was merged; 0 is the baseline.",
        elem_classes="wide",
        min_width=260,
        elem_id=name,
    )


def example_row(chat: Chat, prompt: gr.Textbox) -> None:
    """Buttons that put an example question into the box, and what the models can answer."""
    toy = chat.config.model.base == TOY
    with gr.Row(elem_classes="examples"):
        gr.HTML(f'<span class="hint">{TOY_ANSWERS if toy else "Try one of these:"}</span>')
        for question in example_questions(chat.config) or EXAMPLES:
            gr.Button(question, size="sm").click(None, None, prompt, js=f"() => {json.dumps(question)}")
