"""Prompts of a conversation for each actor, and the text of an answer that may be shown."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lite_c2f.actors.reply import Reply
from lite_c2f.chat.panes import BASE_MODEL_ACTORS, MAX_TEXT_CHARACTERS
from lite_c2f.config.settings import Config
from lite_c2f.data.encode import encode_chat, encode_prompt
from lite_c2f.data.records import Turn
from lite_c2f.errors import C2FError, ConfigError
from lite_c2f.sampling.stops import before_stop

History = Sequence[Turn]  # ends with a human turn


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


def with_system(turns: History, system: str) -> list[Turn]:
    """The turns, the first one's text after the system prompt.

    >>> with_system([Turn("human", "Hi")], "Be brief.")[0].text
    'Be brief.\\n\\nHi'
    """
    if not system.strip():
        return list(turns)
    first, *others = turns
    return [first._replace(text=f"{clean(system).strip()}\n\n{first.text}"), *others]


def clean(text: str) -> str:
    """Text without lone surrogates, which a browser can send and neither UTF-8 nor JSON can hold.

    >>> clean("a\\ud800")
    'a?'
    """
    return text.encode("utf-8", "replace").decode("utf-8")


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


def history_of(turns: str | History | Mapping[str, History], pane: str) -> list[Turn]:
    """The conversation of a pane. Raises C2FError for an empty question, ConfigError for one that is too long."""
    if isinstance(turns, str):
        turns = [Turn("human", turns.strip())]
    if isinstance(turns, Mapping) and pane not in turns:
        raise ConfigError.because(f"no conversation for pane '{pane}'", "one for each pane", "add it")
    history = turns[pane] if isinstance(turns, Mapping) else turns
    if not history or history[-1].role != "human" or not history[-1].text.strip():
        raise C2FError.because("an empty prompt", "a question", "type one")
    if len(history[-1].text) > MAX_TEXT_CHARACTERS:
        got = f"a question of {len(history[-1].text)} characters"
        raise ConfigError.because(got, f"at most {MAX_TEXT_CHARACTERS}", "shorten it")
    return [turn._replace(text=clean(turn.text)) for turn in history]


def one_line(error: Exception) -> str:
    """An error's message in one line, at most 300 characters."""
    reason = " ".join(str(error).split())[:300]
    return reason if isinstance(error, C2FError) else f"{type(error).__name__}: {reason}".rstrip(": ")


def with_answers(histories: Mapping[str, History], replies: Mapping[str, Reply]) -> dict[str, list[Turn]]:
    """Conversations with their answers added. A failed pane loses the question, so that its roles still alternate."""
    result = {}
    for pane, turns in histories.items():
        reply = replies.get(pane)
        failed = reply is None or reply.finish == "error"
        result[pane] = list(turns[:-1]) if failed else [*turns, Turn("assistant", replies[pane].text)]
    return result
