"""Judges: a local Hugging Face model, or any server with OpenAI's chat protocol."""

import email.utils
import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import httpx

from lite_c2f.config.settings import Config
from lite_c2f.errors import ModelError
from lite_c2f.evaluation.llm_judge.prompts import Message
from lite_c2f.evaluation.llm_judge.replies import (
    FORMAT_NOTES,
    KEY_VARIABLE,
    QUESTION_STATUSES,
    RequestFormat,
    ServerRefusal,
    format_change,
    one_line,
    read_error,
    read_reply,
    request_body,
    status_in_body,
)
from lite_c2f.runtime.chat_servers import authorization, checked_url, direct_mounts, key_in

MAX_ATTEMPTS, PAUSE = 4, 2.0  # seconds before the second try, doubled for each further one
RETRY_STATUSES = {408, 409, 429, 500, 502, 503, 504}  # status codes after which a request is sent again


class Judge(Protocol):
    """A model that answers conversations, several at a time."""

    name: str  # in the files of the judgments
    at_once: int  # conversations per call

    @property
    def adapted(self) -> list[str]:
        """Sentences on the settings that it does not accept."""
        ...

    def __call__(self, conversations: Sequence[list[Message]]) -> Sequence[str | ServerRefusal]: ...


class Endpoint:
    """A chat server at `URL/chat/completions`; greedy, several requests at a time, sent again while it is busy.

    url: such as http://127.0.0.1:8000/v1. The key, if one is needed, comes from LITE_C2F_JUDGE_KEY. A question that the
    server does not answer gives a ServerRefusal. A setting that it does not accept (`replies.RequestFormat`) is left
    out; permanently only once the same question was answered without it, because an error may be about a question that
    names a setting. patience: longest wait for an answer, in seconds, also if Retry-After is longer.
    Raises ConfigError for an invalid address or key, ModelError if the server would answer no question.
    """

    def __init__(self, url: str, model: str, max_tokens: int = 512, at_once: int = 8, patience: float = 120.0) -> None:
        address = checked_url(url, "--url", KEY_VARIABLE)
        self.name, self.at_once = f"{model} at {httpx.URL(address).host}", at_once
        self._address, self._model = f"{address}/chat/completions", model
        self._max_tokens, self._patience = max_tokens, patience
        self._format, self._lock = RequestFormat(), threading.Lock()

    @property
    def adapted(self) -> list[str]:
        """Sentences on the settings that OpenAI's own server accepts and this one does not."""
        return [
            sentence
            for name, sentence in FORMAT_NOTES.items()
            if getattr(self._format, name) != getattr(RequestFormat(), name)
        ]

    def __call__(self, conversations: Sequence[list[Message]]) -> list[str | ServerRefusal]:
        # No redirects, because the key is for one server. No custom transport, which would ignore proxy settings;
        # those hold for servers elsewhere alone.
        with (
            httpx.Client(
                headers=authorization(key_in(KEY_VARIABLE)),
                timeout=self._patience,
                follow_redirects=False,
                mounts=direct_mounts([self._address]),
            ) as client,
            ThreadPoolExecutor(self.at_once) as pool,
        ):
            return list(pool.map(functools.partial(self._ask, client), conversations))

    def _ask(self, client: httpx.Client, messages: list[Message]) -> str | ServerRefusal:
        changes: dict[str, Any] = {}
        while True:
            request_format = self._format._replace(**changes)
            status, content = self._post(client, request_body(request_format, self._model, messages, self._max_tokens))
            if status == 200:
                reply = self._read(content)
                if changes and not isinstance(reply, ServerRefusal):
                    with self._lock:
                        self._format = self._format._replace(**changes)
                return reply
            error = read_error(content)
            if change := format_change(request_format, status, error):
                changes |= change
                continue
            reason = f"HTTP {status}" + (f": {error.message}" if error.message else "")
            if status in QUESTION_STATUSES or (error.is_filter and status not in RETRY_STATUSES):
                return ServerRefusal(reason)
            raise self._error(reason)

    def _post(self, client: httpx.Client, body: dict[str, Any]) -> tuple[int, bytes]:
        """(status, content) of the answer, or of the last attempt on a busy server. Raises ModelError without any."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            headers: Mapping[str, str] = {}
            try:
                response = client.post(self._address, json=body)
            except httpx.RequestError as failure:  # time-outs too
                if attempt == MAX_ATTEMPTS:
                    raise self._error(one_line(failure) or type(failure).__name__) from None
            else:
                status, content = response.status_code, response.content
                if status == 200:
                    status = status_in_body(content) or 200
                # not for a 500 about a setting, which would fail again
                if (
                    attempt == MAX_ATTEMPTS
                    or status not in RETRY_STATUSES
                    or format_change(RequestFormat(), status, read_error(content))
                ):
                    break
                headers = response.headers
            time.sleep(min(retry_delay(attempt, headers), self._patience))
        return status, content

    def _read(self, content: bytes) -> str | ServerRefusal:
        try:
            return read_reply(content)
        except ValueError:
            raise self._error("an answer in another form than OpenAI's") from None

    def _error(self, reason: str) -> ModelError:
        return ModelError.because(
            f"judge {self.name}: {reason}", "a chat server with that model", f"check --url, --judge and {KEY_VARIABLE}"
        )


class Local:
    """A local Hugging Face model, loaded as the run's models are; greedy, with its chat template."""

    def __init__(self, model: str, config: Config, max_tokens: int = 512, at_once: int = 16) -> None:
        from pathlib import Path

        from lite_c2f.actors.models import InstructModel
        from lite_c2f.backbone.context import context_length
        from lite_c2f.backbone.pair import read_config

        context = context_length(read_config(Path(model))) or 4096
        if context <= 2 * max_tokens:
            max_tokens = context // 4
        room = config.model_copy(
            update={"data": config.data.model_copy(update={"max_prompt_tokens": context - max_tokens})}
        )
        self.name, self.at_once = model, at_once
        self._max_tokens = max_tokens
        self._model = InstructModel(room, model)
        self.adapted: list[str] = []

    def __call__(self, conversations: Sequence[list[Message]]) -> list[str]:
        from lite_c2f.data.encode import encode_chat
        from lite_c2f.data.records import Turn
        from lite_c2f.evaluation.llm_judge.verdicts import opens_thinking
        from lite_c2f.sampling import Sampling

        prompts = [
            (Turn("human", "\n\n".join(message["content"] for message in messages)),) for messages in conversations
        ]
        answers = self._model.answer(prompts, Sampling(self._max_tokens, temperature=0.0), self.at_once)
        tokenizer, longest = self._model.tokenizer, self._model.config.data.max_prompt_tokens
        thinks = opens_thinking(str(tokenizer.decode(encode_chat(tokenizer, [Turn("human", "Hi")], longest))))
        # if the template opens the thinking block: else a draft that was cut off would be read as a verdict
        return [f"<think>{answer.text}" if thinks else answer.text for answer in answers]


def retry_delay(attempt: int, headers: Mapping[str, str]) -> float:
    """Seconds to wait after an attempt (1, 2, ...): the server's Retry-After, else twice as long each time.

    A Retry-After date counts relative to the response's Date, because this machine's clock may be wrong.

    >>> pause_before(2, {}), pause_before(1, {"Retry-After": "7"})
    (4.0, 7.0)
    """
    retry_after = headers.get("Retry-After", "").strip()
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        until, now = (email.utils.parsedate_to_datetime(text) for text in (retry_after, headers.get("Date", "")))
        return max((until - now).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):  # no date, or only one of them with a time zone
        return PAUSE * 2.0 ** (attempt - 1)


def judge_in_batches(
    judge: Judge, conversations: Sequence[list[Message]], done: Callable[[int, Sequence[str | ServerRefusal]], None]
) -> None:
    """Ask a judge in batches; done(first, replies) is called after each, so that an interruption loses none."""
    for first in range(0, len(conversations), judge.at_once):
        done(first, judge(conversations[first : first + judge.at_once]))
