"""What stands between the network and Gradio: an ASGI middleware that refuses, limits and adds headers.

It passes answers on as they come: nothing is buffered but the request, up to its limit. Gradio puts its CORS answers to
preflights (OPTIONS) before it; these reach no route.
"""

import asyncio
import json
import math
from collections.abc import Collection
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from starlette._utils import get_route_path  # the router's own, so that both judge the same text
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lite_c2f.ui.limits import Logins, Rate, client_of
from lite_c2f.ui.paths import Kind, kind_of, names_a_file

MIB = 2**20
BODY_SECONDS = 30.0  # within which a request has to be here
DRAINED = 8  # times the limit that is read of one that is too large
POLICY = "; ".join(
    (
        "default-src 'none'",
        # Gradio writes its configuration into the page as a script, and compiles js= and templates from text.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "media-src 'self' data: blob:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "manifest-src 'self'",
        "form-action 'self'",
        "base-uri 'self'",
        "frame-src 'none'",
        "frame-ancestors 'none'",
        "object-src 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "x-dns-prefetch-control": "off",  # looking a name up is a request too, and the policy does not cover it
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class HttpRefusal(NamedTuple):
    """An answer instead of the app's."""

    status: int
    why: str
    wait: float = 0.0  # seconds until it is worth another try


class _Left(Exception):  # noqa: N818 - no error: the client went away before its request was whole
    pass


class Guard:
    """The middleware. app: what it guards; origins: `host:port` of a proxy that serves the page under its own name.

    body: bytes a request may have; pages: further pages of the app; rate: of POSTs, a client; logins: wrong passwords,
    a client; all_logins: of all clients together, since addresses are cheap to some.
    """

    def __init__(
        self,
        app: ASGIApp,
        origins: Collection[str] = (),
        pages: Collection[str] = (),
        body: int = MIB,
        rate: Rate | None = None,
        logins: Logins | None = None,
        all_logins: Rate | None = None,
    ) -> None:
        self.app, self.pages, self.body = app, frozenset(pages), body
        self.origins = frozenset(origin.lower() for origin in origins)
        self.rate = rate or Rate(20, 200)  # 16 people behind one proxy are one client
        self.logins = logins or Logins()
        self.all_logins = all_logins or Rate(1, 60)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:  # the page needs no websocket
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Response(send)
        client = client_of(scope["client"][0] if scope.get("client") else "")
        kind = kind_of(scope["method"], get_route_path(scope), self.pages)
        refusal = self._judge(scope, kind, client)
        try:
            if refusal is not None and refusal.status == 413:
                async with asyncio.timeout(BODY_SECONDS):
                    await read_body(receive, self.body)
            if refusal is None and kind in (Kind.action, Kind.login):
                async with asyncio.timeout(BODY_SECONDS):
                    body = await read_body(receive, self.body)
                refusal = judge_body(body, self.body, kind)
                receive = replayed(body, receive)
        except _Left:
            return
        except TimeoutError:
            refusal = HttpRefusal(408, "the request took too long")
        if refusal is None and kind is Kind.login:
            refusal = self._judge_login(client)
        if refusal is not None:
            await refused(refusal)(scope, receive, answer)
            return
        try:
            await self.app(scope, receive, answer)
        except Exception:
            if not answer.status:
                await refused(HttpRefusal(500, "an error in the app"))(scope, receive, answer)
            raise  # the server logs it
        if kind is Kind.login and 200 <= answer.status < 400:
            self.logins.succeeded(client)

    def _judge(self, scope: Scope, kind: Kind | None, client: str) -> HttpRefusal | None:
        """What can be said of a request before its body is read; None when nothing speaks against it."""
        headers = Headers(scope=scope)
        if kind is None or names_a_file(scope.get("query_string", b"")):
            return HttpRefusal(404, "not found")
        if self._is_foreign(headers, kind, scope.get("scheme", "http")):
            return HttpRefusal(403, "this request comes from another site")
        if kind not in (Kind.action, Kind.login):
            return None
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return HttpRefusal(400, "content-length is no number")
        if len(length) > 15 or int(length) > self.body:
            return HttpRefusal(413, f"a request may have {self.body} bytes")
        if wait := self.rate.wait(client):
            return HttpRefusal(429, "too many requests", wait)
        return None

    def _judge_login(self, client: str) -> HttpRefusal | None:
        wait = self.logins.wait(client) or self.all_logins.wait("")
        return HttpRefusal(429, "too many logins; wait", wait) if wait else None

    def _is_foreign(self, headers: Headers, kind: Kind, scheme: str) -> bool:
        """Did a page of another site send it? A link to the page itself is fine."""
        if kind is not Kind.page and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return True
        origin = headers.get("origin")
        if origin is None:
            return False
        # Not by x-forwarded-host: Gradio's CORS answers let a page on another port of this host set it. A proxy that
        # asks under a name of its own is named by --root-path.
        address = netloc(origin)
        return not address or address not in self.origins | {netloc(f"{scheme}://{headers.get('host', '')}", origin)}


class _Response:
    """`send` with our headers on it, and the status it sent."""

    def __init__(self, send: Send) -> None:
        self.send, self.status = send, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            others = [
                (name, value) for name, value in message.get("headers", ()) if name.decode().lower() not in HEADERS
            ]
            ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*others, *ours]}
        await self.send(message)


def refused(refusal: HttpRefusal) -> JSONResponse:
    """The answer to a request that is not let through; it names the reason as Gradio's own errors do."""
    headers = {"connection": "close"} if refusal.status in (408, 413) else {}
    if refusal.wait:
        headers["retry-after"] = str(max(1, math.ceil(refusal.wait)))
    return JSONResponse({"detail": refusal.why}, refusal.status, headers)


def netloc(url: str, like: str = "") -> str:
    """host:port of an address, lower case, without the scheme's own port; "" for none, as in `Origin: null`.

    like: take the scheme of this one; a proxy that speaks https for us may ask in plain http.
    """
    try:
        parts, port = urlsplit(url), urlsplit(url).port
        scheme = urlsplit(like).scheme if like else parts.scheme
    except ValueError:
        return ""
    host = (parts.hostname or "").lower()
    usual = {"http": 80, "https": 443}.get(scheme)
    return host if not host or port in (None, usual) else f"{host}:{port}"


async def read_body(receive: Receive, most: int) -> bytes:
    """The body of a request, or `most` + 1 bytes of one that is larger.

    More of that is read, DRAINED times as much, and thrown away: a client that is still sending when its connection
    ends sees no answer.
    """
    body, read, more = bytearray(), 0, True
    while more and read <= DRAINED * most:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Left
        part, more = message.get("body", b""), message.get("more_body", False)
        read += len(part)
        body += part[: most + 1 - len(body)]
    return bytes(body)


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read before, then whatever comes next."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


def judge_body(body: bytes, most: int, kind: Kind) -> HttpRefusal | None:
    """Refuse a body that is too large, is no JSON, or names a file: Gradio would open a path, fetch an address."""
    if len(body) > most:
        return HttpRefusal(413, f"a request may have {most} bytes")
    if kind is Kind.login:
        return None
    try:
        content = json.loads(body or b"null")
    except (ValueError, RecursionError):
        return HttpRefusal(400, "no JSON")
    return HttpRefusal(400, "files are not accepted") if has_file(content) else None


def has_file(value: Any) -> bool:
    """Is there anything in a JSON value that Gradio takes for a file, an object with a path and a meta?"""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if "path" in value and "meta" in value:
                return True
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return False
