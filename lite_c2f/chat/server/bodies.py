"""JSON of the responses, whole and in parts, of both kinds of completion."""

import json
import secrets
import time
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from lite_c2f.actors.reply import Reply
from lite_c2f.chat.panes import TokenLogprobs
from lite_c2f.chat.server.errors import ApiError
from lite_c2f.chat.server.questions import Asked

FINISH_REASONS = {None: None, "eos": "stop", "stop": "stop", "limit": "length"}


class Part(NamedTuple):
    """A part of one choice: all of it, or what is new of it."""

    number: int  # of the choice
    text: str
    logprobs: Sequence[TokenLogprobs] | None  # of its tokens; None where the request asks for none
    finish: str | None  # as in Reply


class ResponseBody:
    """The JSON of one response. kind: is it a chat? tokens: bytes by token id, for log-probabilities."""

    def __init__(self, *, chat: bool, model: str, tokens: Sequence[bytes]) -> None:
        self.chat, self._tokens = chat, tokens
        self._listed: dict[int, int] = {}  # by choice: characters of the tokens listed so far
        name = "chatcmpl" if chat else "cmpl"
        self._head = {"id": f"{name}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, parts: Iterable[Part], usage: dict[str, Any]) -> dict[str, Any]:
        """A response that is not streamed."""
        name = "chat.completion" if self.chat else "text_completion"
        return {
            **self._head,
            "object": name,
            "choices": [self._choice(part, "message") for part in parts],
            "usage": usage,
        }

    def chunk(self, parts: Iterable[Part], **more: Any) -> dict[str, Any]:
        """One event of a stream."""
        name = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head, "object": name, "choices": [self._choice(part, "delta") for part in parts], **more}

    def opening(self, index: int, **more: Any) -> dict[str, Any]:
        """The first event of a chat's choice: who speaks."""
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice], **more}

    def _choice(self, part: Part, name: str) -> dict[str, Any]:
        result: dict[str, Any] = {"index": part.number}
        if not self.chat:
            result["text"] = part.text
        elif name == "message":
            result["message"] = {"role": "assistant", "content": part.text, "refusal": None}
        else:
            result["delta"] = {"content": part.text} if part.text else {}
        result["logprobs"] = None if part.logprobs is None else self._logprobs(part.number, part.logprobs)
        return {**result, "finish_reason": FINISH_REASONS[part.finish]}

    def _logprobs(self, number: int, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
        if self.chat:
            return {"content": [self._entry(entry) for entry in entries], "refusal": None}
        texts = [self._text(entry.token) for entry in entries]
        # not characters of the text sent: a text may wait while its tokens are listed
        *offsets, self._listed[number] = accumulate(map(len, texts), initial=self._listed.get(number, 0))
        return {
            "tokens": texts,
            "token_logprobs": [entry.logprob for entry in entries],
            # the best last: of several halves of a character, all with one text, its value is kept
            "top_logprobs": [{self._text(token): value for token, value in entry.top[::-1]} for entry in entries],
            "text_offset": offsets,
        }

    def _entry(self, entry: TokenLogprobs) -> dict[str, Any]:
        return {
            **self._token(entry.token, entry.logprob),
            "top_logprobs": [self._token(token, logprob) for token, logprob in entry.top],
        }

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        content = self._tokens[token] if token < len(self._tokens) else b""
        return {"token": content.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(content)}

    def _text(self, token: int) -> str:
        return str(self._token(token, 0.0)["token"])


def usage_of(questions: Iterable[Asked], completion_tokens: int) -> dict[str, int]:
    """The usage of a request: its prompts, each once, and the tokens of all answers, their endings included."""
    prompt = sum(asked.prompt_tokens for asked in questions if asked.counted)
    return {"prompt_tokens": prompt, "completion_tokens": completion_tokens, "total_tokens": prompt + completion_tokens}


def failure(reply: Reply) -> ApiError | None:
    """The error of an answer that failed or was stopped by the server; None for any other."""
    if reply.finish == "error":
        return ApiError(500, f"the answer failed: {reply.message}", code="server_error")
    if reply.finish == "stopped":
        return ApiError(503, "the answer was stopped because the server ends; ask again later", code="server_stopped")
    return None


def event(content: dict[str, Any] | str) -> bytes:
    """A server-sent event."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
