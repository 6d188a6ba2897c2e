"""What an actor reads of a conversation, and what may be shown of what it says."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lite_c2f.actors.reply import Reply
from lite_c2f.chat.panes import LONGEST_TEXT, ON_BASE
from lite_c2f.config.settings import Config
from lite_c2f.data.encode import encode_chat, encode_prompt
from lite_c2f.data.records import Turn
from lite_c2f.errors import C2FError, ConfigError
from lite_c2f.sampling.stops import before_stop

History = Sequence[Turn]  # ends with a human turn


class ReadPrompt(NamedTuple):
    """A prompt as an actor reads it."""

    ids: list[int]
    dropped: int  # oldest turns that did not fit
    cut: bool = False  # the question itself did not fit: its beginning is left out


def read_by(actor: str, tokenizer: Any, config: Config, turns: History, system: str, room: int) -> ReadPrompt:
    """The ids of a conversation in the actor's own style, in at most `room` tokens.

    The system prompt stands before the first question that is kept, for every actor alike: a base model has no other
    place for it, and Mistral's own chat templates put it there. Raises C2FError where not even the markers fit.
    """
    prompt = None
    for start in (index for index in reversed(range(len(turns))) if turns[index].role == "human"):  # the newest first
        ids = _encoded(actor, tokenizer, config, with_system(turns[start:], system), 1 << 30)
        if len(ids) > room:
            break
        prompt = ReadPrompt(ids, start)
    last = len(turns) - 1
    return prompt or ReadPrompt(_encoded(actor, tokenizer, config, with_system(turns[last:], system), room), last, True)


def _encoded(actor: str, tokenizer: Any, config: Config, turns: History, room: int) -> list[int]:
    if actor in ON_BASE:
        return encode_prompt(tokenizer, turns, room, config.model.prompt_template, config.model.chat_template_kwargs)[0]
    return encode_chat(tokenizer, turns, room, config.model.chat_template_kwargs)


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
    """Text that is text: half of a surrogate pair, which a browser can send, is neither UTF-8 nor JSON.

    >>> clean("a\\ud800")
    'a?'
    """
    return text.encode("utf-8", "replace").decode("utf-8")


def shown(text: str, stops: Sequence[str]) -> str:
    """What may be shown of a response that goes on: no stop sequence, not even its beginning, and no half character.

    >>> shown("It is 5.\\n\\nHum", ["\\n\\nHuman:"])
    'It is 5.'
    """
    text = before_stop(text, stops)
    begun = [size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
    return text[: len(text) - max(begun, default=0)].rstrip("\N{REPLACEMENT CHARACTER}").strip()


def history_of(turns: str | History | Mapping[str, History], pane: str) -> list[Turn]:
    """The conversation of a pane. Raises C2FError for an empty or endless question."""
    if isinstance(turns, str):
        turns = [Turn("human", turns.strip())]
    if isinstance(turns, Mapping) and pane not in turns:
        raise ConfigError.because(f"no conversation for pane '{pane}'", "one for each pane", "add it")
    history = turns[pane] if isinstance(turns, Mapping) else turns
    if not history or history[-1].role != "human" or not history[-1].text.strip():
        raise C2FError.because("an empty prompt", "a question", "type one")
    if len(history[-1].text) > LONGEST_TEXT:
        got = f"a question of {len(history[-1].text)} characters"
        raise ConfigError.because(got, f"at most {LONGEST_TEXT}", "shorten it")
    return [turn._replace(text=clean(turn.text)) for turn in history]


def one_line(error: Exception) -> str:
    """An error as a pane shows it."""
    reason = " ".join(str(error).split())[:300]
    return reason if isinstance(error, C2FError) else f"{type(error).__name__}: {reason}".rstrip(": ")


def with_answers(histories: Mapping[str, History], events: Mapping[str, Reply]) -> dict[str, list[Turn]]:
    """Conversations with their answers added. A pane that failed forgets the question, so that it can go on."""
    after = {}
    for pane, turns in histories.items():
        event = events.get(pane)
        failed = event is None or event.finish == "error"
        after[pane] = list(turns[:-1]) if failed else [*turns, Turn("assistant", events[pane].text)]
    return after
