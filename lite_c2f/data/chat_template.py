"""Chat template of a tokenizer: prompts, answers and the end of a turn, as the template itself renders them.

Contents of messages stay text: `<|im_end|>` within a question is ten characters and ends no turn. Control tokens in
contents are marked before the template is rendered; a rendered text with such marks is encoded by a copy of the
tokenizer whose control tokens have random names, which no text can contain. Other conversations are encoded as
`apply_chat_template` does. Transformers' own `sanitize_control_tokens` splits a text at such tokens, drops characters
that it uses as marks, and refuses word-level tokenizers.
"""

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from tokenizers import Tokenizer

from lite_c2f.data.records import Turn
from lite_c2f.errors import ConfigError, ModelError

ROLES = {"human": "user", "assistant": "assistant"}
QUESTION, ANSWER, NEXT_QUESTION = (
    "TheQuestion",
    "TheAnswer",
    "TheNextQuestion",
)  # contents of the conversations that the template is probed with
_NONCE = secrets.token_hex(8)  # so that no content can hold a mark
_START, _END = f"\ue000{_NONCE}\ue001", f"\ue000{_NONCE}\ue002"


class ChatTemplate:
    """One tokenizer's template with the variables of `model.chat_template_kwargs`. Made by `chat_template`."""

    def __init__(self, tokenizer: Any, template_kwargs: Mapping[str, Any]) -> None:
        self._tokenizer, self._kwargs = tokenizer, dict(template_kwargs)
        question = [Turn("human", QUESTION)]
        answered = [*question, Turn("assistant", ANSWER)]
        self._prompt_text = self._rendered(question, prompt=True)
        self._answered_text = self._rendered_or_nothing(answered)
        self._continued_text = self._rendered_or_nothing([*answered, Turn("human", NEXT_QUESTION)])

    @property
    def opening(self) -> str:
        """The text between a question and what is sampled."""
        return self._prompt_text.partition(QUESTION)[2]

    @property
    def before_answers(self) -> str | None:
        """The text between a question and its answer; None if the template renders no answer."""
        between, answer, _ = self._answered_text.partition(QUESTION)[2].partition(ANSWER)
        return between if answer else None

    @property
    def lead(self) -> str | None:
        """The text between `opening` and an answer, such as a space or Qwen3's empty thinking block.

        None if answers do not follow the opening: DeepSeek-R1's opening begins a thinking block that its answers lack.
        """
        between = self.before_answers
        return between[len(self.opening) :] if between is not None and between.startswith(self.opening) else None

    @cached_property
    def end(self) -> int | None:
        """The token that ends an assistant's turn: the first added token after its text, with only spaces between."""
        pattern = re.compile(rf"\s*({_alternatives(self._added)})")
        for text in (self._continued_text.partition(NEXT_QUESTION)[0], self._answered_text):
            if match := pattern.match(text.partition(ANSWER)[2]):
                return self._tokenizer.convert_tokens_to_ids(match[1])
        return None

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Token ids of a conversation up to the position where the answer is sampled."""
        return self.encode(self.render(turns))

    def render(self, turns: Sequence[Turn]) -> str:
        """Text of a conversation up to the position where the answer is sampled, with marked contents, for `encode`."""
        return self._rendered([turn._replace(text=self.mark(turn.text)) for turn in turns], prompt=True)

    def answer(self, text: str, *, ended: bool) -> list[int]:
        """Token ids of an answer after its prompt, with the spaces, trimming and thinking block of the template.

        ended: append the token that ends a turn, if there is one. An answer that the template does not render as a
        continuation of the prompt (a thinking block of its own in place of the opening's) follows `lead` unchanged.
        Raises ConfigError if answers do not follow the template's opening.
        """
        if self.lead is None:
            got = f"model.prompt_template is chat, but answers do not follow the template's {self.opening!r}"
            remedy = "set model.chat_template_kwargs (often enable_thinking: false), or a template with {prompt} in it"
            raise ConfigError.because(got, "a chat template that renders an answer after its prompt", remedy)
        marked, tail = self.mark(text), self._answered_text.partition(ANSWER)[2]
        whole = self._rendered([Turn("human", QUESTION), Turn("assistant", marked)])
        body = self.lead + marked
        if whole.startswith(self._prompt_text) and whole.endswith(tail):
            body = whole[len(self._prompt_text) : len(whole) - len(tail)]
        if not ended or self.end is None:
            return self._ids_after(self._prompt_text, body)
        end = self._tokenizer.convert_ids_to_tokens(self.end)
        space = tail.partition(end)[0] if end in tail else ""
        return self._ids_after(self._prompt_text, body + space + end)

    def continuation(self, context: str, text: str) -> list[int]:
        """Token ids of a text after a rendered context: `encode(context + text)` without the context's ids."""
        return self._ids_after(context, self.mark(text))

    def mark(self, text: str) -> str:
        """The content with every text of a control token marked as text."""
        return self._control.sub(lambda match: f"{_START}{match[0]}{_END}", text)

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered text: marked parts stay text, everything else is encoded as usual."""
        if _START not in text:
            plain = {"add_special_tokens": False, "split_special_tokens": False, "verbose": False}
            return list(self._tokenizer(text, **plain)["input_ids"])
        return self.encode_apart(text)

    def encode_apart(self, text: str) -> list[int]:
        """The same, always by the tokenizer whose control tokens are renamed."""
        renamed, names, ids = self._renamed

        def replacement(match: re.Match[str]) -> str:
            return match["text"] or names.get(match[0], "")  # a mark that the template split is dropped

        text = self._marked_or_control.sub(replacement, text)
        return [ids.get(token, token) for token in renamed.encode(text, add_special_tokens=False).ids]

    def _ids_after(self, before: str, text: str) -> list[int]:
        return ids_after(self.encode, text, (before, "a", ":", "\n"))

    def _rendered(self, turns: Sequence[Turn], *, prompt: bool = False) -> str:
        messages = [{"role": ROLES[turn.role], "content": turn.text} for turn in turns]
        try:
            return self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=prompt, tokenize=False, **self._kwargs
            )
        except Exception as error:  # Jinja's own errors, ValueError for no template, whatever the template calls
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            got = f"the chat template fails ({reason})"
            raise ModelError.because(got, "an instruct model's tokenizer", "choose another model") from None

    def _rendered_or_nothing(self, turns: Sequence[Turn]) -> str:
        """The rendered text; empty for a template that accepts questions only."""
        try:
            return self._rendered(turns)
        except ModelError:
            return ""

    @cached_property
    def _added(self) -> list[str]:
        """Added tokens, without the white-space tokens that some tokenizers have for code."""
        tokens = self._tokenizer.added_tokens_decoder.values()
        return [token.content for token in tokens if token.content.strip()]

    @cached_property
    def _controls(self) -> list[str]:
        """Special tokens, and other added tokens that the template puts around turns (not within: `<think>`)."""
        special = {token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        frame = self._prompt_text.removesuffix(self.opening) + self._continued_text
        return [token for token in self._added if token in special or token in frame]

    @cached_property
    def _control(self) -> re.Pattern[str]:
        return re.compile(_alternatives(self._controls))

    @cached_property
    def _marked_or_control(self) -> re.Pattern[str]:
        control = _alternatives(self._controls)
        return re.compile(f"{_START}(?P<text>{control}){_END}|{control}|{_START}|{_END}")

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[str, str], dict[int, int]]:
        """(copy of the tokenizer, control token -> its name in the copy, id in the copy -> id)."""
        if not getattr(self._tokenizer, "is_fast", False):
            raise ModelError.because("a tokenizer without tokenizer.json", "a fast one", "save the tokenizer again")
        content = json.loads(self._tokenizer.backend_tokenizer.to_str())
        names = {token: f"\ue000{_NONCE}{number}\ue003" for number, token in enumerate(self._controls)}
        numbers = {token["content"]: token["id"] for token in content["added_tokens"]}
        for token in content["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        _rename_vocabulary(content["model"], names)
        content |= {"post_processor": None, "truncation": None, "padding": None}
        renamed = Tokenizer.from_str(json.dumps(content))
        ids = {renamed.token_to_id(names.get(token, token)): number for token, number in numbers.items()}
        return renamed, names, {token: number for token, number in ids.items() if token is not None}


def chat_template(tokenizer: Any, template_kwargs: Mapping[str, Any] | None = None) -> ChatTemplate:
    """The template of a tokenizer, cached. Raises ModelError when it is missing or fails."""
    variables = json.dumps(dict(template_kwargs or {}), sort_keys=True)
    return _chat_template(tokenizer, str(tokenizer.chat_template), variables)


def ids_after(encode: Callable[[str], list[int]], text: str, anchors: Sequence[str]) -> list[int]:
    """Token ids of a text after the first of these anchors that no token shares with it."""
    for anchor in anchors:
        before, both = encode(anchor), encode(anchor + text)
        if before and both[: len(before)] == before:
            return both[len(before) :]
    return encode(text)


@lru_cache(maxsize=16)
def _chat_template(tokenizer: Any, template: str, variables: str) -> ChatTemplate:
    return ChatTemplate(tokenizer, json.loads(variables))


def _alternatives(texts: Sequence[str]) -> str:
    """A pattern that matches any of these texts, the longest first; without texts, one that matches nothing."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"


def _rename_vocabulary(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename tokens in a tokenizer's vocabulary, so that no text becomes one; the unknown token keeps its name."""
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, list):  # Unigram: [piece, score]
        for number, piece in enumerate(vocabulary):
            if number != model.get("unk_id"):
                piece[0] = names.get(piece[0], piece[0])
        return
    names = {token: name for token, name in names.items() if token != model.get("unk_token")}
    model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    if "merges" in model:
        pairs = [pair if isinstance(pair, list) else pair.split(" ", 1) for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if "".join(pair) not in names]
