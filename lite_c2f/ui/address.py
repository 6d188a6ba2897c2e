"""Addresses that a page may be served at, and the run that is served by default. Imports no Gradio."""

import contextlib
import ipaddress
import os
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

from lite_c2f.errors import ConfigError
from lite_c2f.runs.published import check_run_folder, is_published
from lite_c2f.storage import lock

DEFAULT_RUN = Path("runs/toy")
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
AUTH_VARIABLE = "LITE_C2F_AUTH"  # every user of the machine can read a command line, but not an environment


def check_address(host: str, port: int, auth: tuple[str, str] | None, root_path: str | None) -> str:
    """Check the address of a server; returns the root path in the form that Gradio takes.

    Raises ConfigError for a host that is open to the network without a password, an invalid root path, a port in use.
    """
    root = checked_root(root_path)
    allowed_hosts(host, auth, root)
    check_port(host, port)
    return root


def parse_auth(text: str | None) -> tuple[str, str] | None:
    """A user and a password from "user:password", or from LITE_C2F_AUTH, or None. Raises ConfigError without both."""
    text = text if text is not None else os.environ.get(AUTH_VARIABLE) or None
    if text is None:
        return None
    user, _, password = text.partition(":")
    if not (user.strip() and password):
        raise ConfigError.because("--auth without a user and a password", "user:password", "give both")
    return user.strip(), password  # Gradio strips the user that is typed in


def find_run(run: str | Path | None) -> Path | None:
    """The run to show: `run`, else runs/toy where its actors are trained, else None.

    A run need not be finished. Raises RunError for a path that is no run.
    """
    if run is None:
        return DEFAULT_RUN if is_published(DEFAULT_RUN, "fine") else None
    folder = Path(run)
    if not ((folder / "config.yaml").is_file() or (folder / lock.NAME).exists()):  # it has begun
        check_run_folder(folder)
    return folder


def wait_for_port(host: str, port: int, seconds: float = 30.0) -> None:
    """Wait for a port that a server which has just been closed may still hold. Raises as `check_port` does."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(ConfigError):
            return check_port(host, port)
        time.sleep(0.1)
    check_port(host, port)


def check_port(host: str, port: int) -> None:
    """Raise ConfigError for a port that is in use or not permitted at an address of this machine."""
    name = host.strip("[]")
    try:
        with socket.socket(socket.AF_INET6 if ":" in name else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
            probe.bind((name, port))
    except (OSError, OverflowError) as error:
        raise port_error(host, port, error) from None


def checked_root(root_path: str | None) -> str:
    """A path without a slash at its end, "" for none, or an http(s) address. Raises ConfigError for anything else."""
    root = (root_path or "").rstrip("/")
    try:
        parts = urlsplit(root)
        valid = bool(parts.hostname and parts.port != 0) if parts.scheme in ("http", "https") else not parts.scheme
    except ValueError:
        valid = False
    if root.startswith("//") or not (valid and (not root or "://" in root or root.startswith("/"))):
        valid = False
    if not valid or any(letter.isspace() or letter in "?#\\%" or not letter.isprintable() for letter in root):
        raise ConfigError.because(
            f"--root-path {root_path!r}", "a path such as /c2f, or https://example.org/c2f", "correct it"
        )
    return root


def allowed_hosts(host: str, auth: tuple[str, str] | None, root_path: str | None = None) -> list[str]:
    """Host names that requests may have, so that no foreign page can reach the server under a name of its own.

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
    if host.strip("[]") in ("0.0.0.0", "::"):  # every address of this machine
        return ["*"]
    return [*names, bracketed(host), socket.gethostname()]


def is_loopback(host: str) -> bool:
    """Is the server reachable from this machine alone?"""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bracketed(host: str) -> str:
    """A host as in an address: IPv6 in brackets, without which Gradio builds an invalid address."""
    return f"[{host.strip('[]')}]" if ":" in host else host


def port_error(host: str, port: int, error: Exception) -> ConfigError:
    """The error for a port on which nothing can be served."""
    return ConfigError.because(f"port {port} on {host}: {error}", "a free port", "use --port")
