"""Padding token: the id that pads rows on the right, and a check that a tokenizer's ids have embeddings.

Padding on the right is never attended to, and every score is read at an index counted from a row's length: any id
within the embedding would do. One that ends no text is chosen, because the published reward model is read by stock
classes, which find a row's end as its last token that is not padding: with EOS as padding they would never read EOS.
"""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from transformers.utils import cached_file

from lite_c2f.errors import ModelError

_NEVER_TEXT = "ÿ"  # how byte-level vocabularies write the byte 0xFF, which no UTF-8 text holds
_RESERVED = re.compile(r"pad|reserved|unused", re.IGNORECASE)


class Padding(NamedTuple):
    """The id that pads rows, and why it is not the tokenizer's own (None where it is)."""

    id: int
    reason: str | None


class TokenLimits(NamedTuple):
    """End tokens and embedding size, from a model's configuration files."""

    end_ids: frozenset[int]  # of config.json and generation_config.json
    embeddings: int | None  # rows of the embedding; None where config.json does not say


def padding_id(tokenizer: Any) -> int:
    """The id that pads rows on the right: what `resolve_padding` chose, or the choice from the tokenizer alone.

    Not `tokenizer.pad_token_id`: an ordinary token as `pad_token` would become a special one, which decoding drops
    from answers once the tokenizer is saved and read again.
    """
    padding: Padding | None = vars(tokenizer).get("_padding")
    return choose_padding(tokenizer, TokenLimits(frozenset(), None)) if padding is None else padding.id


def resolve_padding(tokenizer: Any, limits: TokenLimits) -> None:
    """Choose the padding of a tokenizer that was just loaded, for `padding_id` to give.

    Its own `pad_token`, which other libraries pad with, becomes the same token where that is a special one, else EOS
    where it had none within the embedding.
    """
    own = tokenizer.pad_token_id
    chosen = choose_padding(tokenizer, limits)
    tokenizer._padding = Padding(chosen, None if chosen == own else _reason_against(tokenizer, own, limits))
    if chosen in _special(tokenizer):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(chosen)
    elif own is None or not _within(own, limits):
        tokenizer.pad_token = tokenizer.eos_token


def choose_padding(tokenizer: Any, limits: TokenLimits) -> int:
    """The first of these ids that has an embedding and ends neither a text nor a chat's turn.

    The tokenizer's own padding; its unknown token; a special token that is named padding, reserved or unused; the
    beginning of a text; the byte 0xFF; the lowest id.
    """
    candidates = (id_ for id_ in _candidates(tokenizer) if id_ is not None)
    return next(id_ for id_ in candidates if _within(id_, limits) and not _ends(tokenizer, id_, limits))


def padding_note(tokenizer: Any) -> str | None:
    """A message that names the padding where it is not the tokenizer's own; None where it is."""
    padding: Padding | None = vars(tokenizer).get("_padding")
    if padding is None or padding.reason is None:
        return None
    token = tokenizer.convert_ids_to_tokens(padding.id)
    return f"padding: rows are filled up with {token!r} (id {padding.id}), as {padding.reason}"


def with_padding_token(tokenizer: Any) -> Any:
    """A copy whose `pad_token` is the chosen padding, to be saved with the reward model for stock libraries."""
    published = copy.deepcopy(tokenizer)
    published.pad_token = tokenizer.convert_ids_to_tokens(padding_id(tokenizer))
    published.padding_side = "right"
    return published


def read_limits(model: str, revision: str | None = None) -> TokenLimits:
    """End tokens and embedding size from config.json and generation_config.json, where they are there."""
    config, generation = (_json(model, name, revision) for name in ("config.json", "generation_config.json"))
    config = {**config, **(config.get("text_config") or {})}
    listed = [config.get("eos_token_id"), generation.get("eos_token_id")]
    ids = [id_ for entry in listed for id_ in (entry if isinstance(entry, list) else [entry])]
    size = config.get("vocab_size")
    return TokenLimits(frozenset(id_ for id_ in ids if isinstance(id_, int)), size if isinstance(size, int) else None)


def check_embedded(tokenizer: Any, model: str, size: int | None) -> None:
    """Raise ModelError naming a token that has no embedding although text, or the chat template, can be encoded to it.

    A special token beyond the embedding that no text produces (a `[PAD]` that was added without resizing the model) is
    accepted: the text of data never becomes a special token.
    """
    if size is None:
        return
    special = _special(tokenizer)
    produced = {tokenizer.bos_token_id, tokenizer.eos_token_id, *tokenizer("a")["input_ids"]}
    beyond = sorted((id_, token) for token, id_ in tokenizer.get_vocab().items() if id_ >= size)
    for id_, token in beyond:
        if id_ not in special or id_ in produced or token in _template(tokenizer):
            raise ModelError.because(
                f"model '{model}': token {token!r} has id {id_}, but the model has {size} embeddings",
                f"ids below {size}",
                "take the tokenizer that belongs to the model, or resize the model's embedding to it",
            )


def _candidates(tokenizer: Any) -> Iterator[int | None]:
    special = _special(tokenizer)
    yield tokenizer.pad_token_id
    yield tokenizer.unk_token_id
    yield from sorted(id_ for id_, token in special.items() if _RESERVED.search(token))
    yield tokenizer.bos_token_id
    vocabulary = tokenizer.get_vocab()
    byte = vocabulary.get(_NEVER_TEXT)
    if byte is not None and tokenizer.decode([byte]) == "\N{REPLACEMENT CHARACTER}":
        yield byte
    yield from sorted(id_ for id_ in vocabulary.values() if id_ not in special)


def _within(id_: int, limits: TokenLimits) -> bool:
    return limits.embeddings is None or id_ < limits.embeddings


def _ends(tokenizer: Any, id_: int, limits: TokenLimits) -> bool:
    """Whether an id ends a text or may end a turn: any special token in the chat template but BOS may."""
    if id_ == tokenizer.eos_token_id or id_ in limits.end_ids:
        return True
    token = _special(tokenizer).get(id_)
    return token is not None and id_ != tokenizer.bos_token_id and token in _template(tokenizer)


def _special(tokenizer: Any) -> dict[int, str]:
    """id -> text of the special tokens."""
    added = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def _template(tokenizer: Any) -> str:
    """The source of the chat template, or of all of them."""
    template = tokenizer.chat_template or ""
    return template if isinstance(template, str) else " ".join(template.values())


def _reason_against(tokenizer: Any, own: int | None, limits: TokenLimits) -> str:
    """Why the tokenizer's own padding is not used."""
    if own is None:
        return "the tokenizer has no padding token"
    token = tokenizer.convert_ids_to_tokens(own)
    if not _within(own, limits):
        return (
            f"the tokenizer's padding token {token!r} (id {own}) is beyond the model's {limits.embeddings} embeddings"
        )
    return f"the tokenizer's padding token {token!r} ends a text"


def _json(model: str, name: str, revision: str | None) -> dict[str, Any]:
    try:
        file = cached_file(model, name, revision=revision)
        content = json.loads(Path(str(file)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # missing or damaged files are reported where the model is loaded
    return content if isinstance(content, dict) else {}
