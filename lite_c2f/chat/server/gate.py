"""ASGI middleware in front of the routes: host names, pages of other sites, the API key; and how paths are written."""

import re
import secrets
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lite_c2f.chat.server.errors import ApiError
from lite_c2f.runtime.address import is_allowed_host, netloc

OPEN_PATHS = ("/health",)  # without a key


class Gate:
    """The middleware. hosts: names that a request's Host may have, ["*"] for any; key: None where none is needed."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str], key: str | None) -> None:
        self.app, self.hosts, self.key = app, hosts, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": tidy(scope["path"])}
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is not None:
            await refusal.response()(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_allowed_host(host, self.hosts):
            return ApiError(400, f"invalid Host '{host}'; expected one of {', '.join(self.hosts)}", code="invalid_host")
        if origin is not None and netloc(origin) != netloc(f"{scope.get('scheme', 'http')}://{host}", origin):
            return ApiError(403, "this request comes from a page of another site", code="foreign_origin")
        if self.key is None or scope["path"] in OPEN_PATHS:
            return None
        given = headers.get("authorization", "")
        scheme, _, key = given.partition(" ")
        if secrets.compare_digest(key.strip().encode(), self.key.encode()) and scheme.lower() == "bearer":
            return None
        got = "an incorrect API key" if given else "no API key"
        message = f"{got}; expected the header 'Authorization: Bearer KEY' with the server's key; correct it"
        return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def tidy(path: str) -> str:
    """A path without doubled slashes and one at its end, which clients make of a base URL that ends with one.

    >>> tidy("/v1//models/"), tidy("/")
    ('/v1/models', '/')
    """
    return re.sub("/+", "/", path).removesuffix("/") or "/"
