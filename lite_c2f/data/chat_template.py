"""A tokenizer's chat template: prompts, answers and the end of a turn, as the template itself renders them.

What people and data write stays text: `<|im_end|>` within a question is ten characters and closes no turn. Contents
are marked before the template is rendered; where one holds the text of a control token, the whole is encoded by a
copy of the tokenizer that has its control tokens under other names, which nobody can write. Other conversations are
encoded as `apply_chat_template` does it. Transformers' own `sanitize_control_tokens` takes a text apart at such
tokens, drops characters that it uses as marks, and refuses tokenizers of whole words.
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
QUESTION, ANSWER, NEXT = "TheQuestion", "TheAnswer", "TheNextQuestion"  # of conversations that are rendered to look at
_SALT = secrets.token_hex(8)  # so that no content holds a mark
_START, _END = f"\ue000{_SALT}\ue001", f"\ue000{_SALT}\ue002"


class ChatTemplate:
    """One tokenizer's template with the variables of `model.chat_template_kwargs`. Made by `chat_template`."""

    def __init__(self, tokenizer: Any, template_kwargs: Mapping[str, Any]) -> None:
        self._tokenizer, self._kwargs = tokenizer, dict(template_kwargs)
        question = [Turn("human", QUESTION)]
        answered = [*question, Turn("assistant", ANSWER)]
        self._opened = self._rendered(question, prompt=True)
        self._closed = self._rendered_or_nothing(answered)
        self._going_on = self._rendered_or_nothing([*answered, Turn("human", NEXT)])

    @property
    def opening(self) -> str:
        """The text between a question and what is sampled."""
        return self._opened.partition(QUESTION)[2]

    @property
    def before_answers(self) -> str | None:
        """The text between a question and its answer, where that is known; None where the template shows no answer."""
        between, answer, _ = self._closed.partition(QUESTION)[2].partition(ANSWER)
        return between if answer else None

    @property
    def lead(self) -> str | None:
        """What stands between `opening` and an answer, such as a space or Qwen3's empty thoughts.

        None where answers do not follow the opening: DeepSeek-R1's begins a thought that its answers do not have.
        """
        between = self.before_answers
        return between[len(self.opening) :] if between is not None and between.startswith(self.opening) else None

    @cached_property
    def end(self) -> int | None:
        """The token that ends an assistant's turn: the first added token after its text, behind nothing but spaces."""
        pattern = re.compile(rf"\s*({_any_of(self._added)})")
        for text in (self._going_on.partition(NEXT)[0], self._closed):
            if match := pattern.match(text.partition(ANSWER)[2]):
                return self._tokenizer.convert_tokens_to_ids(match[1])
        return None

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Ids of a conversation up to where the answer is sampled."""
        return self.encode(self.render(turns))

    def render(self, turns: Sequence[Turn]) -> str:
        """Text of a conversation up to where the answer is sampled, for `encode`: its contents are marked."""
        return self._rendered([turn._replace(text=self.mark(turn.text)) for turn in turns], prompt=True)

    def answer(self, text: str, *, ended: bool) -> list[int]:
        """Ids of an answer behind its prompt, as the template renders it: thoughts, spaces and trimming are its own.

        With the token that ends a turn if it `ended`, where there is one. An answer that the template renders apart
        from the prompt (its own thoughts in place of those in the opening) stands behind `lead` as it is. Raises
        ConfigError where answers do not follow the template's opening.
        """
        if self.lead is None:
            got = f"model.prompt_template is chat, but answers do not follow the template's {self.opening!r}"
            remedy = "set model.chat_template_kwargs (often enable_thinking: false), or a template with {prompt} in it"
            raise ConfigError.because(got, "a chat template that renders an answer behind its prompt", remedy)
        marked, tail = self.mark(text), self._closed.partition(ANSWER)[2]
        whole = self._rendered([Turn("human", QUESTION), Turn("assistant", marked)])
        body = self.lead + marked
        if whole.startswith(self._opened) and whole.endswith(tail):
            body = whole[len(self._opened) : len(whole) - len(tail)]
        if not ended or self.end is None:
            return self._behind(self._opened, body)
        end = self._tokenizer.convert_ids_to_tokens(self.end)
        space = tail.partition(end)[0] if end in tail else ""
        return self._behind(self._opened, body + space + end)

    def follow(self, context: str, text: str) -> list[int]:
        """Ids of a text behind a rendered context: of what `encode` gives for both, the part after the context's."""
        return self._behind(context, self.mark(text))

    def mark(self, text: str) -> str:
        """A content in which texts of control tokens are marked as text."""
        return self._control.sub(lambda match: f"{_START}{match[0]}{_END}", text)

    def encode(self, text: str) -> list[int]:
        """Ids of a rendered text: what is marked stays text, everything else is as the tokenizer reads it."""
        if _START not in text:
            plain = {"add_special_tokens": False, "split_special_tokens": False, "verbose": False}
            return list(self._tokenizer(text, **plain)["input_ids"])
        return self.encode_apart(text)

    def encode_apart(self, text: str) -> list[int]:
        """The same by the tokenizer whose control tokens have other names."""
        renamed, names, ids = self._renamed

        def chosen(match: re.Match[str]) -> str:
            return match["text"] or names.get(match[0], "")  # a mark that the template took apart is dropped

        text = self._marked_or_control.sub(chosen, text)
        return [ids.get(token, token) for token in renamed.encode(text, add_special_tokens=False).ids]

    def _behind(self, before: str, text: str) -> list[int]:
        return behind(self.encode, text, (before, "a", ":", "\n"))

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
        """For a template that takes questions alone."""
        try:
            return self._rendered(turns)
        except ModelError:
            return ""

    @cached_property
    def _added(self) -> list[str]:
        """Added tokens; not those of white space, which some tokenizers have for code."""
        tokens = self._tokenizer.added_tokens_decoder.values()
        return [token.content for token in tokens if token.content.strip()]

    @cached_property
    def _controls(self) -> list[str]:
        """Special tokens, and other added ones that the template puts around turns; not `<think>`, which has a mate."""
        special = {token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        frame = self._opened.removesuffix(self.opening) + self._going_on
        return [token for token in self._added if token in special or token in frame]

    @cached_property
    def _control(self) -> re.Pattern[str]:
        return re.compile(_any_of(self._controls))

    @cached_property
    def _marked_or_control(self) -> re.Pattern[str]:
        control = _any_of(self._controls)
        return re.compile(f"{_START}(?P<text>{control}){_END}|{control}|{_START}|{_END}")

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[str, str], dict[int, int]]:
        """(a copy of the tokenizer, its names of the control tokens, ids of the copy -> ids)."""
        if not getattr(self._tokenizer, "is_fast", False):
            raise ModelError.because("a tokenizer without tokenizer.json", "a fast one", "save the tokenizer again")
        content = json.loads(self._tokenizer.backend_tokenizer.to_str())
        names = {token: f"\ue000{_SALT}{number}\ue003" for number, token in enumerate(self._controls)}
        numbers = {token["content"]: token["id"] for token in content["added_tokens"]}
        for token in content["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        _rename_vocabulary(content["model"], names)
        content |= {"post_processor": None, "truncation": None, "padding": None}
        renamed = Tokenizer.from_str(json.dumps(content))
        ids = {renamed.token_to_id(names.get(token, token)): number for token, number in numbers.items()}
        return renamed, names, {token: number for token, number in ids.items() if token is not None}


def chat_template(tokenizer: Any, template_kwargs: Mapping[str, Any] | None = None) -> ChatTemplate:
    """The template of a tokenizer, looked at once. Raises ModelError when it is missing or fails."""
    variables = json.dumps(dict(template_kwargs or {}), sort_keys=True)
    return _chat_template(tokenizer, str(tokenizer.chat_template), variables)


def behind(encode: Callable[[str], list[int]], text: str, anchors: Sequence[str]) -> list[int]:
    """Ids of a text as it appears behind the first of these anchors that does not fuse with it."""
    for anchor in anchors:
        before, both = encode(anchor), encode(anchor + text)
        if before and both[: len(before)] == before:
            return both[len(before) :]
    return encode(text)


@lru_cache(maxsize=16)
def _chat_template(tokenizer: Any, template: str, variables: str) -> ChatTemplate:
    return ChatTemplate(tokenizer, json.loads(variables))


def _any_of(texts: Sequence[str]) -> str:
    """A pattern of any of these texts, the longest first; one that nothing matches where there is none."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"


def _rename_vocabulary(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Take tokens out of what a tokenizer's model can make of text; the token for what is unknown has to stay."""
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
