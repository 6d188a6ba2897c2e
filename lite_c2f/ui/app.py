"""The compare view in a browser: one question, the actors' answers side by side while they are written."""

import html
import ipaddress
import random
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from lite_c2f.chat import ALL_PANES, PANES, TITLES, Chat, ChatSettings, Event, with_answers
from lite_c2f.data.records import Turn
from lite_c2f.errors import C2FError, ConfigError, RunError
from lite_c2f.inputs import uses_toy_data

DEFAULT_RUN = Path("runs/toy")
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
STREAMS = 2  # visitors answered at once; more of them wait in line
PAUSE = 0.05  # seconds between two updates of the page
EXAMPLES = (
    "Explain why the sky is blue to a ten-year-old.",
    "What should I weigh up before I change jobs?",
    "Plan three cheap dinners for two people.",
)
ABOUT = {
    "coarse": "rich in analysis, long",
    "fine": "instruct plus some residue",
    "baseline": "the instruct model alone",
    "base": "before this run",
}
CSS = """
.gradio-container { max-width: 1500px !important; margin: 0 auto !important; overflow: visible !important; }
#about p, .title span { margin: 0; color: var(--body-text-color-subdued); }
#about h1 { margin: 0 0 2px; font-size: 1.35rem; }
.pane { gap: 4px !important; }
.title, .status { padding: 0 2px !important; font-size: .875rem; }
.title .html-container, .status .html-container { padding: 0 !important; }
.view { height: max(240px, calc(100dvh - 390px)) !important; }
.view .top-panel { display: none; }
.view .md { white-space: pre-wrap; overflow-wrap: anywhere; }
.status { min-height: 1.6em; }
.title .prose, .status span { display: block; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.status .going { color: var(--body-text-color-subdued) !important; }
.status .failed { color: #b91c1c !important; white-space: normal; overflow-wrap: anywhere; }
.dark .status .failed { color: #fca5a5 !important; }
#ask { position: sticky; bottom: 0; z-index: 5; padding: 8px 0; background: var(--body-background-fill); }
@media (max-width: 640px) {
  .view { height: 260px !important; }
  #ask { gap: 8px; }
  #ask > :first-child { flex: 1 0 100% !important; }
}
"""


class Session:
    """What one browser tab has said and heard, and the switch that stops its answers."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.clear()

    def clear(self) -> None:
        """Forget the conversations. An answer that is under way ends, and finds that `stop` is no longer its own."""
        self.stop.set()
        self.stop = threading.Event()
        self.histories: dict[str, list[Turn]] = {pane: [] for pane in ALL_PANES}


def build(chat_or_run: Chat | str | Path) -> gr.Blocks:
    """The page. Raises RunError for an unfinished run; theme and CSS are `launch`'s."""
    chat = chat_or_run if isinstance(chat_or_run, Chat) else Chat(chat_or_run)
    with gr.Blocks(title="lite_c2f", analytics_enabled=False, fill_width=True) as page:
        session = gr.State(None)
        gr.Markdown("# lite_c2f\nOne question, every actor's answer.", elem_id="about")
        columns, views, lines = {}, {}, {}
        with gr.Row(equal_height=True):
            for pane in ALL_PANES:
                with gr.Column(min_width=260, visible=pane in PANES, elem_classes="pane") as columns[pane]:
                    gr.HTML(f"<b>{TITLES[pane]}</b> <span>{ABOUT[pane]}</span>", elem_classes="title")
                    views[pane] = _chatbot(pane)
                    lines[pane] = gr.HTML(_line(None), elem_classes="status")
        with gr.Row(elem_id="ask"):
            prompt = gr.Textbox(
                placeholder="Ask all of them ...",
                show_label=False,
                container=False,
                scale=8,
                max_lines=6,
            )
            send = gr.Button("Send", variant="primary", scale=1, min_width=70)
            stop = gr.Button("Stop", scale=1, min_width=70)
            clear = gr.Button("Clear", scale=1, min_width=70)
        gr.Examples(_examples(chat), prompt, label="Try one of these")
        settings, show_base = _settings(chat)
        seen = [*views.values(), *lines.values(), session]

        def ask(
            prompt: str,
            session: Session | None,
            show_base: bool,
            ratio: float,
            temperature: float,
            max_tokens: int,
            top_p: float,
            seed: int | None,
        ) -> Iterator[list[Any]]:
            """Answer in every pane; each update holds the whole page."""
            session = session or Session()
            panes = [pane for pane in ALL_PANES if show_base or pane != "base"]
            settings = ChatSettings(int(max_tokens), temperature, top_p, 0, int(seed or 0), ratio)
            yield from _answer(chat, session, prompt, panes, settings)

        gr.on(
            [prompt.submit, send.click],
            ask,
            [prompt, session, show_base, *settings],
            [prompt, *seen],
            api_name="ask",
            show_progress="hidden",
            show_progress_on=prompt,  # or a refused prompt would cover every pane with the word Error
            trigger_mode="once",
            concurrency_id="models",
            concurrency_limit=STREAMS,
        )
        stop.click(_stop, session, None, queue=False, show_progress="hidden", api_name="stop")
        clear.click(_clear, session, seen, queue=False, show_progress="hidden", api_name="clear")
        show_base.change(
            lambda shown: gr.Column(visible=shown),
            show_base,
            columns["base"],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
    return page


def serve(run: str | Path | None, host: str, port: int, auth: str | None, root_path: str | None) -> None:
    """What `lite-c2f app` and `python app.py` do; auth is "user:password". Raises ConfigError, RunError."""
    pair = None
    if auth is not None:
        user, _, password = auth.partition(":")
        if not (user and password):
            raise ConfigError.because("--auth without a user and a password", "user:password", "give both")
        pair = (user, password)
    launch(run, host, port, pair, root_path)


def launch(
    run: str | Path | None,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: tuple[str, str] | None = None,
    root_path: str | None = None,
    prevent_thread_lock: bool = False,
) -> gr.Blocks:
    """Serve the page of a run until interrupted, or in the background with `prevent_thread_lock`.

    run: a finished run; None is runs/toy. auth: a user and a password, needed to serve other machines.
    root_path: where a reverse proxy serves the page. Raises ConfigError for a host that is open to the network without
    auth or a port in use, RunError for an unfinished run.
    """
    hosts = allowed_hosts(host, auth, root_path)
    run = find_run(run)
    check_port(host, port)  # before gigabytes are loaded
    page = build(run)
    page.queue(max_size=64)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            auth=auth,
            root_path=root_path,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            footer_links=[],
            theme=theme(),
            css=CSS,
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]},
        )
    except OSError as error:
        raise _port_error(host, port, error) from None
    print(f"Serving {run} at {page.local_url} - Ctrl-C ends it", flush=True)
    if not prevent_thread_lock:
        page.block_thread()
    return page


def check_port(host: str, port: int) -> None:
    """Raise ConfigError for a port that is taken, or not to be had, at an address of this machine."""
    name = host.strip("[]")
    try:
        with socket.socket(socket.AF_INET6 if ":" in name else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
            probe.bind((name, port))
    except (OSError, OverflowError) as error:
        raise _port_error(host, port, error) from None


def _port_error(host: str, port: int, error: Exception) -> ConfigError:
    return ConfigError.because(f"port {port} on {host}: {error}", "a free port", "use --port")


def find_run(run: str | Path | None) -> Path:
    """The run to show: as given, else runs/toy. Raises RunError when that one is not finished."""
    if run is not None:
        return Path(run)
    if not (DEFAULT_RUN / "fine" / "model" / "config.json").is_file():
        raise RunError.because(
            f"no run given, and none in '{DEFAULT_RUN}'",
            "a run directory",
            f"make one with `make demo` or `lite-c2f demo --out {DEFAULT_RUN}`",
        )
    return DEFAULT_RUN


def allowed_hosts(host: str, auth: tuple[str, str] | None, root_path: str | None = None) -> list[str]:
    """Names a browser may call this server by, so that no foreign page can reach it under a name of its own.

    Raises ConfigError when other machines could reach it without a password.
    """
    if not is_loopback(host) and not (auth and all(auth)):
        raise ConfigError.because(
            f"--host {host} without a password", "--auth user:password", "give one, or leave out --host"
        )
    try:
        outside = urlsplit(root_path or "").hostname
    except ValueError as error:
        raise ConfigError.because(f"--root-path {root_path}: {error}", "a path or an address", "correct it") from None
    names = [*LOCAL_NAMES, *([outside] if outside else [])]
    if is_loopback(host):
        return names
    if host in ("0.0.0.0", "::", "[::]"):  # every address of this machine, and only it knows which
        return ["*"]
    return [*names, host, socket.gethostname()]


def is_loopback(host: str) -> bool:
    """Does a host stand for this machine alone?"""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def theme() -> gr.themes.Base:
    """Fonts of the visitor's own system: nothing is fetched from elsewhere."""
    return gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        radius_size="md",
        font=["Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"],
        font_mono=["Consolas", "Menlo", "monospace"],
    ).set(
        body_text_color_subdued="*neutral_500",  # the default grey is too faint to read, 2.6:1 on white
        body_text_color_subdued_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


def _chatbot(pane: str) -> gr.Chatbot:
    """Text only; `message` escapes it, since this component shows HTML even with its Markdown off.

    No copy buttons: they would copy the escaped text.
    """
    return gr.Chatbot(
        label=TITLES[pane],
        show_label=False,
        elem_classes="view",
        render_markdown=False,
        sanitize_html=True,
        buttons=[],
        feedback_options=None,
        layout="bubble",
    )


def _settings(chat: Chat) -> tuple[list[gr.components.Component], gr.Checkbox]:
    """Inputs in the order of `ask`, and the box that shows the base."""
    most = min(1024, chat.context // 2)
    defaults = ChatSettings()
    with gr.Accordion("Settings", open=False):
        with gr.Row():
            merged = f"Share of the residue; {chat.ratio:g} was merged, 0 is the baseline."
            ratio = gr.Slider(
                0, max(1.5, chat.ratio), chat.ratio, step=0.05, label="Ratio of the Fine Actor", info=merged
            )
            temperature = gr.Slider(0, 2, defaults.temperature, step=0.05, label="Temperature", info="0 is greedy.")
            tokens = gr.Slider(
                1, most, min(defaults.max_tokens, most), step=1, label="Longest answer", info="In tokens."
            )
        with gr.Row():
            top_p = gr.Slider(0.05, 1, defaults.top_p, step=0.05, label="Top-p", info="1 is off.")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, info="The same seed gives the same answers.")
            show_base = gr.Checkbox(False, label="Show the base", info="Before this run trained it.")
    return [ratio, temperature, tokens, top_p, seed], show_base


def _examples(chat: Chat) -> list[list[str]]:
    if not uses_toy_data(chat.config):
        return [[question] for question in EXAMPLES]
    from lite_c2f.toy.world import problems

    source = problems(random.Random(4), held_out=True)
    return [[next(source).question] for _ in range(3)]


def _answer(
    chat: Chat, session: Session, prompt: str, panes: Sequence[str], settings: ChatSettings
) -> Iterator[list[Any]]:
    """Updates of the page: the question in all panes at once, then the answers as they grow."""
    prompt = (prompt or "").strip()
    asked = {pane: [*session.histories[pane], Turn("human", prompt)] for pane in panes}
    stop = threading.Event()
    try:
        stream = chat.stream(asked, panes, settings, stop)
    except C2FError as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from None
    session.stop = stop
    events: dict[str, Event] = {}
    try:
        yield ["", *_page(asked, events, session)]
        drawn = time.monotonic()
        for event in stream:
            events[event.pane] = event
            if time.monotonic() - drawn > PAUSE and session.stop is stop:
                yield [gr.skip(), *_page(asked, events, session)]
                drawn = time.monotonic()
        if session.stop is stop:
            session.histories = {**session.histories, **with_answers(asked, events)}
            yield [gr.skip(), *_page(asked, events, session)]
        else:  # cleared meanwhile: show that last, whichever update arrives first
            yield [gr.skip(), *_page({}, {}, session)]
    finally:
        stop.set()  # nothing else here: when a visitor leaves, this runs on the server's event loop


def _page(asked: Mapping[str, list[Turn]], events: Mapping[str, Event], session: Session) -> list[Any]:
    """What `seen` shows: conversations, status lines, the session."""
    views, lines = [], []
    for pane in ALL_PANES:
        event = events.get(pane)
        turns = list(asked.get(pane, session.histories[pane]))
        if event and event.text:
            turns.append(Turn("assistant", event.text))
        views.append([message(turn) for turn in turns])
        lines.append(_line(event, waiting=pane in asked))
    return [*views, *lines, session]


def message(turn: Turn) -> dict[str, Any]:
    """A turn for a Chatbot: escaped, and as a part of type text, because a bare string loses its indentation.

    >>> message(Turn("assistant", "<b>"))
    {'role': 'assistant', 'content': {'type': 'text', 'text': '&lt;b&gt;'}}
    """
    role = "user" if turn.role == "human" else "assistant"
    return {"role": role, "content": {"type": "text", "text": html.escape(turn.text, quote=False)}}


def _line(event: Event | None, waiting: bool = False) -> str:
    """The line below a pane, as HTML."""
    text = event.status if event else "waiting" if waiting else ""
    failed = event is not None and event.finish == "error"
    return f'<span class="{"failed" if failed else "going"}">{html.escape(text)}</span>'


def _stop(session: Session | None) -> None:
    if session:
        session.stop.set()


def _clear(session: Session | None) -> list[Any]:
    session = session or Session()
    session.clear()
    return _page({}, {}, session)
