"""Context length of a model, up to which a row's outputs do not depend on the other rows of its batch."""

from collections.abc import Mapping
from typing import Any

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len")  # the names in most families, GPT-2 and MPT
LONGROPE_TYPES = ("longrope", "su")  # of Phi-3; "su" in its first files


def context_length(config: Any) -> int | None:
    """Most tokens of a row whose rotary frequencies do not depend on the longest row of its batch; None: unlimited.

    config: the contents of config.json, or a model's configuration. Transformers changes the frequencies of a whole
    batch once its longest row is beyond original_max_position_embeddings (longrope), or beyond max_position_embeddings
    (dynamic): the log-probabilities of a response would then depend on its neighbours, and those from sampling would
    not be those that are recomputed. Up to there the frequencies are fixed, the short ones. All other kinds are fixed
    anyway, and end at max_position_embeddings.
    """

    def value(key: str) -> Any:
        return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)

    limits = [next((size for name in CONTEXT_KEYS if (size := value(name))), None)]
    rope = value("rope_parameters") or value("rope_scaling") or {}
    by_layer_type = [part for part in rope.values() if isinstance(part, Mapping)]
    for settings in by_layer_type or [rope]:
        if settings.get("rope_type", settings.get("type")) in LONGROPE_TYPES or "long_factor" in settings:
            original = value("original_max_position_embeddings")  # takes precedence over the rotary settings
            limits.append(original or settings.get("original_max_position_embeddings"))
    return min((limit for limit in limits if limit), default=None)


def sliding_window(config: Any) -> int | None:
    """The window that a model's attention slides over, in some layers or all, in tokens; None where it has none.

    config: a model's configuration. A class that does not know the key stores it without using it: a Mistral
    converted to a Llama has no window any more.
    """
    return getattr(config, "sliding_window", None) if hasattr(type(config), "sliding_window") else None
