"""Stream of a chat server's answer, as OpenAI's interface sends it: from bytes to pieces of text and the ending.

The format of server-sent events is that of https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from lite_c2f.errors import ModelError
from lite_c2f.runtime.chat_servers import one_line, read_error

MAX_EVENT = 2**20  # bytes
DONE = "[DONE]"
ENDINGS = {"stop": "eos", "eos": "eos", "end_turn": "eos", "length": "limit", "max_tokens": "limit"}  # by finish_reason
_HALVES = re.compile("[\ud800-\udfff]")
_LINE_END = re.compile(rb"\r\n|\n|\r(?=[^\n])")  # a carriage return at the very end may be half of one


class Piece(NamedTuple):
    """What an event adds to an answer."""

    text: str = ""
    thought: bool = False  # part of the reasoning, which is not shown
    finish: str | None = None  # as a Reply has it, with the last piece
    done: bool = False  # nothing follows


class EventDecoder:
    """Data of server-sent events, whose bytes arrive in any portions."""

    def __init__(self) -> None:
        self._line, self._data, self._length = bytearray(), list[bytes](), 0  # the last: bytes of `_data`

    def feed(self, portion: bytes) -> Iterator[str]:
        """The data of the events that are complete now. Raises ModelError for one that is too long."""
        searched = max(len(self._line) - 1, 0)
        self._line += portion
        ends = [match.span() for match in _LINE_END.finditer(self._line, searched)]
        begin, lines = 0, list[bytes]()
        for end, following in ends:
            lines.append(bytes(self._line[begin:end]))
            begin = following
        del self._line[:begin]
        for line in lines:
            if not line:
                yield from self._event()
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._length += len(line)
        if len(self._line) + self._length > MAX_EVENT:
            raise ModelError.because(f"an event of more than {MAX_EVENT} bytes", "shorter ones", "ask another server")

    def close(self) -> Iterator[str]:
        """The data of a last event whose end is missing."""
        yield from self.feed(b"\n\n")
        yield from self._event()

    def _event(self) -> Iterator[str]:
        if self._data:
            data, self._data, self._length = b"\n".join(self._data), [], 0
            yield data.decode("utf-8", "replace")


def read_piece(data: str, key: str = "") -> Piece:
    """What the data of an event, or the body of a whole answer, adds.

    Raises ModelError for an error, for another form than OpenAI's, and for an ending that leaves the answer unusable.
    """
    if data.strip() == DONE:
        return Piece(done=True)
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise _other_form()
    if body.get("error"):
        message = read_error(data.encode("utf-8", "replace"), key).message or "an error without a message"
        raise ModelError.because(message, "an answer", "look at that server")
    choices = body.get("choices")
    if not choices:  # such as the usage, or a moderation's result
        return Piece()
    if not isinstance(choices, list) or not isinstance(choices[0], dict):
        raise _other_form()
    choice = choices[0]
    delta = choice.get("delta") or choice.get("message") or {}
    if not isinstance(delta, dict):
        raise _other_form()
    text = _text(delta, "content") or _text(delta, "refusal")
    thought = bool(_text(delta, "reasoning_content") or _text(delta, "reasoning") or _has_thoughts(delta))
    return Piece(text, thought, _ending(choice.get("finish_reason"), key))


def _text(delta: dict[str, Any], name: str) -> str:
    text = delta.get(name)
    if isinstance(text, list):  # parts, as Mistral's servers send them: of these the texts
        text = "".join(part["text"] for part in text if isinstance(part, dict) and isinstance(part.get("text"), str))
    return text if isinstance(text, str) else ""


def _has_thoughts(delta: dict[str, Any]) -> bool:
    """Does the content have parts with reasoning?"""
    content = delta.get("content")
    return isinstance(content, list) and any(isinstance(part, dict) and part.get("thinking") for part in content)


def _ending(reason: Any, key: str) -> str | None:
    """Raises ModelError for an ending that is none of a text, such as that of a filter."""
    if not reason:
        return None
    if not isinstance(reason, str) or reason.lower() not in ENDINGS:
        got = f"the server ended the answer: finish_reason {one_line(reason, key)}"
        raise ModelError.because(got, "stop or length", "ask something else")
    return ENDINGS[reason.lower()]


def _other_form() -> ModelError:
    return ModelError.because("an answer in another form than OpenAI's", "its chat completions", "check the address")


def well_formed(text: str) -> str:
    """Text whose half characters are joined where both halves are there, and replaced where not.

    JSON writes a character beyond U+FFFF as two escapes, and servers may send these in two pieces.

    >>> well_formed("\\ud83d\\ude00") == "\\U0001f600", well_formed("a\\ud83d") == "a\\ufffd"
    (True, True)
    """
    if not _HALVES.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
