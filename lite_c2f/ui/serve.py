"""Server of a page: to this machine alone unless there is a password, and without a request to any other machine.

Requests that Gradio would make, and what prevents each: the check for a newer version and the telemetry of every page
built (GRADIO_ANALYTICS_ENABLED, set in this package), the tunnel of share=True, fonts of its themes from Google
(`theme` names the visitor's own), calls of its own address at launch, which httpx would send through a proxy
(`unproxied`), and files named by an address in a question, which it would fetch (the guard refuses them).
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import gradio as gr
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lite_c2f.runtime.address import bracketed, netloc, port_error
from lite_c2f.runtime.lingering_threads import add_lingering
from lite_c2f.ui.address import allowed_hosts, check_address
from lite_c2f.ui.guard import Guard

WAITING = 64  # questions in the queue; beyond that Gradio answers that the server is busy
THREADS = 128  # each streamed answer holds one, each waiting question too, and buttons need some as well
SESSIONS = 48  # pages whose state Gradio keeps, closed ones too, 0.65 MiB each; conversations are saved elsewhere
GRACE = 0.5  # seconds that requests have to end when the server does

OPENING = (  # in the page's head: shown from the first byte on, until its scripts have drawn the page
    b"<style>body:not(:has(.gradio-container))::before "
    b"{ content: 'lite_c2f is being opened'; padding: 1.5rem; font-family: system-ui, sans-serif }</style>"
)


class OpeningLine:
    """Adds `OPENING` to HTML: Gradio's page is empty until half a megabyte of scripts has run."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held: list[Message] = []

        async def send_with_opening(message: Message) -> None:
            if message["type"] == "http.response.start" and _is_html(message):
                held.append(message)
                return
            if held and message["type"] == "http.response.body":
                start, body = held.pop(), message.get("body", b"")
                message = {**message, "body": body.replace(b"</head>", OPENING + b"</head>", 1)}
                headers = MutableHeaders(raw=list(start["headers"]))
                if "content-length" in headers:
                    headers["content-length"] = str(int(headers["content-length"]) + len(message["body"]) - len(body))
                await send({**start, "headers": headers.raw})
            await send(message)

        await self.app(scope, receive, send_with_opening)


def _is_html(start: Message) -> bool:
    return Headers(raw=start["headers"]).get("content-type", "").startswith("text/html")


class GzippedPage(GZipMiddleware):
    """The page itself in a tenth of its bytes: Gradio compresses its scripts, and sends this as it is.

    Nothing else: streams must not be held back, and answers of the API have what visitors typed beside their numbers,
    which compressed lengths could tell about.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = dict(scope.get("headers", ())).get(b"accept", b"")
        await (super().__call__ if b"text/html" in wanted else self.app)(scope, receive, send)


def launch(
    page: gr.Blocks,
    about: str,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: tuple[str, str] | None = None,
    root_path: str | None = None,
    css: str | None = None,
    js: str | None = None,
    prevent_thread_lock: bool = False,
) -> gr.Blocks:
    """Serve a page until interrupted, or in the background with `prevent_thread_lock`.

    about: what is served, for the line that is printed. auth: a user and a password, needed to serve other machines.
    root_path: where a reverse proxy serves the page, a path or an address. Raises ConfigError as `check_address` does;
    call that before gigabytes are loaded.
    """
    root_path = check_address(host, port, auth, root_path)
    guard = Middleware(
        Guard,
        origins=[netloc(root_path)] if "://" in root_path else [],
        pages=[name for name, *_ in page.pages if name],
    )
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts(host, auth, root_path), www_redirect=False)
    gzipped = Middleware(GzippedPage, compresslevel=6)
    page.analytics_enabled = False
    page.queue(max_size=WAITING, api_open=False)  # every question through the queue, none beside it
    try:
        with unproxied():
            page.launch(
                server_name=bracketed(host),
                server_port=port,
                auth=auth,
                root_path=root_path,
                prevent_thread_lock=True,
                quiet=True,
                show_error=False,  # a bug is printed on the terminal; visitors read only messages written for them
                share=False,
                ssr_mode=False,
                run_history=False,
                enable_monitoring=False,
                mcp_server=False,
                pwa=False,
                max_threads=THREADS,
                num_workers=0,  # they would serve files on ports of their own
                footer_links=[],
                max_file_size=1,  # bytes; the guard refuses uploads anyway
                state_session_capacity=SESSIONS,
                theme=theme(),
                css=css,
                js=js,
                app_kwargs={"middleware": [hosts, guard, gzipped, Middleware(OpeningLine)]},
            )
    except OSError as error:
        raise port_error(host, port, error) from None
    page.allowed_paths = []  # whatever GRADIO_ALLOWED_PATHS says
    _end_soon(page.server)
    print(f"Serving {about} at {page.local_url} - Ctrl-C ends it", flush=True)
    if not prevent_thread_lock:
        page.block_thread()
    return page


def _end_soon(server: Any) -> None:
    """Let a server's `close` wait for its streams for half a second: an open page's never end, and Gradio waits for 5.

    The thread that serves them may then still run when the command ends.
    """

    def close() -> None:
        server.should_exit = True
        server.thread.join(timeout=GRACE)

    add_lingering([server.thread])
    server.close = close


@contextlib.contextmanager
def unproxied() -> Iterator[None]:
    """Inside the block httpx uses no proxy: Gradio calls its own address there."""
    before = os.environ.get("no_proxy")
    os.environ["no_proxy"] = "*"
    try:
        yield
    finally:
        if before is None:
            del os.environ["no_proxy"]
        else:
            os.environ["no_proxy"] = before


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
        button_primary_background_fill="*primary_600",  # the default is 4.46:1 below white text
        button_primary_background_fill_hover="*primary_700",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )
