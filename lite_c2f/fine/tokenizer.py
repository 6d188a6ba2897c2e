"""Tokenizer of the merged folder: the check that it equals the instruct model's, and the end-of-turn token."""

from pathlib import Path
from typing import Any

from lite_c2f.backbone.end_tokens import unlisted_turn_end
from lite_c2f.errors import ModelError

FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
TEXTS = (
    "Why is the sky blue?",
    "  two spaces  within,\tand a tab \n\n    indented\n",
    "don't re-use: 3.14159, 1,000,000 and 007",
    "naïve café — “quoted” … 中文,日本語,한국어 и русский 🙂👩‍👩‍👧",
    "def f(x):\n    return {'a': [x ** 2, not x]}  # <s> </s> [INST] <|im_start|>\n",
    "",
)
CHAT = ({"role": "user", "content": "Hello  there"}, {"role": "assistant", "content": "Hi!"})
NEXT = {"role": "user", "content": " And now?\n"}


def load_own_tokenizer(folder: Path) -> Any | None:
    """The tokenizer that stock Transformers loads from a folder; None if it cannot load one."""
    if not any((folder / name).is_file() for name in FILES):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception:  # the tokenizers library raises no specific class
        return None


def turn_end_to_add(tokenizer: Any | None, instruct: Path) -> int | None:
    """The token that ends a turn in the instruct model's chat template, if its files do not list it as an end token."""
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        return None
    try:
        return unlisted_turn_end(tokenizer, instruct)
    except (ModelError, OSError, ValueError):  # a template that does not render, or a configuration of its own code
        return None


def check_tokenizer(tokenizer: Any, merged: Path, instruct: Path) -> None:
    """Raise ModelError unless a merged folder's tokenizer equals the instruct model's.

    Compared: ids of texts with spaces, digits, other scripts and control tokens, what they decode to, and a
    conversation as the chat template renders it. tokenizer: the instruct model's.
    """
    own = load_own_tokenizer(merged)
    for what, expected, got in _pairs(tokenizer, own):
        if got != expected:
            raise ModelError.because(
                f"the merged folder's tokenizer differs from that of '{instruct}': {what} "
                f"is {str(got)[:80]!r}, and was {str(expected)[:80]!r}",
                "the same",
                "check the tokenizer's files of the instruct model, and that nothing changes them meanwhile",
            )


def _pairs(left: Any, right: Any | None) -> Any:
    """(what is compared, of the left, of the right)"""
    if right is None:
        yield "its files", "a tokenizer", None
        return
    yield "its vocabulary", "the same", "the same" if left.get_vocab() == right.get_vocab() else "another one"
    for text in TEXTS:
        ids = [tokenizer(text)["input_ids"] for tokenizer in (left, right)]
        yield f"{text!r}", *ids
        yield f"the text of {ids[0]}", *(tokenizer.decode(ids[0]) for tokenizer in (left, right))
    for chat in ([*CHAT, NEXT], [NEXT]):
        yield "a conversation", *(_rendered(tokenizer, chat) for tokenizer in (left, right))


def _rendered(tokenizer: Any, chat: list[dict[str, str]]) -> str:
    """The text of a conversation; or of the error, if there is no template or it fails."""
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # whatever a template raises
        return f"{type(error).__name__}: {error}"
