"""The language-model head: from final hidden states to logits, with the scale and the softcap of its family."""

from typing import Any

import torch
from torch import Tensor


class LanguageHead:
    """logits = cap * tanh(s / cap) with s = scale * (W h + b); without a cap, logits = s.

    Most families apply W alone. Cohere and Granite scale its product, Gemma 2 caps it. Sampling,
    log-probabilities and the chat all use this class.

    linear: the module with weight (V, H); a callable that gives W h + b for hidden states (N, H).
    """

    def __init__(self, linear: Any, scale: float = 1.0, softcap: float | None = None) -> None:
        self.linear, self.scale, self.softcap = linear, scale, softcap

    @classmethod
    def of(cls, model: Any) -> "LanguageHead":
        """The head of a causal language model, with or without adapters."""
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        return cls(inner.get_output_embeddings(), *scale_and_softcap(inner.config))

    @property
    def weight(self) -> Tensor:
        """(V, H)."""
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        """(V,), where there is one."""
        return getattr(self.linear, "bias", None)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits (N, V) float32 of hidden states (N, H)."""
        logits = self.linear(hidden).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def scale_and_softcap(config: Any) -> tuple[float, float | None]:
    """Scale and softcap of a family's logits, by the keys of its configuration."""
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite
    return scale / divisor, getattr(config, "final_logit_softcapping", None)
