"""Who judges: a local Hugging Face model, or any server that speaks OpenAI's chat protocol."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol
from urllib.parse import urlsplit

from lite_c2f.config import Config
from lite_c2f.errors import ConfigError, ModelError
from lite_c2f.judging.prompts import Message

KEY = "LITE_C2F_JUDGE_KEY"  # environment variable; never written anywhere
TRIES, PAUSE = 4, 2.0  # seconds before the second try, doubled for each further one
AGAIN = {408, 409, 429, 500, 502, 503, 504}  # answers of a server that is busy


class Judge(Protocol):
    """Answers messages, several at a time. name: for the record."""

    name: str
    at_once: int  # how many conversations it likes to get together

    def __call__(self, conversations: Sequence[list[Message]]) -> list[str]: ...


class Endpoint:
    """A chat server at `URL/chat/completions`; greedy, several requests at a time, busy answers tried again.

    url: such as http://127.0.0.1:8000/v1. The key, if one is needed, comes from LITE_C2F_JUDGE_KEY. Raises ConfigError
    for an address that is none, ModelError when the server does not answer as it should.
    """

    def __init__(self, url: str, model: str, max_tokens: int = 512, at_once: int = 8, patience: float = 120.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise ConfigError.because("--url", "http(s)://host/v1, without a password in it", f"put a key into {KEY}")
        self.name, self.at_once = f"{model} at {parts.hostname}", at_once
        self._address, self._model = f"{url.rstrip('/')}/chat/completions", model
        self._max_tokens, self._patience = max_tokens, patience

    def __call__(self, conversations: Sequence[list[Message]]) -> list[str]:
        with ThreadPoolExecutor(self.at_once) as pool:
            return list(pool.map(self._ask, conversations))

    def _ask(self, messages: list[Message]) -> str:
        body = {"model": self._model, "messages": messages, "temperature": 0, "max_tokens": self._max_tokens}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._address, json.dumps(body).encode(), headers)
        for attempt in range(TRIES):
            try:
                with _opener().open(request, timeout=self._patience) as answer:
                    return _content(json.loads(answer.read()))
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}"
                if error.code not in AGAIN:
                    break
            except (OSError, TimeoutError) as error:
                reason = str(getattr(error, "reason", error))
            except (ValueError, KeyError, TypeError, IndexError):
                reason = "an answer in another form than OpenAI's"
                break
            if attempt + 1 < TRIES:
                time.sleep(PAUSE * 2**attempt)
        raise ModelError.because(
            f"judge {self.name}: {reason}", "a chat server with that model", f"check --url, --judge and {KEY}"
        )


class Local:
    """A Hugging Face model on this machine, loaded as the run's models are; greedy, through its chat template."""

    def __init__(self, model: str, config: Config, max_tokens: int = 512, at_once: int = 16) -> None:
        from pathlib import Path

        from lite_c2f.actors import Instruct
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
        self._model = Instruct(room, model)

    def __call__(self, conversations: Sequence[list[Message]]) -> list[str]:
        from lite_c2f.data.encode import encode_chat
        from lite_c2f.data.records import Turn
        from lite_c2f.judging.verdicts import begins_thinking
        from lite_c2f.sampling import Sampling

        prompts = [
            (Turn("human", "\n\n".join(message["content"] for message in messages)),) for messages in conversations
        ]
        said = self._model.answer(prompts, Sampling(self._max_tokens, temperature=0.0), self.at_once)
        tokenizer, most = self._model.tokenizer, self._model.config.data.max_prompt_tokens
        thinks = begins_thinking(str(tokenizer.decode(encode_chat(tokenizer, [Turn("human", "Hi")], most))))
        # a template that opens the thought itself: without its beginning a draft that was cut off reads like a verdict
        return [f"<think>{answer.text}" if thinks else answer.text for answer in said]


def in_parts(judge: Judge, conversations: Sequence[list[Message]], done: Callable[[int, list[str]], None]) -> None:
    """Ask a judge part by part; done(first, texts) is called after each, so that nothing is lost when it is stopped."""
    for first in range(0, len(conversations), judge.at_once):
        done(first, judge(conversations[first : first + judge.at_once]))


def _content(answer: Any) -> str:
    text = answer["choices"][0]["message"]["content"]
    if text is None and answer["choices"][0].get("finish_reason") == "length":
        return ""  # cut off within its reasoning, which such servers send apart: a judgment that cannot be read
    if not isinstance(text, str):
        raise TypeError("no text")
    return text


def _opener() -> urllib.request.OpenerDirector:
    """One that follows no redirects: a key is for the server it was given for."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    return urllib.request.build_opener(Stay)
