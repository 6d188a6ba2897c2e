"""The ratio view: the same question at several ratios in one go, beside the curve that the ratio was chosen by."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from lite_c2f.actors.answers import min_eos_message
from lite_c2f.chat import ChatSettings, Pane
from lite_c2f.data.records import Turn
from lite_c2f.errors import C2FError
from lite_c2f.fine.chart import ratio_chart
from lite_c2f.storage.files import read_json
from lite_c2f.ui.answering import (
    QUICK,
    Notice,
    Served,
    answers,
    ask_row,
    examples,
    page_settings,
    question_of,
    settings_fold,
)
from lite_c2f.ui.escaping import escape
from lite_c2f.ui.render import answer
from lite_c2f.ui.store.conversations import Reply

VIEW = "strip"
MOST = 8  # ratios at once


def strip_view(served: Served) -> None:
    """Add the view to the page that is being built."""
    chat = served.chat
    known = sorted({0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, chat.ratio})
    start = [ratio for ratio in known if ratio in (0.0, 0.5, 1.0, chat.ratio)]
    strip = gr.HTML(_strip({}, start, chat.ratio), elem_id="strip")
    prompt, send, halt = ask_row("Ask the Fine Actor at every ratio", "strip-")
    ratios = gr.CheckboxGroup([(f"{ratio:g}", ratio) for ratio in known], value=start, label="Ratios")
    gr.Examples(examples(chat), prompt, label="Try one of these")
    settings = settings_fold(chat)
    with gr.Accordion("The curve the ratio was chosen by", open=True):
        gr.HTML(curve(served), elem_classes="chart")

    def ask(request: gr.Request, text: str, chosen: list[float], *given: Any) -> Iterator[list[Any]]:
        """One answer a ratio."""
        wanted = sorted(chosen or [])
        try:
            text = question_of(text)
            if not 1 <= len(wanted) <= MOST:
                raise Notice(f"Choose 1 to {MOST} ratios")
        except Notice as told:
            gr.Info(str(told))
            yield [gr.skip(), gr.skip()]
            return
        panes = [Pane(f"{ratio:g}", "fine", ratio) for ratio in wanted]
        page, settings = served.pages.of(request.session_hash), page_settings(None, *given)
        question = [Turn("human", text)]
        for look in answers(served, page, VIEW, {pane.key: question for pane in panes}, panes, settings):
            yield [gr.skip(), _strip(look.replies, wanted, chat.ratio, text, settings)]

    def stop(request: gr.Request) -> None:
        served.pages.of(request.session_hash).stop(VIEW)

    gr.on(
        [prompt.submit, send.click],
        ask,
        [prompt, ratios, *settings],
        [prompt, strip],
        show_progress="hidden",
        trigger_mode="once",
        concurrency_limit=None,
        api_visibility="private",
    )
    halt.click(stop, None, None, **QUICK)


def _strip(
    replies: Mapping[str, Reply],
    ratios: list[float],
    merged: float,
    prompt: str = "",
    settings: ChatSettings | None = None,
) -> str:
    """A column a ratio."""
    parts = []
    for ratio in ratios:
        names = [name for name, holds in (("baseline", ratio == 0), ("merged", ratio == merged)) if holds]
        head = f"<h3>{ratio:g} <span class='hint'>{', '.join(names)}</span></h3>"
        reply = replies.get(f"{ratio:g}")
        body = answer(reply) if reply else '<div class="nothing">What it says at this ratio</div>' if not prompt else ""
        parts.append(f'<section>{head}<div class="talk">{body}</div></section>')
    question = f'<div class="hint">{escape(prompt)}</div>' if prompt else ""
    return f'{question}<div class="strip" tabindex="0">{"".join(parts)}</div>'


def curve(served: Served) -> str:
    """The sweep as a chart, newest first; a line where none was made."""
    for name in ("sweep.json", "ratios.json"):
        with contextlib.suppress(C2FError, KeyError, TypeError, ValueError):
            result = read_json(served.chat.run / "fine" / name)
            shortfall = min_eos_message(result)
            return ratio_chart(result) + (f'<p class="hint">Warning: {escape(shortfall)}.</p>' if shortfall else "")
    return (
        '<p class="hint">The ratio of this run was given, not chosen: '
        f"<code>lite-c2f sweep {escape(str(served.chat.run))}</code> draws the curve.</p>"
    )
