"""Chat servers with OpenAI's protocol: their addresses, the key for them, and the errors that they send.

The errors are in the forms of OpenAI and Azure (https://platform.openai.com/docs/api-reference/chat), vLLM, SGLang,
llama.cpp's server and gateways, which share little but the status.
"""

import json
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from lite_c2f.errors import ConfigError
from lite_c2f.runtime.address import bracketed, is_loopback

MAX_MESSAGE = 300  # characters of a server's message
ALSO_KEY_VARIABLE = "LITE_C2F_ALSO_KEY"  # environment variable with the key for servers that the app may ask
FILTERED = re.compile(
    r"content[ _-]?(?:filter|polic|management)|moderat|flagged|safety|ResponsibleAI|prohibited|usage polic",
    re.IGNORECASE,
)


class ServerError(NamedTuple):
    """The error of a server that did not answer a request."""

    message: str  # "" if there is none
    param: str  # the parameter it is about, if named
    code: str  # codes and types, with spaces between

    @property
    def is_filter(self) -> bool:
        """Whether the question's text was refused by a content filter, whatever the status."""
        return bool(FILTERED.search(f"{self.code} {self.message}"))


def checked_url(url: str, option: str, variable: str) -> str:
    """An address such as http://127.0.0.1:8000/v1, without slashes at its end.

    Raises ConfigError, naming the option it came with, for any other one, and for one with a password in it: keys are
    for the environment variable, which other users of the machine cannot see. The message does not repeat the address.
    """
    import httpx  # here: the command line imports this module before it knows what it has to do

    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL()
    if parts.scheme not in ("http", "https") or not parts.host or parts.userinfo:
        raise ConfigError.because(option, "http(s)://host/v1, without a password in it", f"put a key into {variable}")
    return url.rstrip("/")


class ServerAddress(NamedTuple):
    """The address of a server, and models of it that were named beside it, whether it lists them or not."""

    url: str
    models: tuple[str, ...]


def checked_places(urls: Sequence[str], option: str, variable: str) -> dict[str, ServerAddress]:
    """Addresses by host:port, without the port that the scheme has anyway.

    urls: such as http://127.0.0.1:8000/v1, or with a model's name http://127.0.0.1:8000/v1#NAME; with other names more
    than once. Raises ConfigError for an invalid address, for two at one host and port, and for a key that no header can
    hold.
    """
    import httpx

    result = dict[str, ServerAddress]()
    for url in urls:
        address, _, model = url.partition("#")
        address = checked_url(address, option, variable)
        place = httpx.URL(address).netloc.decode("ascii")
        before = result.get(place)
        if before is not None and not (before.url == address and before.models and model):
            raise ConfigError.because(f"{option}: '{place}' twice", "each host and port once", "leave one out")
        named = (*before.models, model) if before else (model,) if model else ()
        result[place] = ServerAddress(address, named)
    if urls:
        key_in(variable)
    return result


def direct_mounts(urls: Sequence[str]) -> dict[str, None]:
    """httpx's `mounts` that reach servers on this machine directly, whatever proxy the environment names.

    A proxy elsewhere would be sent the key and the conversation, and could not reach such a server anyway.
    """
    import httpx

    hosts = {httpx.URL(url).host for url in urls}
    return {f"all://{bracketed(host)}": None for host in hosts if is_loopback(host)}


def key_in(variable: str) -> str:
    """The key in an environment variable; "" where there is none. Raises ConfigError for what no header can hold."""
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise ConfigError.because(f"{variable} holds a character that is not ASCII", "an API key", "set it again")
    return key


def authorization(key: str) -> dict[str, str]:
    """The header with a key; none without."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def read_error(content: bytes, key: str = "") -> ServerError:
    """The error in a server's reply: OpenAI's {"error": {...}}, vLLM's without the outer one, FastAPI's {"detail"}.

    key: is not repeated in the texts.
    """
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict):
        return ServerError("", "", "")
    error = reply.get("error") or reply.get("detail") or reply
    if isinstance(error, list):  # FastAPI: an entry for each field
        error = error[0]
    if not isinstance(error, dict):
        return ServerError(one_line(error, key), "", "")
    inner = error.get("innererror")
    message = error.get("message") or error.get("msg") or reply.get("message") or ""
    place, loc = error.get("param"), error.get("loc")
    if not place and loc:
        place = ".".join(str(part) for part in (loc if isinstance(loc, list) else [loc]) if part != "body")
    codes = [error.get("code"), error.get("type"), inner.get("code") if isinstance(inner, dict) else None]
    code = " ".join(str(code) for code in codes if code)
    return ServerError(one_line(message, key), one_line(place or "", key), one_line(code, key))


def one_line(text: Any, key: str = "") -> str:
    """A server's message as one line of printable characters, of limited length and without the key."""
    text = " ".join("".join(character if character.isprintable() else " " for character in str(text)).split())
    if key:
        text = text.replace(key, "***")
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 3]}..."
