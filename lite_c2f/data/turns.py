"""Turns of a conversation, read from plain text, HH transcripts and chat messages in their usual spellings.

A value that cannot be read is an UnusableError with a reason that is the same for all rows of its kind, so that rows
can be counted by it. What a message holds beside its text (tool calls, images, a hidden thought) makes it unusable too.
"""

import ast
import json
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

MARKER = re.compile(r"(?:\A|\r?\n\r?\n)(Human|Assistant):")
_TRANSCRIPT_START = re.compile(r"\s*Human:")
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "human"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
OTHER_ROLES = ("tool", "function", "function_call", "observation", "ipython")
OTHER_PARTS = ("image", "image_url", "input_image", "audio", "input_audio", "video", "file", "tool_use", "tool_result")
# Keys of a message that belong to what it says, and that no turn of text can hold.
CARRIERS = {
    "tool_calls", "tool_call", "function_call", "tool_call_id", "tools", "images", "image", "videos", "video", "audios",
    "audio", "thinking", "reasoning", "reasoning_content", "refusal",
}  # fmt: skip
_READ = ("role", "content", "from", "value")
_TEXT_PARTS = ("text", "input_text", "output_text")
_MESSAGE_KEY = re.compile(r"""['"](?:role|from)['"]\s*:""", re.IGNORECASE)
_LIST_START = re.compile(r"\s*[\[{]")
_MESSAGES_START = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content|from|value)['"]\s*:""", re.IGNORECASE)
_RENDERED = re.compile(
    r"\s*(?:<\|(?:im_start|start_header_id|begin_of_text|start|user|system|assistant)\|>|<bos>|<start_of_turn>"
    r"|(?:<s>\s*)?\[INST\])"
)


class Turn(NamedTuple):
    """One speaker's text in a conversation."""

    role: str  # "human" | "assistant"; "system" only until `joined`
    text: str


class UnusableError(Exception):
    """Carries the reason why a row cannot be used."""


class NoOptionError(UnusableError):
    """A row's `best` is neither of the two answers nor a tie: what it means for other rows is in doubt too."""

    def __init__(self, value: str) -> None:
        super().__init__("'best' is neither of the answers")
        self.value = value


def parse_transcript(text: str) -> tuple[Turn, ...]:
    """Split an HH transcript (`\\n\\nHuman: ...\\n\\nAssistant: ...`) into turns; empty when it has no marker.

    Texts are stripped. Turns of one speaker in a row become one turn, with a blank line between; text before the first
    marker is treated the same way, as the start of the first human turn.

    >>> parse_transcript("\\n\\nHuman: Hi\\n\\nAssistant: Hello")
    (Turn(role='human', text='Hi'), Turn(role='assistant', text='Hello'))
    """
    before, *parts = MARKER.split(text)
    if not parts:
        return ()
    turns = [(role.lower(), part) for role, part in zip(parts[::2], parts[1::2], strict=True)]
    return joined([("human", before), *turns] if before.strip() else turns)


def is_transcript(text: str) -> bool:
    """Does a text begin as an HH transcript does, with a human turn?"""
    return _TRANSCRIPT_START.match(text) is not None


def prompt_turns(value: Any, column: str) -> list[Turn]:
    """A prompt: plain text (one human turn), a transcript that starts with a human turn, or messages."""
    if not isinstance(value, str):
        return message_turns(value, column)
    if not is_transcript(plain_text(value, column)):
        return [Turn("human", value.strip())]
    turns = list(parse_transcript(value.lstrip()))
    return turns[:-1] if turns[-1] == Turn("assistant", "") else turns


def message_turns(value: Any, column: str) -> list[Turn]:
    """Messages, or a single one, with `role` and `content` or `from` and `value`, in any capitalisation."""
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UnusableError(f"'{column}' is {look(value)}")
    turns = []
    for message in messages:
        fields = {str(key).strip().lower(): field for key, field in message.items() if field is not None}
        role = fields.get("role", fields.get("from"))
        if not isinstance(role, str):
            raise UnusableError(f"'{column}' has a message without a role")
        if (name := ROLES.get(role.strip().lower())) is None:
            raise UnusableError(f"role '{_known(role, OTHER_ROLES)}'")
        if carried := [key for key in fields.keys() & CARRIERS if not is_empty(fields[key])]:
            raise UnusableError(f"message with '{min(carried)}'")
        turns.append(Turn(name, _content(fields.get("content", fields.get("value")), column)))
    return turns


def _content(content: Any, column: str) -> str:
    """The text of a message; text parts are put together as chat templates do, with nothing between."""
    if isinstance(content, str):
        return plain_text(content, column).strip()
    if content is None:
        raise UnusableError(f"'{column}' has a message without a text")
    texts = []
    for part in [content] if isinstance(content, dict) else content if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind not in _TEXT_PARTS:
            raise UnusableError(f"message with a part of type '{_known(kind, OTHER_PARTS)}'")
        if not isinstance(text, str):
            raise UnusableError(f"'{column}' has a message whose text is {look(text)}")
        texts.append(plain_text(text, column))
    return "".join(texts).strip()


def _known(name: Any, names: Sequence[str]) -> str:
    """A name among `names`; "other" for all that people make up, or each would be a reason of its own."""
    name = str(name).strip().lower()
    return name if name in names else "other"


def plain_text(text: Any, column: str) -> str:
    """A text that a tokenizer can read, and that no chat template was applied to."""
    if not isinstance(text, str):
        raise UnusableError(f"'{column}' is {look(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can spell it, no tokenizer can read it
        raise UnusableError("broken Unicode") from None
    if _RENDERED.match(text):
        raise UnusableError(f"'{column}' is text with a chat template's markers")
    if _MESSAGES_START.match(text) and _MESSAGE_KEY.search(text) and structured(text) is None:
        raise UnusableError(f"'{column}' looks like messages, but is neither JSON nor Python")
    return text


def other_keys(value: Any) -> set[str]:
    """Keys of messages that hold something and are not read."""
    messages = [value] if isinstance(value, dict) else value if isinstance(value, list) else []
    fields = [field for message in messages if isinstance(message, dict) for field in message.items()]
    others = [(str(key), field) for key, field in fields if key not in _READ]
    return {key for key, field in others if key.strip().lower() not in _READ and not is_empty(field)}


def joined(turns: Iterable[tuple[str, str]]) -> tuple[Turn, ...]:
    """Turns of alternating speakers, as chat templates want them: what one says in a row becomes one turn.

    A system text opens the human turn after it: base models know no third speaker.
    """
    result: list[Turn] = []
    for role, text in turns:
        speaker = "human" if role == "system" else role
        if result and result[-1].role == speaker:
            result[-1] = Turn(speaker, f"{result[-1].text}\n\n{text.strip()}".strip())
        else:
            result.append(Turn(speaker, text.strip()))
    return tuple(result)


def within(turns: Sequence[Turn], others: Sequence[Turn]) -> bool:
    """Is every text of `turns` part of one that the same speaker says in `others`?"""
    equal = {(other.role, other.text) for other in others}  # rows repeat whole turns: thousands of them, in linear time
    parts = [turn for turn in turns if (turn.role, turn.text) not in equal]
    return all(any(turn.role == other.role and turn.text in other.text for other in others) for turn in parts)


# Values as tables hold them.


def is_messages(value: Any) -> bool:
    """Is it a message, or a list of nothing but messages?"""
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not messages:
        return False
    keys = [{str(key).strip().lower() for key in message} for message in messages if isinstance(message, dict)]
    return len(keys) == len(messages) and all({"role", "content"} <= key or {"from", "value"} <= key for key in keys)


def decoded(value: Any) -> Any:
    """Messages that a table holds as text; any other value as it is."""
    if isinstance(value, str) and _LIST_START.match(value) and _MESSAGE_KEY.search(value):
        messages = structured(value)
        return messages if is_messages(messages) else value
    return value


def structured(text: str) -> Any:
    """What a text spells as JSON, or as Python in the way pandas writes lists into a CSV; else None.

    pandas writes an array of objects (a column read from Parquet) with a line break and no comma between them; a line
    break within a text is spelled `\\n`, so that a real one stands between objects only.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SyntaxWarning)
            return ast.literal_eval(re.sub(r"\}\s*\n\s*\{", "},{", text.strip()))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def is_empty(value: Any) -> bool:
    """Does a cell hold nothing: null, NaN, an empty text or list?"""
    if isinstance(value, str):
        return not value or value.isspace()
    return value is None or (isinstance(value, float) and math.isnan(value)) or value in ([], {}, ())


def look(value: Any) -> str:
    """What a value looks like, in words that are the same for all of its kind."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        value = decoded(value)
        return "text" if isinstance(value, str) else f"{look(value)} as text"
    if is_messages(value):
        return "a message" if isinstance(value, dict) else "messages"
    if isinstance(value, dict):
        return f"an object ({', '.join(map(str, list(value)[:4]))})"
    if isinstance(value, list):
        kinds = {str: "texts", int: "numbers", float: "numbers", list: "lists", dict: "objects"}
        return f"a list of {kinds.get(type(value[0]), 'other things')}" if value else "an empty list"
    return f"a {type(value).__name__}"
