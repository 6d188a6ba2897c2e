"""Forward pass of a decoder over a cache of keys and values, under each name Transformers has for that argument."""

import inspect
from collections.abc import Callable
from functools import cache as memoized
from typing import Any

from torch import Tensor


def hidden_states(decoder: Any, tokens: Tensor, cache: Any, *, mask: Any, positions: Tensor | None) -> Tensor:
    """Final hidden states (n, T, H) of tokens (n, T), whose keys and values are read from and written to `cache`.

    mask: what the queries may attend to, as the decoder takes it; positions: (n, T). None: from the cache's own length.
    """
    named = {cache_argument(type(decoder).forward): cache}
    return decoder(
        input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=True, **named
    ).last_hidden_state


@memoized
def cache_argument(forward: Callable[..., Any]) -> str:
    """`cache` (Transformers from 5.24 on, where the old name warns), or `past_key_values` (before)."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
