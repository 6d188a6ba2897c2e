"""Addresses that a server may listen at, and host names that requests to it may have."""

import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from lite_c2f.errors import ConfigError

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


def host_names(host: str, outside: str | None = None) -> list[str]:
    """Host names that requests may have, so that no foreign page can reach the server under a name of its own.

    outside: the name that a reverse proxy serves it under. ["*"] for a server on every address of this machine.
    """
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
    """A host as in an address: IPv6 in brackets, without which the address is invalid."""
    return f"[{host.strip('[]')}]" if ":" in host else host


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket bound to an address of this machine; it does not listen yet. port: 0 takes a free one.

    Raises ConfigError for a port that is in use or not permitted.
    """
    name = host.strip("[]")
    bound = socket.socket(socket.AF_INET6 if ":" in name else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((name, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise port_error(host, port, error) from None
    return bound


def checked_key(key: str | None) -> str | None:
    """An API key without spaces around it, None for none. Raises ConfigError for one that no HTTP header can hold."""
    text = (key or "").strip()
    if key is not None and not text:
        raise ConfigError.because("an empty API key", "a key", "give one, or none at all")
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ConfigError.because("an API key with a space or a character that is not ASCII", "a key", "take another")
    return text or None


def check_port(host: str, port: int) -> None:
    """Raise ConfigError for a port that is in use or not permitted at an address of this machine."""
    bound_socket(host, port).close()


def port_error(host: str, port: int, error: Exception) -> ConfigError:
    """The error for a port on which nothing can be served."""
    return ConfigError.because(f"port {port} on {host}: {error}", "a free port", "use --port")


def netloc(url: str, like: str = "") -> str:
    """host:port of an address, lower case, without the scheme's default port; "" for none, as in `Origin: null`.

    like: the address whose scheme counts; a proxy that serves https may forward plain http.
    """
    try:
        parts, port = urlsplit(url), urlsplit(url).port
        scheme = urlsplit(like).scheme if like else parts.scheme
    except ValueError:
        return ""
    host = (parts.hostname or "").lower()
    default = {"http": 80, "https": 443}.get(scheme)
    return host if not host or port in (None, default) else f"{host}:{port}"


def is_allowed_host(header: str, names: Sequence[str]) -> bool:
    """Whether a Host header names one of these hosts, with any port.

    >>> is_allowed_host("[::1]:8000", ["[::1]"]), is_allowed_host("evil.example", ["localhost"])
    (True, False)
    """
    host = header.rpartition("]")[0] + "]" if header.startswith("[") else header.partition(":")[0]
    return "*" in names or host.lower() in {name.lower() for name in names}
