"""Conversations with an actor, as turns of text; errors in one line. Imports no torch."""

from collections.abc import Mapping, Sequence

from lite_c2f.actors.reply import Reply
from lite_c2f.chat.panes import MAX_TEXT_CHARACTERS
from lite_c2f.data.records import Turn
from lite_c2f.errors import C2FError, ConfigError

History = Sequence[Turn]  # ends with a human turn


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
