"""Own questions in the Evaluation tab: the list of prompts, the fold in which a set begins, and its buttons."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gradio as gr

from lite_c2f.chat import Chat, ChatSettings
from lite_c2f.chat.panes import MIN_PROMPT_TOKENS
from lite_c2f.errors import C2FError, ConfigError
from lite_c2f.ui.answering import NOTIFYING, failure, settings_of
from lite_c2f.ui.escaping import fill
from lite_c2f.ui.own_questions import MAX_CHARACTERS, MAX_QUESTIONS
from lite_c2f.ui.prompt_choice import HELD_OUT, Controls, Prompts, exported
from lite_c2f.ui.prompt_sets import NAME_LENGTH
from lite_c2f.ui.sessions import DOWNLOAD

BOX = "own-questions"  # element id; page.js keeps its text over a reload
PLACEHOLDER = 'One question per line, or one JSON object per line: {"prompt": "..."}'


class SetParts(NamedTuple):
    """Components of the prompts shown and of the visitor's own questions."""

    which: gr.Dropdown
    remove: gr.Button
    export: gr.Button
    file: list[gr.Textbox]  # hidden boxes, text and name of the file that the browser saves
    status: gr.HTML
    stop: gr.Button
    go_on: gr.Button
    questions: gr.Textbox
    form: list[Any]  # name, most new tokens, temperature, seed
    begin: gr.Button

    @property
    def shown(self) -> list[Any]:
        """What `shown` updates."""
        return [self.which, self.status, self.stop, self.go_on, self.remove, self.export]


def lay_out(chat: Chat) -> SetParts:
    """Add the components to the view that is being built."""
    with gr.Row(elem_classes="tools"):
        which = gr.Dropdown(
            [("Held-out prompts of the run", HELD_OUT)],
            value=HELD_OUT,
            label="Prompts",
            allow_custom_value=True,  # Gradio forgets the list of a page that was not used for long; ids are checked
            elem_classes="wide",
            elem_id="prompt-sets",
        )
        stop, go_on, remove, export = (
            gr.Button(label, size="sm", interactive=False, elem_id=name)
            for name, label in (
                ("stop-set", "Stop"),
                ("continue-set", "Continue"),
                ("delete-set", "Delete"),
                ("export-set", "Export JSONL"),
            )
        )
    file = [gr.Textbox(elem_classes="unseen", label=label) for label in ("text", "name")]
    status = gr.HTML(elem_id="set-status")
    with gr.Accordion("Your own questions", open=False):
        gr.HTML(
            '<p class="hint">All four actors answer them; questions and answers are kept for this browser alone.</p>'
        )
        questions = gr.Textbox(
            label=f"Questions, up to {MAX_QUESTIONS}",
            placeholder=PLACEHOLDER,
            lines=5,
            max_lines=12,
            max_length=MAX_CHARACTERS,
            elem_classes="prompt",
            elem_id=BOX,
        )
        gr.HTML(fill("question_file.html", most=MAX_CHARACTERS))
        form = _form(chat)
        begin = gr.Button("Answer them", variant="primary", elem_id="answer-set")
    questions.change(None, questions, None, js=f"(text) => {{ window.lite_c2f?.promptChanged('{BOX}', text) }}")
    return SetParts(which, remove, export, file, status, stop, go_on, questions, form, begin)


def _form(chat: Chat) -> list[Any]:
    """Inputs of name and settings, with those of the run's evaluation."""
    evaluation, most = chat.config.evaluation, chat.context - MIN_PROMPT_TOKENS
    with gr.Row():
        name = gr.Textbox(
            label="Name", placeholder="else the first question", max_lines=1, max_length=NAME_LENGTH, min_width=180
        )
        tokens = gr.Number(
            min(evaluation.max_tokens, most),
            label="Max new tokens",
            precision=0,
            minimum=1,
            maximum=most,
            min_width=110,
        )
        temperature = gr.Number(
            evaluation.temperature, label="Temperature (0: greedy)", minimum=0, step=0.1, min_width=110
        )
        seed = gr.Number(
            chat.config.run.seed,
            label="Seed of the first",
            precision=0,
            minimum=0,
            min_width=110,
        )
    return [name, tokens, temperature, seed]


def settings_in(max_tokens: Any, temperature: Any, seed: Any) -> ChatSettings:
    """The settings in the form; an empty one is its default, an empty seed a random one. Raises ConfigError."""
    try:
        return settings_of(None, "", temperature, None, None, None, max_tokens, seed)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError.because("a setting that is no number", "numbers", "correct it") from None


def connect(
    prompts: Prompts, own: SetParts, refresh: Callable[..., list[Any]], inputs: list[Any], everything: list[Any]
) -> None:
    """The buttons of a visitor's own questions. refresh: of `inputs`, which returns updates of `everything`."""

    def begin(questions: str, name: str, *form_and_shown: Any) -> list[Any]:
        settings, (sent, owner, _, *asked) = form_and_shown[: len(own.form) - 1], form_and_shown[len(own.form) - 1 :]
        try:
            chosen = settings_in(*settings)
            made = prompts.sets.begin(owner, name or "", questions or "", chosen)
        except (C2FError, OSError) as error:
            raise failure(error) from None
        return ["", "", *refresh(sent, owner, made.id, *asked)]

    def change(action: Callable[[str, str], None]) -> Callable[..., list[Any]]:
        """The handler that does something with the owner's set that is shown."""

        def handler(sent: Any, owner: str, which: Any, *asked: Any) -> list[Any]:
            try:
                action(owner, str(which or HELD_OUT))
            except (C2FError, OSError) as error:
                raise failure(error) from None
            return refresh(sent, owner, which, *asked)

        return handler

    def export(owner: str, which: Any) -> tuple[str, str]:
        try:
            return exported(prompts.sets, owner, str(which or HELD_OUT))
        except (C2FError, OSError) as error:
            raise failure(error) from None

    form = [own.questions, *own.form]
    own.begin.click(begin, [*form, *inputs], [own.questions, own.form[0], *everything], **NOTIFYING)
    own.stop.click(change(lambda owner, _: prompts.sets.stop(owner)), inputs, everything, **NOTIFYING)
    own.go_on.click(change(prompts.sets.go_on), inputs, everything, **NOTIFYING)
    own.remove.click(change(prompts.sets.delete), inputs, everything, **NOTIFYING)
    saved = own.export.click(export, inputs[1:3], own.file, **NOTIFYING)
    saved.then(None, own.file, None, js=DOWNLOAD)


def updates(controls: Controls, sent: Controls | None, listed: str) -> list[Any]:
    """Updates of `SetParts.shown`. sent: what was sent before; listed: what the list of prompts shows now."""
    which: Any = gr.skip()
    if sent is None or controls.choices != sent.choices or controls.which != listed:
        # Not the value that it has: it may have been changed since it was read.
        value: dict[str, Any] = {"value": controls.which} if controls.which != listed else {}
        which = gr.Dropdown(choices=list(controls.choices), **value)
    is_set = gr.Button(interactive=controls.which != HELD_OUT)
    return [
        which,
        controls.status,
        gr.Button(interactive=controls.can_stop),
        gr.Button(interactive=controls.can_go_on),
        is_set,
        is_set,
    ]
