"""Prompts of a conversation for each actor, and the text of an answer that may be shown."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from lite_c2f.chat.history import History, with_system
from lite_c2f.chat.panes import BASE_MODEL_ACTORS
from lite_c2f.config.settings import Config
from lite_c2f.data.encode import encode_chat, encode_prompt
from lite_c2f.sampling.stops import before_stop


class EncodedPrompt(NamedTuple):
    """A prompt in an actor's own form."""

    ids: list[int]
    dropped: int  # oldest turns that did not fit
    cut: bool = False  # the question itself did not fit: its beginning is left out


RAW_TEMPLATE = "{prompt}"  # a prompt template that leaves the text as it is


def encode_history(
    actor: str, tokenizer: Any, config: Config, turns: History, system: str, limit: int, *, raw: bool = False
) -> EncodedPrompt:
    """Ids of a conversation in the actor's own form, in at most `limit` tokens; the oldest turns are dropped first.

    raw: the only turn is the prompt, as it is.

    The system prompt is put before the first question that fits, for every actor alike: a base model has no system
    role, and Mistral's own chat templates put it there. Raises C2FError where not even the markers fit.
    """
    if raw:
        ids, _ = encode_prompt(tokenizer, turns, 1 << 30, RAW_TEMPLATE)
        return EncodedPrompt(ids[-limit:], 0, len(ids) > limit)
    prompt = None
    if turns[0].role == "human":  # most conversations fit: they are encoded once
        ids = _encoded(actor, tokenizer, config, with_system(turns, system), 1 << 30)
        if len(ids) <= limit:
            return EncodedPrompt(ids, 0)
    for start in (index for index in reversed(range(len(turns))) if turns[index].role == "human"):  # the newest first
        ids = _encoded(actor, tokenizer, config, with_system(turns[start:], system), 1 << 30)
        if len(ids) > limit:
            break
        prompt = EncodedPrompt(ids, start)
    last = len(turns) - 1
    return prompt or EncodedPrompt(
        _encoded(actor, tokenizer, config, with_system(turns[last:], system), limit), last, True
    )


def _encoded(actor: str, tokenizer: Any, config: Config, turns: History, limit: int) -> list[int]:
    if actor in BASE_MODEL_ACTORS:
        return encode_prompt(tokenizer, turns, limit, config.model.prompt_template, config.model.chat_template_kwargs)[
            0
        ]
    return encode_chat(tokenizer, turns, limit, config.model.chat_template_kwargs)


def shown(text: str, stops: Sequence[str]) -> str:
    """Text of an unfinished response without a stop sequence, without a beginning of one, and without half characters.

    >>> shown("It is 5.\\n\\nHum", ["\\n\\nHuman:"])
    'It is 5.'
    """
    return settled(text, stops).strip()


def settled(text: str, stops: Sequence[str]) -> str:
    """`shown` with the spaces around the text: the part of an unfinished response that no later token changes."""
    text = before_stop(text, stops)
    partial = [size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
    return text[: len(text) - max(partial, default=0)].rstrip("\N{REPLACEMENT CHARACTER}")
