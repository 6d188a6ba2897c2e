"""Addresses that a page may be served at, and the run that is served by default. Imports no Gradio."""

import contextlib
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

from lite_c2f.errors import ConfigError
from lite_c2f.runs.published import check_run_folder, is_published
from lite_c2f.runtime.address import check_port, host_names, is_loopback
from lite_c2f.storage import lock

DEFAULT_RUN = Path("runs/toy")
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
    begun = (folder / "config.yaml").is_file() or (folder / lock.NAME).exists()
    if is_published(folder, "fine") or not begun:
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
    return host_names(host, urlsplit(root_path or "").hostname)
