"""End tokens of an answer: those listed in a model's files, and an unlisted end of a chat turn."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lite_c2f.config.settings import CHAT
from lite_c2f.data.encode import turn_end


def listed_end_tokens(folder: Path) -> list[int]:
    """The end tokens that stock libraries read from a model's files, without its tokenizer's."""
    from transformers import AutoConfig, GenerationConfig

    try:
        return eos_ids_of(GenerationConfig.from_pretrained(folder))
    except OSError:  # no generation_config.json: config.json has them
        return eos_ids_of(AutoConfig.from_pretrained(folder, trust_remote_code=False))


def eos_ids_of(settings: Any) -> list[int]:
    """`eos_token_id` of a configuration, which is a number, a list or nothing."""
    ids = getattr(settings, "eos_token_id", None)
    return [i for i in (ids if isinstance(ids, list) else [ids]) if i is not None]


def unlisted_turn_end(tokenizer: Any, folder: Path, template_kwargs: Mapping[str, Any] | None = None) -> int | None:
    """The token that ends a model's chat turns, where neither its files nor its tokenizer list it as an end token.

    Stock libraries would never stop at it. None where it is listed or the chat template has none. template_kwargs:
    variables of the template, `model.chat_template_kwargs`. Raises ModelError for a template that is missing or fails.
    """
    end = turn_end(tokenizer, CHAT, template_kwargs)
    return None if end in (tokenizer.eos_token_id, *listed_end_tokens(folder)) else end
