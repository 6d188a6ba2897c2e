"""Replies of chat servers with OpenAI's protocol: a text, a refusal of one question, or an unsupported setting."""

import json
import os
import re
from typing import Any, NamedTuple

from lite_c2f.evaluation.llm_judge.prompts import Message
from lite_c2f.runtime import chat_servers
from lite_c2f.runtime.chat_servers import ServerError

KEY_VARIABLE = "LITE_C2F_JUDGE_KEY"  # environment variable; never written anywhere
QUESTION_STATUSES = (400, 413, 422)  # about a question: too long, filtered, or with an invalid character
SETTING_STATUSES = (400, 422, 500)  # 500: servers that render the chat template within the request
MIN_THINKING_TOKENS = 4096  # models with max_completion_tokens count their reasoning in it
TEXT_PARTS = ("text", "output_text")

NOT_TAKEN = re.compile(
    r"unsupported|not support|unknown|unrecogni[sz]ed|unexpected|extra input|extra_forbidden|deprecated|"
    r"not (?:permitted|allowed|accepted)|use .?max_completion_tokens",
    re.IGNORECASE,
)
# An error may quote the question, or be about its length: a parameter's name is about the request's format only if the
# same clause says that it is not supported.
_REFUSED = (
    r"(?:\bnot (?:be )?(?:currently )?(?:supported|permitted|allowed|accepted|enabled|available)|unsupported|"
    r"deprecated|\bcannot be used|\bonly (?:supported|allowed|available))"
)
_REFUSES = r"(?:(?:\bnot|n't) (?:support|permit|allow|accept|take|have)|unsupported|unknown|unexpected|unrecogni[sz]ed)"
NO_GREEDY = re.compile(
    rf"\btemperature\b(?:[^.;]|\.\d){{0,40}}(?:{_REFUSED}|not support|extra input|(?:must|has to|should) be)|"
    rf"(?:{_REFUSES}|\b(?:invalid value|out of range))[^.;]{{0,40}}\btemperature\b",
    re.IGNORECASE,
)
NO_SYSTEM = re.compile(
    rf"\bsystem['\"`]? (?:role|message|prompt|instruction)s?\b[^.;]{{0,20}}{_REFUSED}|"
    rf"{_REFUSES}[^.;]{{0,20}}\bsystem\b|"
    rf"\broles? must alternate|(?:unsupported|invalid|unknown|unexpected) role|"
    rf"developer instructions?\b[^.;]{{0,20}}{_REFUSED}|\bonly\b[^.;]{{0,60}}\broles? (?:is|are) (?:supported|allowed)",
    re.IGNORECASE,
)
ROLE = re.compile(r"messages?[.\[]0\]?\.role")


class ServerRefusal(NamedTuple):
    """A server's refusal to answer a question."""

    sentence: str  # the server's message, on one line


class RequestFormat(NamedTuple):
    """Format of a request, in which servers differ."""

    limit: str = "max_tokens"  # key of the answer's token limit
    system: bool = True  # a system message; else its text precedes the user's
    greedy: bool = True  # temperature 0; else the server's own


FORMAT_NOTES = {
    "limit": "it takes max_completion_tokens in place of max_tokens",
    "system": "it takes no system message, whose text was put before the question",
    "greedy": "it does not take temperature 0, so that its verdicts may differ from run to run",
}


def request_body(request_format: RequestFormat, model: str, messages: list[Message], max_tokens: int) -> dict[str, Any]:
    """The JSON body of a request in this format."""
    if not request_format.system:
        text = "\n\n".join(message["content"] for message in messages)
        messages = [{"role": "user", "content": text}]
    limit = max_tokens if request_format.limit == "max_tokens" else max(max_tokens, MIN_THINKING_TOKENS)
    greedy = {"temperature": 0} if request_format.greedy else {}
    return {"model": model, "messages": messages, **greedy, request_format.limit: limit}


def format_change(request_format: RequestFormat, status: int, error: ServerError) -> dict[str, Any]:
    """Changes to a format that a server did not accept; {} if the error is not about the format.

    >>> error = ServerError("Unsupported value: 'temperature' does not support 0", "temperature", "unsupported_value")
    >>> adapted(Form(), 400, error)
    {'greedy': False}
    """
    if status not in SETTING_STATUSES or error.is_filter:
        return {}
    text = f"{error.code} {error.message}"
    about_limit = error.param == "max_tokens" or re.search(r"\bmax_tokens\b", error.message)
    if request_format.limit == "max_tokens" and about_limit and NOT_TAKEN.search(text):
        return {"limit": "max_completion_tokens"}
    if request_format.greedy and (error.param == "temperature" or NO_GREEDY.search(error.message)):
        return {"greedy": False}
    if request_format.system and (ROLE.search(error.param) or NO_SYSTEM.search(error.message)):
        return {"system": False}
    return {}


def read_error(content: bytes) -> ServerError:
    """The error in a server's reply, without the key."""
    return chat_servers.read_error(content, os.environ.get(KEY_VARIABLE, ""))


def status_in_body(content: bytes) -> int | None:
    """The error status in the body of a reply with status 200, as some gateways send it; None if there is none."""
    try:
        reply = json.loads(content)
        code = reply["error"]["code"] if "choices" not in reply else None
        return code if isinstance(code, int) and 400 <= code < 600 else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def read_reply(content: bytes) -> str | ServerRefusal:
    """The text of a reply, "" for one that was cut off within its reasoning. Raises ValueError for another format.

    Of a text in parts, only those of type text are read: Mistral's reasoning models send the reasoning as another part.
    """
    try:
        choices = json.loads(content)["choices"]
        if not choices:
            return ServerRefusal("no choice in its answer")
        choice, message = choices[0], choices[0].get("message") or {}
        text, refusal, ended = message.get("content"), message.get("refusal"), choice.get("finish_reason")
        if isinstance(text, list):
            text = "".join(part["text"] for part in text if _is_text(part)) or None
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("no choices") from None
    if refusal and not text:
        return ServerRefusal(one_line(refusal))
    if ended == "content_filter":
        return ServerRefusal("finish_reason: content_filter")
    if text is None:  # some servers send the reasoning separately
        return "" if ended == "length" else ServerRefusal(f"an answer without text, finish_reason: {one_line(ended)}")
    if not isinstance(text, str):
        raise ValueError("no text")
    return text


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in TEXT_PARTS and isinstance(part.get("text"), str)


def one_line(text: Any) -> str:
    """A server's message as one line of printable characters, of limited length and without the key."""
    return chat_servers.one_line(text, os.environ.get(KEY_VARIABLE, ""))
