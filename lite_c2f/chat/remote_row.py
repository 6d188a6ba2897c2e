"""Answer that another server generates: a thread reads its stream, the answering thread treats it as a row."""

import asyncio
import contextlib
import functools
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import httpx

from lite_c2f.chat.history import History, with_system
from lite_c2f.chat.panes import ChatSettings, TokenLogprobs
from lite_c2f.chat.remote_stream import EventDecoder, Piece, read_piece, well_formed
from lite_c2f.errors import C2FError, ModelError
from lite_c2f.runtime.chat_servers import authorization, direct_mounts, one_line, read_error
from lite_c2f.runtime.lingering_threads import add_lingering

CONNECT_SECONDS, SILENCE_SECONDS = 10.0, 600.0  # a model that is loaded first, or thinks, is silent for long
ANSWER_SECONDS = 3600.0
MAX_TEXT, MAX_BYTES = 2**17, 2**24  # characters of an answer; bytes of its stream, reasoning and framing included
MAX_ERROR = 2**16  # bytes of an error that are read
EVENTS = "text/event-stream"
# Sent with every request. Compressed answers could grow without limit when they are unpacked.
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "lite_c2f"}
REMEDIES = {
    401: "check {variable}",
    403: "check {variable}",
    404: "choose a model that the server lists",
    429: "ask again later",
}


class Server(NamedTuple):
    """A server with OpenAI's interface."""

    url: str  # such as http://127.0.0.1:11434/v1
    place: str  # host:port
    key: str
    variable: str  # the environment variable that has the key
    models: tuple[str, ...] = ()  # named at the start, whether it lists them or not

    @property
    def headers(self) -> dict[str, str]:
        return {**HEADERS, **authorization(self.key)}


class RemoteRow:
    """One answer of a server's model, with what the engine needs of an `AnswerRow`.

    on_change: called by the reading thread whenever there is something new; it must return at once. Settings that
    OpenAI's interface has not, top-k and repetition penalty, are not sent.
    """

    tokens: Sequence[int] = ()  # those of the run are counted from the text; the server's own are unknown
    logprobs: Sequence[TokenLogprobs] = ()
    eos_ids: Sequence[int] = ()

    def __init__(
        self,
        server: Server,
        model: str,
        history: History,
        settings: ChatSettings,
        stop: Sequence[str],
        on_change: Callable[[], None],
    ) -> None:
        self.server, self._on_change = server, on_change
        self.body = request_body(model, history, settings, stop)
        self.message = ""
        self.finish: str | None = None
        self.first_token_at = self.last_token_at = 0.0  # time.perf_counter() of the first and the last piece of text
        self._pieces, self._length, self._thinks = list[str](), 0, False
        self._lock = threading.Lock()  # of the ending and of what cancels the request
        self._cancel: Callable[[], object] | None = None
        self._thread = threading.Thread(target=self._run, name="lite_c2f-remote", daemon=True)

    def start(self) -> None:
        """Send the request, in a thread of its own."""
        add_lingering([self._thread])
        self._thread.start()

    @property
    def text(self) -> str:
        """The answer so far, without spaces around it."""
        whole = self.finish is not None
        text = well_formed("".join(self._pieces))
        return (text if whole else text.rstrip("\N{REPLACEMENT CHARACTER}")).strip()

    def end(self, finish: str, message: str = "") -> None:
        """Finish the row: no text follows, and the connection is closed, also where the server is silent."""
        with self._lock:
            self._set_finish(finish, message)
            if self._cancel is not None:
                with contextlib.suppress(RuntimeError):  # the thread has ended meanwhile
                    self._cancel()

    def _set_finish(self, finish: str, message: str = "") -> None:
        """The first ending counts. finish last: other threads read it first."""
        if self.finish is None:
            self.message, self.finish = message, finish

    def _run(self) -> None:
        """Body of the reading thread."""
        try:
            asyncio.run(self._read_until_ended())
            if self.finish is None:
                raise ModelError.because("the answer ended without a finish_reason", "one", "ask again")
        except Exception as error:  # of any kind: a caller waits for this row and reads the message
            with self._lock:
                self._set_finish("error", self._line(error))
        self._on_change()

    async def _read_until_ended(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        with self._lock:
            if self.finish is not None:
                return
            self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._ask()
        except asyncio.CancelledError:  # by `end`
            pass
        except TimeoutError:
            raise ModelError.because(
                f"no ending within {ANSWER_SECONDS:.0f} s", "one", "lower Max new tokens"
            ) from None
        finally:
            with self._lock:
                self._cancel = None

    async def _ask(self) -> None:
        """Read the answer. Raises ModelError, and httpx's errors."""
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        async with server_client([self.server], timeout) as client:
            body, address = self.body, f"{self.server.url}/chat/completions"
            while True:
                async with client.stream("POST", address, json=body, headers=self.server.headers) as response:
                    if response.status_code == 200:
                        await self._follow(response)
                        return
                    error = read_error(await _content(response, MAX_ERROR), self.server.key)
                    status = response.status_code
                if status != 400 or "max_tokens" not in body or "max_completion_tokens" not in error.message:
                    raise self._refusal(status, error.message)
                body = {**body, "max_completion_tokens": body["max_tokens"]}  # the name that OpenAI's newer models take
                del body["max_tokens"]

    async def _follow(self, response: httpx.Response) -> None:
        """Add the pieces of a stream as they arrive, up to the ending."""
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise ModelError.because("a compressed answer", "one as it is", "turn compression off at that server")
        decoder, size = EventDecoder(), 0
        if not response.headers.get("content-type", "").lower().startswith(EVENTS):  # a server that does not stream
            whole = await _content(response, MAX_BYTES)
            events = whole.lstrip().startswith(b"data:")  # or does, under another type
            for data in [*decoder.feed(whole), *decoder.close()] if events else [whole.decode("utf-8", "replace")]:
                if self._add(read_piece(data, self.server.key)):
                    return
            return
        async for portion in response.aiter_raw():
            size += len(portion)
            if size > MAX_BYTES:
                raise ModelError.because(f"more than {MAX_BYTES} bytes", "a shorter answer", "ask something else")
            if any(self._add(read_piece(data, self.server.key)) for data in decoder.feed(portion)):
                return
        for data in decoder.close():
            self._add(read_piece(data, self.server.key))

    def _add(self, piece: Piece) -> bool:
        """Add a piece; returns whether the answer has ended."""
        with self._lock:
            if self.finish is not None:
                return True
            self._thinks |= piece.thought
            if piece.text:
                now = time.perf_counter()
                self.first_token_at, self.last_token_at = self.first_token_at or now, now
                self._pieces.append(piece.text[: MAX_TEXT - self._length])
                self._length += len(self._pieces[-1])
            finish = "limit" if self._length >= MAX_TEXT else piece.finish
            if finish is not None:
                if self._thinks and not self._length:
                    raise ModelError.because(
                        "the model only reasoned, which is not shown", "an answer", "raise Max new tokens"
                    )
                self._set_finish(finish)
        self._on_change()
        return self.finish is not None or piece.done

    def _refusal(self, status: int, message: str) -> ModelError:
        reason = f"HTTP {status}" + (f": {message}" if message else "")
        if 300 <= status < 400:
            return ModelError.because(f"{reason}: a redirect", "an answer", "give --also the address that it leads to")
        remedy = REMEDIES.get(status, "change the question or the settings" if status < 500 else "look at that server")
        return ModelError.because(reason, "an answer", remedy.format(variable=self.server.variable))

    def _line(self, error: Exception) -> str:
        """The message of a failure."""
        text = str(error)
        if not isinstance(error, C2FError):
            text = f"{type(error).__name__}: {text}".rstrip(": ")
        return one_line(f"{self.server.place}: {text}", self.server.key)


def server_client(servers: Sequence[Server], timeout: httpx.Timeout) -> httpx.AsyncClient:
    """A client without redirects, because the key is for one server; proxies hold for servers elsewhere alone."""
    mounts = direct_mounts([server.url for server in servers])
    return httpx.AsyncClient(timeout=timeout, verify=_certificates(), follow_redirects=False, mounts=mounts)


@functools.cache  # reading them takes longer than a request on the same machine
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def request_body(model: str, history: History, settings: ChatSettings, stop: Sequence[str]) -> dict[str, Any]:
    """The JSON body of a question. stop: texts that end the answer."""
    messages: list[Mapping[str, str]] = [
        {"role": "user" if turn.role == "human" else "assistant", "content": turn.text}
        for turn in with_system(history, settings.system)
    ]
    return {
        "model": model,
        "messages": messages,
        "stream": True,
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": settings.seed,
        **({"stop": list(stop)} if stop else {}),
    }


async def _content(response: httpx.Response, most: int) -> bytes:
    """The first bytes of a body, as they were sent."""
    content = bytearray()
    async for portion in response.aiter_raw():
        content += portion
        if len(content) >= most:
            break
    return bytes(content[:most])
