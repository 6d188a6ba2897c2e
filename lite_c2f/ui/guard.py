"""ASGI middleware between the network and Gradio: refuses requests, limits their rate and size, adds headers.

Responses are streamed through: only the request is buffered, up to its limit. Gradio answers CORS preflights (OPTIONS)
before the middleware; these reach no route.
"""

import asyncio
import json
import math
from collections.abc import Collection
from typing import Any, NamedTuple

from starlette._utils import get_route_path  # the router's own, so that both compare the same text
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lite_c2f.runtime.address import netloc
from lite_c2f.ui.paths import Kind, kind_of, names_a_file
from lite_c2f.ui.rate_limits import LoginThrottle, Rate, client_of

MIB = 2**20
BODY_SECONDS = 30.0  # within which the body of a request has to arrive
DRAINED = 8  # times the limit: how much is read of a body that is too large
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
    """Response to a request that does not reach the app."""

    status: int
    reason: str
    wait: float = 0.0  # seconds until another attempt may succeed


class _Disconnected(Exception):  # noqa: N818 - no error: the client left before its request was complete
    pass


class Guard:
    """The middleware. origins: `host:port` of a proxy that serves the page under its own name.

    body: bytes a request may have; pages: further pages of the app; rate: of POSTs per client; logins: login tries
    per client; all_logins: of all clients together, since some have many addresses.
    """

    def __init__(
        self,
        app: ASGIApp,
        origins: Collection[str] = (),
        pages: Collection[str] = (),
        body: int = MIB,
        rate: Rate | None = None,
        logins: LoginThrottle | None = None,
        all_logins: Rate | None = None,
    ) -> None:
        self.app, self.pages, self.body = app, frozenset(pages), body
        self.origins = frozenset(origin.lower() for origin in origins)
        self.rate = rate or Rate(20, 200)  # 16 people behind one proxy are one client
        self.logins = logins or LoginThrottle()
        self.all_logins = all_logins or Rate(1, 60)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:  # the page needs no websocket
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = _Response(send)
        root = scope.get("root_path")
        if root and scope["path"] == root and scope["method"] in ("GET", "HEAD"):  # addresses in the page are relative
            await RedirectResponse(f"{root}/")(scope, receive, response)
            return
        client = client_of(scope["client"][0] if scope.get("client") else "")
        kind = kind_of(scope["method"], get_route_path(scope), self.pages)
        refusal = self._refusal(scope, kind, client)
        try:
            if refusal is not None and refusal.status == 413:
                async with asyncio.timeout(BODY_SECONDS):
                    await read_body(receive, self.body)
            if refusal is None and kind in (Kind.action, Kind.login):
                async with asyncio.timeout(BODY_SECONDS):
                    body = await read_body(receive, self.body)
                refusal = body_refusal(body, self.body, kind)
                receive = replayed(body, receive)
        except _Disconnected:
            return
        except TimeoutError:
            refusal = HttpRefusal(408, "the request took too long")
        if refusal is None and kind is Kind.login:
            refusal = self._login_refusal(client)
        if refusal is not None:
            await refused(refusal)(scope, receive, response)
            return
        try:
            await self.app(scope, receive, response)
        except Exception:
            if not response.status:
                await refused(HttpRefusal(500, "an error in the app"))(scope, receive, response)
            raise  # the server logs it
        if kind is Kind.login and 200 <= response.status < 400:
            self.logins.succeeded(client)

    def _refusal(self, scope: Scope, kind: Kind | None, client: str) -> HttpRefusal | None:
        """Why a request is refused before its body is read; None where it is not."""
        headers = Headers(scope=scope)
        if kind is None or names_a_file(scope.get("query_string", b"")):
            return HttpRefusal(404, "not found")
        if self._is_foreign(headers, kind, scope.get("scheme", "http")):
            return HttpRefusal(403, "this request comes from another site")
        if kind not in (Kind.action, Kind.login):
            return None
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return HttpRefusal(400, "content-length is not a number")
        if len(length) > 15 or int(length) > self.body:
            return HttpRefusal(413, f"a request may have {self.body} bytes")
        if wait := self.rate.try_acquire(client):
            return HttpRefusal(429, "too many requests", wait)
        return None

    def _login_refusal(self, client: str) -> HttpRefusal | None:
        wait = self.logins.begin_try(client) or self.all_logins.try_acquire("")
        return HttpRefusal(429, "too many logins; wait", wait) if wait else None

    def _is_foreign(self, headers: Headers, kind: Kind, scheme: str) -> bool:
        """Was it sent by a page of another site? A link to the page itself is allowed."""
        if kind is not Kind.page and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return True
        origin = headers.get("origin")
        if origin is None:
            return False
        # Not by x-forwarded-host: Gradio's CORS answers let a page on another port of this host set it. A proxy with a
        # name of its own is given by --root-path.
        address = netloc(origin)
        return not address or address not in self.origins | {netloc(f"{scheme}://{headers.get('host', '')}", origin)}


class _Response:
    """`send` with HEADERS added, and the status that was sent."""

    def __init__(self, send: Send) -> None:
        self.send, self.status = send, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            others = [
                (name, value) for name, value in message.get("headers", ()) if name.decode().lower() not in HEADERS
            ]
            added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*others, *added]}
        await self.send(message)


def refused(refusal: HttpRefusal) -> JSONResponse:
    """The response to a request that is refused, with the reason where Gradio's own errors have it."""
    headers = {"connection": "close"} if refusal.status in (408, 413) else {}
    if refusal.wait:
        headers["retry-after"] = str(max(1, math.ceil(refusal.wait)))
    return JSONResponse({"detail": refusal.reason}, refusal.status, headers)


async def read_body(receive: Receive, most: int) -> bytes:
    """The body of a request, or `most` + 1 bytes of one that is larger.

    Of a larger one, up to DRAINED times as much is read and dropped: a client that is still sending when its connection
    is closed sees no response.
    """
    body, read, more = bytearray(), 0, True
    while more and read <= DRAINED * most:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Disconnected
        part, more = message.get("body", b""), message.get("more_body", False)
        read += len(part)
        body += part[: most + 1 - len(body)]
    return bytes(body)


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns a body that was read before, then whatever comes next."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return pending.pop() if pending else await receive()

    return again


def body_refusal(body: bytes, most: int, kind: Kind) -> HttpRefusal | None:
    """Why a body is refused: too large, not JSON, or it names a file, which Gradio would open or fetch."""
    if len(body) > most:
        return HttpRefusal(413, f"a request may have {most} bytes")
    if kind is Kind.login:
        return None
    try:
        content = json.loads(body or b"null")
    except (ValueError, RecursionError):
        return HttpRefusal(400, "not JSON")
    return HttpRefusal(400, "files are not accepted") if has_file(content) else None


def has_file(value: Any) -> bool:
    """Does a JSON value hold an object with a path and a meta, which Gradio takes for a file?"""
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if "path" in value and "meta" in value:
                return True
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
    return False
