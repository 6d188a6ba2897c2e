"""Token ids of conversations: prompts, answers and chats; and padded batches.

Prompt and answer are tokenised separately and their ids concatenated, both in training and in sampling, so that a
prompt has the same ids whatever follows it. Text of the data never becomes a special token: `</s>` within a message
stays four characters, with a base model's prompt template and with a chat template.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from lite_c2f.config.settings import CHAT
from lite_c2f.data.chat_template import chat_template, ids_after
from lite_c2f.data.records import Turn
from lite_c2f.errors import C2FError, ConfigError, DataError, ModelError

HH = "\n\nHuman: {prompt}\n\nAssistant:"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # how half of a multi-byte character decodes


def render(turns: Sequence[Turn], template: str = HH) -> str:
    """The text a base model continues: each human turn through the template, each assistant turn after a space.

    Raises ConfigError when the template does not hold `{prompt}` exactly once.

    >>> render([Turn("human", "Hi"), Turn("assistant", "Hello"), Turn("human", "Bye")])
    '\\n\\nHuman: Hi\\n\\nAssistant: Hello\\n\\nHuman: Bye\\n\\nAssistant:'
    """
    head, tail = _split(template)
    text = ""
    for index, turn in enumerate(turns):
        if turn.role == "human":
            text += head + turn.text + tail
        else:
            text += f" {turn.text}" if index else f"{tail} {turn.text}"
    return text


def leading_ids(tokenizer: Any) -> list[int]:
    """Ids before a base model's prompt: BOS if the tokenizer itself puts it before a text, else none.

    A tokenizer may define a BOS that its model never saw at the start of a text (`<|im_start|>` of SmolLM2).
    """
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and list(tokenizer("a")["input_ids"][:1]) == [bos] else []


def encode_prompt(
    tokenizer: Any,
    turns: Sequence[Turn],
    max_tokens: int,
    template: str = HH,
    template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[list[int], int]:
    """(ids, turns dropped) of a base model's prompt in at most `max_tokens` tokens, after its `leading_ids`.

    The oldest turns are dropped first, so that the rest begins with a human turn; then the last turn's text loses its
    beginning, but never its markers. With the template `chat` the tokenizer's own is used, as `encode_chat` does, with
    these variables (`model.chat_template_kwargs`).
    Raises DataError unless the conversation ends with a human turn, ConfigError when not even the markers fit, and
    ModelError for `chat` where the tokenizer has no chat template.
    """
    if template == CHAT:
        if not tokenizer.chat_template:
            got = "model.prompt_template is chat, but the tokenizer has no chat template"
            raise ModelError.because(got, "an instruct model", "write a template with {prompt} in it")
        return _encode_chat(tokenizer, turns, max_tokens, template_kwargs)
    bos = leading_ids(tokenizer)
    for dropped, rest in _suffixes(turns):
        ids = bos + _ids(tokenizer, render(rest, template))
        if len(ids) <= max_tokens:
            return ids, dropped
    head, tail = _split(template)
    marker = head.rstrip(" ")
    space = head[len(marker) :]
    before = bos + (_ids(tokenizer, marker) if marker else [])
    after = continuation(tokenizer, tail)
    available = max_tokens - len(before) - len(after)
    if available < 0:
        raise _no_room_error(max_tokens, len(before) + len(after))
    text = continuation(tokenizer, space + turns[-1].text)
    return before + _last_ids(tokenizer, text, available) + after, len(turns) - 1


def encode_answer(
    tokenizer: Any,
    text: str,
    *,
    ended: bool,
    max_tokens: int | None = None,
    template: str = HH,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of an answer after its prompt, cut to `max_tokens` tokens.

    ended: append the end token, which counts towards `max_tokens`, so that a longer answer loses it. An answer follows
    its prompt after a space and ends with EOS; with the template `chat` it is rendered by the tokenizer's own template,
    so that prompt and answer are the ids of the whole conversation, and ends with `answer_end`. Raises ModelError when
    EOS is needed and the tokenizer has none, ConfigError for a template whose answers do not follow its prompts.
    """
    if template == CHAT:
        ids = chat_template(tokenizer, template_kwargs).answer(text, ended=ended)
    else:
        ids = continuation(tokenizer, f" {text}") if text else []
    if ended and turn_end(tokenizer, template, template_kwargs) is None:
        ids.append(answer_end(tokenizer, template, template_kwargs))
    return ids[:max_tokens]


def answer_end(tokenizer: Any, template: str = HH, template_kwargs: Mapping[str, Any] | None = None) -> int:
    """The token that follows an ended answer where the reward model scores it, both in training and in scoring.

    EOS; with the template `chat` the token that ends a turn there, such as `<|im_end|>`, if it has one. Raises
    ModelError when EOS is needed and the tokenizer has none.
    """
    end = turn_end(tokenizer, template, template_kwargs)
    if end is None and (end := tokenizer.eos_token_id) is None:
        raise ModelError.because("the tokenizer has no EOS token", "one that ends an answer", "set eos_token")
    return end


def turn_end(tokenizer: Any, template: str, template_kwargs: Mapping[str, Any] | None = None) -> int | None:
    """The token that ends an assistant's turn in the template `chat`; None if it has none, and for other templates.

    It ends an answer as EOS does, whether the model lists it among its end tokens or not.
    """
    return chat_template(tokenizer, template_kwargs).end if template == CHAT else None


def encode_chat(
    tokenizer: Any, turns: Sequence[Turn], max_tokens: int, template_kwargs: Mapping[str, Any] | None = None
) -> list[int]:
    """Ids of an instruct model's prompt by its own chat template, in at most `max_tokens` tokens.

    template_kwargs: variables of the template, `model.chat_template_kwargs`. Truncated as `encode_prompt` does. Raises
    DataError unless the conversation ends with a human turn, ModelError when the chat template is missing or fails, and
    ConfigError when not even the template's own tokens fit.
    """
    return _encode_chat(tokenizer, turns, max_tokens, template_kwargs)[0]


def _encode_chat(
    tokenizer: Any, turns: Sequence[Turn], max_tokens: int, template_kwargs: Mapping[str, Any] | None
) -> tuple[list[int], int]:
    """(ids, turns dropped)."""
    chat = chat_template(tokenizer, template_kwargs)
    for dropped, rest in _suffixes(turns):
        ids = chat.prompt(rest)
        if len(ids) <= max_tokens:
            return ids, dropped
    # How a chat template renders a text is not known: shorten the text and tokenise all again until it fits.
    text = _ids(tokenizer, turns[-1].text)
    count = len(text)
    while len(ids) > max_tokens:
        if count <= 0:
            raise _no_room_error(max_tokens, len(ids))
        count = max(0, count - (len(ids) - max_tokens))
        shortened = tokenizer.decode(_last_ids(tokenizer, text, count)) if count else ""
        ids = chat.prompt([Turn("human", shortened)])
    return ids, len(turns) - 1


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens (B, T) int64, mask (B, T) bool with True = real token) with the padding on the right."""
    return _padded(rows, pad_id, lambda width, length: 0)


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens (B, T) int64, mask (B, T) bool with True = real token) with the padding on the left."""
    return _padded(rows, pad_id, lambda width, length: width - length)


def _padded(
    rows: Sequence[Sequence[int]], pad_id: int, start: Callable[[int, int], int]
) -> tuple[torch.Tensor, torch.Tensor]:
    width = max((len(row) for row in rows), default=0)
    tokens = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        first = start(width, len(row))
        tokens[index, first : first + len(row)] = torch.as_tensor(row, dtype=torch.int64)
        mask[index, first : first + len(row)] = True
    return tokens, mask


def _split(template: str) -> tuple[str, str]:
    head, *tail = template.split("{prompt}")
    if len(tail) != 1:
        raise ConfigError.because(f"prompt template {template!r}", "{prompt} exactly once", "correct the template")
    return head, tail[0]


def _suffixes(turns: Sequence[Turn]) -> Iterator[tuple[int, Sequence[Turn]]]:
    """(turns dropped, the rest) for every rest that begins with a human turn, longest first."""
    if not turns or turns[-1].role != "human":
        got = f"a prompt that ends with {turns[-1].role if turns else 'nothing'}"
        raise DataError.because(got, "a human turn last", "drop the turns after it")
    for dropped, turn in enumerate(turns):
        if turn.role == "human":
            yield dropped, turns[dropped:]


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Ids without BOS and EOS; special tokens in the text are read as plain characters."""
    # verbose=False: no warning for texts longer than the model's context, which are cut here.
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"])


def continuation(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` as it appears after other text.

    SentencePiece puts a space before every text, so the text is tokenised after an anchor whose own ids are then
    removed. The first anchor is used that no token shares with the text.
    """
    return ids_after(partial(_ids, tokenizer), text, ("a", ":", "\n"))


def _last_ids(tokenizer: Any, ids: list[int], count: int) -> list[int]:
    """The last `count` ids, or up to three fewer where the first would be part of a multi-byte character."""
    rest = ids[len(ids) - count :] if count < len(ids) else ids
    for _ in range(3):
        if len(rest) == len(ids) or not rest or not tokenizer.decode(rest).startswith(_REPLACEMENT):
            break
        rest = rest[1:]
    return rest


def _no_room_error(max_tokens: int, needed: int) -> C2FError:
    got = f"data.max_prompt_tokens={max_tokens} has no room for the prompt's markers"
    return ConfigError.because(got, f"more than {needed}", "raise it")
