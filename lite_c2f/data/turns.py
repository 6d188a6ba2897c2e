"""Turns of a conversation, parsed from plain text, HH transcripts and chat messages in their usual spellings.

A value that cannot be parsed raises UnusableError with a reason that is the same for all rows of its kind, so that
rows can be counted by reason. A message with more than text (tool calls, images, hidden reasoning) is unusable too.
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
# Keys of a message whose content a turn of text cannot hold.
UNSUPPORTED_KEYS = {
    "tool_calls", "tool_call", "function_call", "tool_call_id", "tools", "images", "image", "videos", "video", "audios",
    "audio", "thinking", "reasoning", "reasoning_content", "refusal",
}  # fmt: skip
_READ_KEYS = ("role", "content", "from", "value")
_TEXT_PARTS = ("text", "input_text", "output_text")
_MESSAGE_KEY = re.compile(r"""['"](?:role|from)['"]\s*:""", re.IGNORECASE)
_LIST_START = re.compile(r"\s*[\[{]")
_MESSAGES_START = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content|from|value)['"]\s*:""", re.IGNORECASE)
_TEMPLATE_START = re.compile(
    r"\s*(?:<\|(?:im_start|start_header_id|begin_of_text|start|user|system|assistant)\|>|<bos>|<start_of_turn>"
    r"|(?:<s>\s*)?\[INST\])"
)


class Turn(NamedTuple):
    """One speaker's text in a conversation."""

    role: str  # "human" | "assistant"; "system" only before `merge_speakers`
    text: str


class UnusableError(Exception):
    """A row cannot be used; the message is the reason."""


class NoOptionError(UnusableError):
    """A row's `best` names neither of the two answers nor a tie, so its meaning in other rows is in doubt too."""

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
    return merge_speakers([("human", before), *turns] if before.strip() else turns)


def is_transcript(text: str) -> bool:
    """Whether a text begins with a human turn, as an HH transcript does."""
    return _TRANSCRIPT_START.match(text) is not None


def prompt_turns(value: Any, column: str) -> list[Turn]:
    """Turns of a prompt: plain text (one human turn), a transcript that starts with a human turn, or messages."""
    if not isinstance(value, str):
        return message_turns(value, column)
    if not is_transcript(plain_text(value, column)):
        return [Turn("human", value.strip())]
    turns = list(parse_transcript(value.lstrip()))
    return turns[:-1] if turns[-1] == Turn("assistant", "") else turns


def message_turns(value: Any, column: str) -> list[Turn]:
    """Turns of one or more messages with `role` and `content` or `from` and `value`, in any capitalisation."""
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UnusableError(f"'{column}' is {describe(value)}")
    turns = []
    for message in messages:
        fields = {str(key).strip().lower(): field for key, field in message.items() if field is not None}
        role = fields.get("role", fields.get("from"))
        if not isinstance(role, str):
            raise UnusableError(f"'{column}' has a message without a role")
        if (name := ROLES.get(role.strip().lower())) is None:
            raise UnusableError(f"role '{_known_or_other(role, OTHER_ROLES)}'")
        if unsupported := [key for key in fields.keys() & UNSUPPORTED_KEYS if not is_empty(fields[key])]:
            raise UnusableError(f"message with '{min(unsupported)}'")
        turns.append(Turn(name, _content(fields.get("content", fields.get("value")), column)))
    return turns


def _content(content: Any, column: str) -> str:
    """The text of a message; text parts are concatenated without a separator, as chat templates do."""
    if isinstance(content, str):
        return plain_text(content, column).strip()
    if content is None:
        raise UnusableError(f"'{column}' has a message without a text")
    texts = []
    for part in [content] if isinstance(content, dict) else content if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind not in _TEXT_PARTS:
            raise UnusableError(f"message with a part of type '{_known_or_other(kind, OTHER_PARTS)}'")
        if not isinstance(text, str):
            raise UnusableError(f"'{column}' has a message whose text is {describe(text)}")
        texts.append(plain_text(text, column))
    return "".join(texts).strip()


def _known_or_other(name: Any, names: Sequence[str]) -> str:
    """The name if it is among `names`, else "other", so that invented names do not each become a reason."""
    name = str(name).strip().lower()
    return name if name in names else "other"


def plain_text(text: Any, column: str) -> str:
    """The text itself. Raises UnusableError if no tokenizer can read it or a chat template was applied to it."""
    if not isinstance(text, str):
        raise UnusableError(f"'{column}' is {describe(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can spell it, no tokenizer can read it
        raise UnusableError("broken Unicode") from None
    if _TEMPLATE_START.match(text):
        raise UnusableError(f"'{column}' is text with a chat template's markers")
    if _MESSAGES_START.match(text) and _MESSAGE_KEY.search(text) and parse_literal(text) is None:
        raise UnusableError(f"'{column}' looks like messages, but is neither JSON nor Python")
    return text


def other_keys(value: Any) -> set[str]:
    """Keys of messages that have a value and are not read."""
    messages = [value] if isinstance(value, dict) else value if isinstance(value, list) else []
    fields = [field for message in messages if isinstance(message, dict) for field in message.items()]
    others = [(str(key), field) for key, field in fields if key not in _READ_KEYS]
    return {key for key, field in others if key.strip().lower() not in _READ_KEYS and not is_empty(field)}


def merge_speakers(turns: Iterable[tuple[str, str]]) -> tuple[Turn, ...]:
    """Turns of alternating speakers, as chat templates require: consecutive turns of one speaker become one.

    A system text becomes the start of the human turn after it, because base models know no third speaker.
    """
    result: list[Turn] = []
    for role, text in turns:
        speaker = "human" if role == "system" else role
        if result and result[-1].role == speaker:
            result[-1] = Turn(speaker, f"{result[-1].text}\n\n{text.strip()}".strip())
        else:
            result.append(Turn(speaker, text.strip()))
    return tuple(result)


def texts_within(turns: Sequence[Turn], others: Sequence[Turn]) -> bool:
    """Whether every text of `turns` is part of a text of the same speaker in `others`."""
    equal = {(other.role, other.text) for other in others}  # rows repeat whole turns: thousands of them, in linear time
    parts = [turn for turn in turns if (turn.role, turn.text) not in equal]
    return all(any(turn.role == other.role and turn.text in other.text for other in others) for turn in parts)


# Cell values.


def is_messages(value: Any) -> bool:
    """Whether the value is a message or a non-empty list of messages only."""
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not messages:
        return False
    keys = [{str(key).strip().lower() for key in message} for message in messages if isinstance(message, dict)]
    return len(keys) == len(messages) and all({"role", "content"} <= key or {"from", "value"} <= key for key in keys)


def messages_or_value(value: Any) -> Any:
    """Messages that are stored as text, parsed; any other value as it is."""
    if isinstance(value, str) and _LIST_START.match(value) and _MESSAGE_KEY.search(value):
        messages = parse_literal(value)
        return messages if is_messages(messages) else value
    return value


def parse_literal(text: str) -> Any:
    """The value of a text that is JSON, or Python as pandas writes lists into a CSV; None for any other text.

    pandas writes an array of objects (a column read from Parquet) with a line break and no comma between them; a line
    break within a text is spelled `\\n`, so that a real line break occurs between objects only.
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
    """Whether a cell is null, NaN, or an empty text or list."""
    if isinstance(value, str):
        return not value or value.isspace()
    return value is None or (isinstance(value, float) and math.isnan(value)) or value in ([], {}, ())


def describe(value: Any) -> str:
    """The kind of a value, in words that are the same for all values of the kind."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        value = messages_or_value(value)
        return "text" if isinstance(value, str) else f"{describe(value)} as text"
    if is_messages(value):
        return "a message" if isinstance(value, dict) else "messages"
    if isinstance(value, dict):
        return f"an object ({', '.join(map(str, list(value)[:4]))})"
    if isinstance(value, list):
        kinds = {str: "texts", int: "numbers", float: "numbers", list: "lists", dict: "objects"}
        return f"a list of {kinds.get(type(value[0]), 'other things')}" if value else "an empty list"
    return f"a {type(value).__name__}"
