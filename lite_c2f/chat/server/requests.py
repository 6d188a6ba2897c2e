"""Bodies of requests in OpenAI's form, as models of pydantic: what is read, what is ignored, what is refused.

A parameter that would change the answer and that the engine does not have is refused by name (`NEUTRAL`), unless its
value changes nothing. Other unknown ones are ignored, since clients send many of their own.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from lite_c2f.chat.server.errors import ApiError, unsupported
from lite_c2f.data.records import Turn

NESTED = ("role", "content", "tool_calls", "include_usage")  # fields of a parameter
MAX_CHOICES = 16  # answers to one request
MAX_STOPS, MAX_STOP_CHARACTERS = 16, 256
MAX_LOGPROBS = 20  # alternatives per token
NEUTRAL: Mapping[str, tuple[Any, ...]] = {  # parameters that are not supported: values without an effect
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "prediction": (),
    "web_search_options": (),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "min_p": (0,),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
}


class StreamOptions(BaseModel):
    """What a stream adds."""

    model_config = ConfigDict(strict=True)
    include_usage: bool | None = None


class CommonBody(BaseModel):
    """Parameters of both kinds of completion; null is the default."""

    model_config = ConfigDict(strict=True)
    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: Annotated[int, Field(ge=1)] | Literal[-1] | None = None  # -1: as many as fit, as LM Studio has it
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    repetition_penalty: float | None = Field(None, ge=0.1, le=10)
    seed: int | None = None
    stop: str | list[str] | None = None
    user: Any = None  # a name; some clients send an object

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts, each once; empty ones count as none. Raises ApiError for too many or a long one."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        texts = [text for text in given if text]
        if len(texts) > MAX_STOPS or not all(len(text) <= MAX_STOP_CHARACTERS for text in texts):
            limit = f"at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters"
            raise ApiError(400, f"invalid 'stop'; expected {limit}; correct it", "stop")
        return tuple(dict.fromkeys(texts))

    @property
    def includes_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[Any] | None = None

    def text(self, place: str) -> str:
        """Its text. place: in the request, for the error about a part that is no text."""
        if self.tool_calls:
            raise unsupported(f"{place}.tool_calls", "messages with text alone")
        if self.content is None and self.role == "assistant":  # an answer that was stopped before its first word
            return ""
        if self.content is None:
            raise ApiError(400, f"'{place}.content' is null; expected a text; give one", f"{place}.content")
        if isinstance(self.content, str):
            return self.content
        for index, part in enumerate(self.content):
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = f"{place}.content[{index}]"
                raise ApiError(
                    400,
                    f"'{kind}' is no text: images, audio and files are not supported",
                    kind,
                    "unsupported_parameter",
                )
        return "\n".join(part["text"] for part in self.content)


class ChatBody(CommonBody):
    """Body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    def conversation(self) -> tuple[list[Turn], str]:
        """(turns, system prompt). Consecutive messages of one speaker become one turn, as chat templates require.

        The system prompt is the text of all system messages, wherever they stand. Raises ApiError for a conversation
        that does not begin and end with the user.
        """
        turns: list[Turn] = []
        system: list[str] = []
        for index, message in enumerate(self.messages):
            text = message.text(f"messages[{index}]")
            role = {"user": "human", "assistant": "assistant"}.get(message.role)
            if role is None:
                system.append(text)
            elif turns and turns[-1].role == role:
                turns[-1] = Turn(role, f"{turns[-1].text}\n\n{text}")
            else:
                turns.append(Turn(role, text))
        if not turns or turns[0].role != "human" or turns[-1].role != "human":
            got = "the conversation does not begin and end with the user"
            raise ApiError(400, f"{got}; expected a user's message first (after system ones) and last", "messages")
        return turns, "\n\n".join(system)


class CompletionBody(CommonBody):
    """Body of /v1/completions."""

    prompt: str | list[str]
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)


Body = TypeVar("Body", bound=CommonBody)


def read_request(content: bytes, kind: type[Body]) -> Body:
    """The body of a request. Raises ApiError 400 naming the parameter that is wrong or not supported."""
    try:
        values = from_json(content)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise ApiError(400, "the body of the request is not a JSON object")
    for name, neutral in NEUTRAL.items():
        value = values.get(name)
        if value is not None and value not in neutral:
            raise unsupported(name, " or ".join(json.dumps(one) for one in neutral if one or one == 0) or "no value")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> ApiError:
    """The first error of a body, with the parameter in the form messages[0].role."""
    first = error.errors(include_url=False)[0]
    param = ""
    for part in first["loc"]:
        if isinstance(part, int):
            param += f"[{part}]"
        elif not param or part in NESTED:  # else it names a member of a union
            param += f".{part}" if param else str(part)
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return ApiError(400, f"invalid '{param}': {first['msg']}; correct it", param, code)
