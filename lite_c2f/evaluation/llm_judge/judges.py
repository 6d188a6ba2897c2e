"""Who judges: a local Hugging Face model, or any server that speaks OpenAI's chat protocol."""

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol
from urllib.parse import urlsplit

from lite_c2f.config.settings import Config
from lite_c2f.errors import ConfigError, ModelError
from lite_c2f.evaluation.llm_judge.prompts import Message
from lite_c2f.evaluation.llm_judge.replies import (
    ADAPTED,
    KEY,
    ONE_QUESTION,
    Form,
    ServerRefusal,
    adapted,
    read_error,
    read_reply,
    request_body,
    status_within,
)

TRIES, PAUSE = 4, 2.0  # seconds before the second try, doubled for each further one
AGAIN = {408, 409, 429, 500, 502, 503, 504}  # answers of a server that is busy


class Judge(Protocol):
    """Answers messages, several at a time. name: for the record."""

    name: str
    at_once: int  # how many conversations it likes to get together

    @property
    def adapted(self) -> list[str]:
        """Sentences on how it is asked otherwise than usual."""
        ...

    def __call__(self, conversations: Sequence[list[Message]]) -> Sequence[str | ServerRefusal]: ...


class Endpoint:
    """A chat server at `URL/chat/completions`; greedy, several requests at a time, busy answers tried again.

    url: such as http://127.0.0.1:8000/v1. The key, if one is needed, comes from LITE_C2F_JUDGE_KEY. A question that the
    server does not answer gives a Refusal. A setting that it does not take (replies.Form) is left out, and from then on
    once the same question was answered without: an error may be about a question that names a setting.
    Raises ConfigError for an address that is none, ModelError where no question would be answered.
    """

    def __init__(self, url: str, model: str, max_tokens: int = 512, at_once: int = 8, patience: float = 120.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise ConfigError.because("--url", "http(s)://host/v1, without a password in it", f"put a key into {KEY}")
        self.name, self.at_once = f"{model} at {parts.hostname}", at_once
        self._address, self._model = f"{url.rstrip('/')}/chat/completions", model
        self._max_tokens, self._patience = max_tokens, patience
        self._form, self._lock = Form(), threading.Lock()

    @property
    def adapted(self) -> list[str]:
        """What this server is asked otherwise than OpenAI's would be."""
        return [sentence for name, sentence in ADAPTED.items() if getattr(self._form, name) != getattr(Form(), name)]

    def __call__(self, conversations: Sequence[list[Message]]) -> list[str | ServerRefusal]:
        with ThreadPoolExecutor(self.at_once) as pool:
            return list(pool.map(self._ask, conversations))

    def _ask(self, messages: list[Message]) -> str | ServerRefusal:
        tries, changes = 0, dict[str, Any]()
        while True:
            form = self._form._replace(**changes)
            try:
                status, content = self._post(request_body(form, self._model, messages, self._max_tokens))
            except (OSError, http.client.HTTPException) as failure:  # time-outs too
                reason, again = str(getattr(failure, "reason", failure)), True
            else:
                if status == 200:
                    status = status_within(content) or 200
                if status == 200:
                    reply = self._read(content)
                    if changes and not isinstance(reply, ServerRefusal):
                        with self._lock:
                            self._form = self._form._replace(**changes)
                    return reply
                error = read_error(content)
                if change := adapted(form, status, error):
                    changes |= change
                    continue
                reason, again = f"HTTP {status}" + (f": {error.message}" if error.message else ""), status in AGAIN
                if status in ONE_QUESTION or (error.is_filter and not again):
                    return ServerRefusal(reason)
            tries += 1
            if not again or tries == TRIES:
                raise self._error(reason)
            time.sleep(PAUSE * 2 ** (tries - 1))

    def _post(self, body: dict[str, Any]) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._address, json.dumps(body).encode(), headers)
        try:
            with _opener().open(request, timeout=self._patience) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def _read(self, content: bytes) -> str | ServerRefusal:
        try:
            return read_reply(content)
        except ValueError:
            raise self._error("an answer in another form than OpenAI's") from None

    def _error(self, reason: str) -> ModelError:
        return ModelError.because(
            f"judge {self.name}: {reason}", "a chat server with that model", f"check --url, --judge and {KEY}"
        )


class Local:
    """A Hugging Face model on this machine, loaded as the run's models are; greedy, through its chat template."""

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
        from lite_c2f.evaluation.llm_judge.verdicts import begins_thinking
        from lite_c2f.sampling import Sampling

        prompts = [
            (Turn("human", "\n\n".join(message["content"] for message in messages)),) for messages in conversations
        ]
        said = self._model.answer(prompts, Sampling(self._max_tokens, temperature=0.0), self.at_once)
        tokenizer, most = self._model.tokenizer, self._model.config.data.max_prompt_tokens
        thinks = begins_thinking(str(tokenizer.decode(encode_chat(tokenizer, [Turn("human", "Hi")], most))))
        # a template that opens the thought itself: without its beginning a draft that was cut off reads like a verdict
        return [f"<think>{answer.text}" if thinks else answer.text for answer in said]


def in_parts(
    judge: Judge, conversations: Sequence[list[Message]], done: Callable[[int, Sequence[str | ServerRefusal]], None]
) -> None:
    """Ask a judge part by part; done(first, replies) is called after each, so that a stop loses none of them."""
    for first in range(0, len(conversations), judge.at_once):
        done(first, judge(conversations[first : first + judge.at_once]))


def _opener() -> urllib.request.OpenerDirector:
    """One that follows no redirects: a key is for the server it was given for."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    return urllib.request.build_opener(Stay)
