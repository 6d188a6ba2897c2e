"""Serve a page, to this machine unless there is a password: which addresses, which names, and nothing from outside.

What Gradio would ask other machines, and what keeps it from that: the look for a newer version and the telemetry of
every page built (GRADIO_ANALYTICS_ENABLED, set in this package), the tunnel of share=True, fonts of its themes from
Google (`theme` names the visitor's own), its calls of its own address at launch, which httpx would send through a proxy
(`unproxied`). Files named by an address in a question, which it would fetch, end in the guard.
"""

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from lite_c2f.errors import ConfigError, RunError
from lite_c2f.ui.guard import Guard, netloc

DEFAULT_RUN = Path("runs/toy")
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
AUTH_VARIABLE = "LITE_C2F_AUTH"  # a command line is seen by everybody on the machine, an environment is not
WAITING = 64  # questions in line; more are told that the server is busy
THREADS = 128  # an answer that is watched holds one, a question in line too, and buttons need some as well
SESSIONS = 100  # pages whose state Gradio keeps, 270 KiB each; conversations are kept apart


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

    about: what is served, for the line that says so. auth: a user and a password, needed to serve other machines.
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
                show_error=False,  # a bug is told on the terminal; visitors read only what was written for them
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
                app_kwargs={"middleware": [hosts, guard]},
            )
    except OSError as error:
        raise _port_error(host, port, error) from None
    page.allowed_paths = []  # whatever GRADIO_ALLOWED_PATHS says
    print(f"Serving {about} at {page.local_url} - Ctrl-C ends it", flush=True)
    if not prevent_thread_lock:
        page.block_thread()
    return page


def check_address(host: str, port: int, auth: tuple[str, str] | None, root_path: str | None) -> str:
    """Refuse what cannot be served; returns the root path in the form that Gradio takes.

    Raises ConfigError for a host that is open to the network without a password, a root path that is none, a port that
    is taken.
    """
    root = checked_root(root_path)
    allowed_hosts(host, auth, root)
    check_port(host, port)
    return root


def parse_auth(given: str | None) -> tuple[str, str] | None:
    """A user and a password from "user:password", or from LITE_C2F_AUTH, or None. Raises ConfigError without both."""
    given = given if given is not None else os.environ.get(AUTH_VARIABLE) or None
    if given is None:
        return None
    user, _, password = given.partition(":")
    if not (user.strip() and password):
        raise ConfigError.because("--auth without a user and a password", "user:password", "give both")
    return user.strip(), password  # Gradio strips the user that is typed in


def find_run(run: str | Path | None) -> Path:
    """The run to show: as given, else runs/toy. Raises RunError when that one is not finished."""
    if run is not None:
        return Path(run)
    if not has_toy_run():
        raise RunError.because(
            f"no run given, and none in '{DEFAULT_RUN}'",
            "a run directory",
            f"make one with `make demo` or `lite-c2f demo --out {DEFAULT_RUN}`",
        )
    return DEFAULT_RUN


def has_toy_run() -> bool:
    """Is there a finished runs/toy to show when no run is given?"""
    return (DEFAULT_RUN / "fine" / "model" / "config.json").is_file()


def check_port(host: str, port: int) -> None:
    """Raise ConfigError for a port that is taken, or not to be had, at an address of this machine."""
    name = host.strip("[]")
    try:
        with socket.socket(socket.AF_INET6 if ":" in name else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
            probe.bind((name, port))
    except (OSError, OverflowError) as error:
        raise _port_error(host, port, error) from None


def checked_root(root_path: str | None) -> str:
    """A path without a slash at its end, "" for none, or an http(s) address. Raises ConfigError for anything else."""
    root = (root_path or "").rstrip("/")
    try:
        parts = urlsplit(root)
        fine = bool(parts.hostname and parts.port != 0) if parts.scheme in ("http", "https") else not parts.scheme
    except ValueError:
        fine = False
    if root.startswith("//") or not (fine and (not root or "://" in root or root.startswith("/"))):
        fine = False
    if not fine or any(letter.isspace() or letter in "?#\\%" or not letter.isprintable() for letter in root):
        raise ConfigError.because(
            f"--root-path {root_path!r}", "a path such as /c2f, or https://example.org/c2f", "correct it"
        )
    return root


def allowed_hosts(host: str, auth: tuple[str, str] | None, root_path: str | None = None) -> list[str]:
    """Names a browser may call this server by, so that no foreign page can reach it under a name of its own.

    Raises ConfigError when other machines could reach it without a password.
    """
    if not is_loopback(host) and not (auth and all(auth)):
        raise ConfigError.because(
            f"--host {host} without a password", "--auth user:password", "give one, or leave out --host"
        )
    outside = urlsplit(root_path or "").hostname
    names = [*LOCAL_NAMES, *([outside] if outside else [])]
    if is_loopback(host):
        return names if bracketed(host) in names else [*names, bracketed(host)]
    if host.strip("[]") in ("0.0.0.0", "::"):  # every address of this machine, and only it knows which
        return ["*"]
    return [*names, bracketed(host), socket.gethostname()]


def is_loopback(host: str) -> bool:
    """Does a host stand for this machine alone?"""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bracketed(host: str) -> str:
    """A host as it stands in an address: IPv6 in brackets, without which Gradio builds an address that is none."""
    return f"[{host.strip('[]')}]" if ":" in host else host


@contextlib.contextmanager
def unproxied() -> Iterator[None]:
    """Inside the block httpx asks nobody through a proxy: Gradio calls its own address there."""
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
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


def _port_error(host: str, port: int, error: Exception) -> ConfigError:
    return ConfigError.because(f"port {port} on {host}: {error}", "a free port", "use --port")
