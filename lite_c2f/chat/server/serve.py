"""Process of the server: its address, what it prints, and its end."""

import socket
from pathlib import Path

import uvicorn

from lite_c2f.actors.names import BASE, BASELINE, COARSE, FINE
from lite_c2f.chat.engine import Chat
from lite_c2f.chat.server.api import build
from lite_c2f.runtime.address import bracketed, host_names

GRACE_SECONDS = 3  # for responses to be sent after an interruption


def serve(
    run: str | Path | Chat, bound: socket.socket, host: str, key: str | None = None, *, merged: bool = False
) -> None:
    """What `lite-c2f serve` does: answer requests at a bound socket until interrupted.

    host: as it was given, for the names that requests may have. key: None for a server that needs none. merged: the
    Fine Actor at the merged ratio is the published model. Raises RunError for an unfinished run, KeyboardInterrupt when
    it is interrupted.
    """
    chat = run if isinstance(run, Chat) else Chat(run, merged=merged)
    address = f"http://{bracketed(host)}:{bound.getsockname()[1]}"
    app = build(chat, host_names(host), key)
    config = uvicorn.Config(
        app,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    ApiServer(config, ready_lines(chat.run, address, key is not None)).run([bound])


def ready_lines(run: Path, address: str, needs_key: bool) -> str:
    """What is printed once requests are answered: the address, the models, a request to try."""
    models = ", ".join((COARSE, FINE, f"{FINE}@RATIO", BASELINE, BASE))
    key = ' -H "Authorization: Bearer $LITE_C2F_API_KEY"' if needs_key else ""
    body = '{"model": "fine", "messages": [{"role": "user", "content": "Hello"}]}'
    return (
        f"Serving {run} at {address}/v1 - models: {models} - Ctrl-C ends it\n"
        f"try: curl {address}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
    )


class ApiServer(uvicorn.Server):
    """The server, which prints a text once it listens, and ends its answers when it ends."""

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._ready, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for answers in list(self.config.app.state.answers):  # type: ignore[union-attr]
            answers.close()
        await super().shutdown(sockets)
