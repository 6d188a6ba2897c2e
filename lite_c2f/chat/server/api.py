"""Routes of the server, with OpenAI's paths and bodies."""

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from lite_c2f.actors.reply import Reply
from lite_c2f.chat.engine import Chat
from lite_c2f.chat.server.answering import Answers
from lite_c2f.chat.server.bodies import Part, ResponseBody, event, failure, usage_of
from lite_c2f.chat.server.errors import ApiError
from lite_c2f.chat.server.gate import Gate
from lite_c2f.chat.server.models import load_other, model_body, names_of, pane_named
from lite_c2f.chat.server.questions import Asked, chat_questions, completion_questions
from lite_c2f.chat.server.requests import ChatBody, CommonBody, CompletionBody, read_request

MAX_BODY = 2**20  # bytes of a request
BODY_SECONDS = 30.0  # within which the body of a request has to arrive
LONG_BODY = 2**14  # bytes; a longer one is tokenised in a thread, so that streams go on meanwhile
log = logging.getLogger(__name__)


def build(chat: Chat, hosts: Sequence[str] = ("*",), key: str | None = None) -> Starlette:
    """The ASGI application that serves a run's actors. hosts, key: those of `Gate`."""
    app = Starlette(
        routes=[
            Route("/health", _health),
            Route("/v1/models", _models),
            Route("/v1/models/{name:path}", _model),
            Route("/v1/chat/completions", _chat_completions, methods=["POST"]),
            Route("/v1/completions", _completions, methods=["POST"]),
        ],
        middleware=[Middleware(Gate, hosts=hosts, key=key)],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            ClientDisconnect: _left,
            Exception: _bug,
        },
    )
    app.state.chat = chat
    app.state.created = int((chat.run / "run.json").stat().st_mtime)
    app.state.answers = weakref.WeakSet[Answers]()  # those being written, which `serve` closes when it ends
    return app


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _models(request: Request) -> Response:
    state = request.app.state
    names = await asyncio.to_thread(names_of, state.chat)
    data = [model_body(name, state.created, state.chat.context) for name in names]
    return JSONResponse({"object": "list", "data": data})


async def _model(request: Request) -> Response:
    name, state = request.path_params["name"], request.app.state
    if pane_named(name, "").source:
        await asyncio.to_thread(load_other, state.chat, name)
    return JSONResponse(model_body(name, state.created, state.chat.context))


async def _chat_completions(request: Request) -> Response:
    return await _complete(request, ChatBody, chat_questions)


async def _completions(request: Request) -> Response:
    return await _complete(request, CompletionBody, completion_questions)


async def _complete(request: Request, kind: type[Any], questions_of: Callable[[Chat, Any], list[Asked]]) -> Response:
    # 1. read
    chat: Chat = request.app.state.chat
    content = await _content(request)
    body: CommonBody = read_request(content, kind)
    # 2. check
    if len(content) > LONG_BODY:
        questions = await asyncio.to_thread(questions_of, chat, body)
    else:
        questions = questions_of(chat, body)
    if questions[0].pane.source:  # read from the disk here, where the other requests go on
        await asyncio.to_thread(load_other, chat, body.model)
    tokens = chat.token_texts(questions[0].pane) if questions[0].form.logprobs is not None else []
    result = ResponseBody(chat=kind is ChatBody, model=body.model, tokens=tokens)
    # 3. queue
    answers = Answers(chat, questions, _client(request, body))
    request.app.state.answers.add(answers)
    # 4. answer
    if body.stream:
        return EventStream(answers, _events(answers, result, body.includes_usage))
    async with answers.closed_on_disconnect(request.receive):
        replies = await answers.finished()
    for reply in replies:
        if error := failure(reply):
            raise error
    parts = [_part(answers, reply) for reply in replies]
    return JSONResponse(result.whole(parts, usage_of(questions, sum(reply.tokens for reply in replies))))


class EventStream(StreamingResponse):
    """A stream of events, whose answers end with it or when the client leaves."""

    def __init__(self, answers: Answers, events: AsyncIterator[bytes]) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"cache-control": "no-cache", "x-accel-buffering": "no"}
        )
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._answers.closed_on_disconnect(receive):
            await self.stream_response(send)


async def _events(answers: Answers, body: ResponseBody, usage: bool) -> AsyncIterator[bytes]:
    """The events of a stream; an answer that fails ends it with an error in OpenAI's form."""
    more = {"usage": None} if usage else {}
    if body.chat:
        yield b"".join(event(body.opening(index, **more)) for index in range(len(answers.questions)))
    last: dict[str, Reply] = {}
    listed = dict.fromkeys(answers.questions, 0)  # log-probabilities sent
    async for replies in answers.growing():
        events: list[bytes] = []
        for reply in replies:
            if error := failure(reply):
                yield b"".join([*events, event(error.body)])
                return
            part = _part(answers, reply, last.get(reply.pane), listed[reply.pane])
            listed[reply.pane] += len(part.logprobs or ())
            if part.text or part.logprobs or part.finish:
                events.append(event(body.chunk([part], **more)))
            if part.text or part.finish:
                last[reply.pane] = reply
        if events:
            yield b"".join(events)
    if usage:
        tokens = sum(reply.tokens for reply in last.values())
        yield event(body.chunk([], usage=usage_of(answers.questions.values(), tokens)))
    yield event("[DONE]")


def _part(answers: Answers, reply: Reply, before: Reply | None = None, listed: int = 0) -> Part:
    """What a reply adds to the one before it. listed: its log-probabilities that were sent."""
    sent = before.text if before else ""
    # A text may wait, never change: the half of a character at its end, for example, is left out until it is whole.
    new = reply.text[len(sent) :] if reply.text.startswith(sent) else ""
    asked = answers.questions[reply.pane]
    entries = None
    if asked.form.logprobs is not None:
        entries = answers.streams[reply.pane].logprobs(reply.pane)[listed : reply.tokens]
    return Part(int(reply.pane), new, entries, reply.finish)


async def _content(request: Request) -> bytes:
    """The body of a request. Raises ApiError for one that is too large or too slow."""
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                content += piece
                if len(content) > MAX_BODY:
                    raise ApiError(
                        413, f"a request of more than {MAX_BODY} bytes; shorten it", code="request_too_large"
                    )
    except TimeoutError:
        raise ApiError(408, "the request took too long", code="request_timeout") from None
    return bytes(content)


def _client(request: Request, body: CommonBody) -> str:
    """Whose turn a request takes: its address, key and user, so that programs of one machine can be told apart."""
    address = request.client.host if request.client else ""
    user = str(body.user or request.headers.get("x-openwebui-user-id", ""))
    return "\n".join((address, request.headers.get("authorization", ""), user))


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    address = f"{request.method} {request.url.path}"
    known = "/v1/chat/completions, /v1/completions or /v1/models; give the client a base URL that ends with /v1"
    message = {404: f"unknown address: {address}; expected {known}", 405: f"{address}: another method is expected"}
    return ApiError(error.status_code, message.get(error.status_code, error.detail), headers=error.headers).response()


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _bug(request: Request, error: Exception) -> Response:
    return ApiError(500, "an error in the server, which its terminal shows", code="server_error").response()
