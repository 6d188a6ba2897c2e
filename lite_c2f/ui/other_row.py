"""Row of Compare that opens and removes the other pane."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gradio as gr
from gradio.context import Context

from lite_c2f.actors.names import ratio_in
from lite_c2f.chat import Chat
from lite_c2f.chat.other_actors import MAX_LOADED
from lite_c2f.chat.panes import title_of
from lite_c2f.ui.answering import NOTIFYING, QUICK, Served
from lite_c2f.ui.loading import REFRESH_LOADING
from lite_c2f.ui.other_pane import SECOND_FINE, about_other, choices, known
from lite_c2f.ui.page_session import PageSession
from lite_c2f.ui.render import title

ABOUT = (
    "Other policies of this run and of runs beside it with the same models, prompted and scored as this run's are. "
    f"The {MAX_LOADED} used last stay in memory."
)
LISTED = "listed panes"  # key of a page's view state
LISTED_LATER = " They are listed once the models of this run are loaded."
ABOUT_MODELS = " Other models are prompted in their own way, and scored by this run's reward model too."


class OtherRow(NamedTuple):
    """Components of the row."""

    key: gr.Textbox  # of the other pane, out of sight; "" while none is open
    choice: gr.Dropdown
    ratio: gr.Number
    opens: gr.Button
    removes: gr.Button


def other_row(served: Served) -> OtherRow:
    """Add the row. The first ratio offered is half of the merged one."""
    with gr.Row(elem_classes="tools", elem_id="other-row"):
        key = gr.Textbox("", elem_classes="unseen", label="other pane")
        listed = choices(served.chat.listed_others(fresh=False))
        choice = gr.Dropdown(
            listed,
            value=SECOND_FINE[1],
            label="Another pane",
            info=_about(served.chat),
            allow_custom_value=True,  # Gradio forgets the list of a page not used for long; names are looked up
            visible=_visible(served.chat, listed),
            elem_id="other-choice",
        )
        ratio = gr.Number(
            round(served.chat.ratio / 2, 2) or 1.0,
            label="Ratio of a second Fine",
            minimum=0,
            step=0.05,
            elem_id="other-ratio",
        )
        opens = gr.Button("Open a second Fine", size="sm", elem_id="open-other")
        removes = gr.Button("Remove it", size="sm", interactive=False, elem_id="remove-other")
    return OtherRow(key, choice, ratio, opens, removes)


def connect_other(served: Served, row: OtherRow, open_other: Callable[..., Any], pane: list[Any]) -> None:
    """Connect the row. The key changes by its buttons, and with the session that is opened. pane: column and head."""

    def listed(request: gr.Request) -> Any:
        return _listed(served, served.pages.of(request.session_hash))

    def opened(request: gr.Request) -> Any:
        return _listed(served, served.pages.of(request.session_hash), opened=True)

    async def listed_when_loaded(request: gr.Request) -> Any:
        """For a page that was opened before: its list is short until then."""
        while served.chat.loading:
            await asyncio.sleep(REFRESH_LOADING)
        return await asyncio.to_thread(listed, request)

    def shown(key: str) -> list[Any]:
        """Column and head of the pane, the button that removes it, its choice and its ratio."""
        key = known(key)
        if not key:
            return [gr.Column(visible=False), "", gr.Button(interactive=False), gr.skip(), gr.skip()]
        head, ratio = title(*about_other(key)), ratio_in(key)
        offered = [value for _, value in choices(served.chat.listed_others(fresh=False))]
        value = "" if ratio is not None else key if key in offered else gr.skip()
        return [
            gr.Column(visible=True),
            head,
            gr.Button(interactive=True),
            value,
            gr.skip() if ratio is None else ratio,
        ]

    chosen = [row.choice, row.ratio]
    for event in (row.opens.click, row.ratio.submit):
        event(open_other, [*chosen, row.key], row.key, **NOTIFYING)
    row.removes.click(lambda: "", None, row.key, **QUICK)
    row.choice.change(_chosen, row.choice, [row.ratio, row.opens], **QUICK)
    row.choice.focus(listed, None, row.choice, **QUICK)
    if Context.root_block is not None:
        Context.root_block.load(opened, None, row.choice, **QUICK)
        if not served.chat.is_loaded:
            Context.root_block.load(listed_when_loaded, None, row.choice, **NOTIFYING)
    row.key.change(shown, row.key, [*pane, row.removes, *chosen], **QUICK)


def _listed(served: Served, page: PageSession, *, opened: bool = False) -> Any:
    """The choice with what can be chosen now: checkpoints come and go, and so do other servers' models.

    What was listed since the page was opened stays, as gone: Gradio fails where a list that is open becomes shorter. A
    list that is as it was is not drawn again: a click on it at that moment would be lost.
    """
    offered = choices(served.chat.listed_others())
    names = [name for _, name in offered]
    before, about = ([], "") if opened else page.view_state.get(LISTED, ([], ""))
    offered += [(f"{title_of(name)} (no longer there)", name) for _, name in before if name not in names]
    page.view_state[LISTED] = now = (offered, _about(served.chat))
    if now == (before, about):
        return gr.skip()
    return gr.Dropdown(choices=list(offered), visible=_visible(served.chat, offered), info=now[1])


def _about(chat: Chat) -> str:
    """What can be chosen, and which servers list nothing."""
    models, loading = ABOUT_MODELS if _has_models(chat) else "", LISTED_LATER if chat.loading else ""
    return "".join((ABOUT, models, loading, *(f" {each}." for each in chat.servers.messages())))


def _has_models(chat: Chat) -> bool:
    return len(chat.servers) > 0 or chat.models is not None


def _visible(chat: Chat, offered: Sequence[tuple[str, str]]) -> Any:
    """Shown where there is anything to choose; out of sight Gradio keeps its value."""
    return True if len(offered) > 1 or _has_models(chat) else "hidden"


def _chosen(choice: str | None) -> list[Any]:
    """The ratio, which a second Fine alone has, and the button that opens what is chosen."""
    return [gr.Number(visible=not choice), gr.Button("Open this pane" if choice else "Open a second Fine")]
