"""Key-value cache of a fixed number of slots, allocated once: every row has its own slot and position.

A prompt starts at position 0 of its slot, so there is no padding to mask: token p of a row is at position p. Entries of
an earlier row in the slot are at higher positions and are masked until they are overwritten.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from lite_c2f.backbone.context import sliding_window

FULL, SLIDING = "full_attention", "sliding_attention"  # Transformers' names of a layer's kind


def key_value_shape(config: Any) -> tuple[int, int]:
    """Heads of keys and values in each layer, and the width of one."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return getattr(config, "num_key_value_heads", None) or heads, width


def sliding_kinds(config: Any) -> tuple[bool, bool]:
    """Whether a model has layers of sliding-window attention, and whether it has others."""
    if sliding_window(config) is None:
        return False, True
    kinds = set(getattr(config, "layer_types", None) or (SLIDING,))
    return SLIDING in kinds, kinds != {SLIDING}


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, (slots, heads, length, width) each."""

    is_sliding = False

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        # zeros: a masked position still enters the sum, times 0, and 0 times the NaN of fresh memory is NaN
        self.keys: Tensor = torch.zeros(shape, dtype=dtype, device=device)
        self.values: Tensor = torch.zeros(shape, dtype=dtype, device=device)
        self.is_initialized = True
        self.slots: Tensor | None = None  # (n,) during prefill
        self.positions: Tensor | None = None  # (slots,) during decoding, one token per slot
        self.indices: Tensor = torch.arange(shape[0], device=device)
        self.span = slice(None)  # the slots that decode
        self.width = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the memory was allocated at the start."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store (n, heads, T, width) new keys and values; returns what the queries may attend to.

        During prefill these are the prompts themselves, under the usual causal mask.
        """
        if self.slots is not None:
            span = slice(key_states.shape[2])
            self.keys[self.slots, :, span] = key_states
            self.values[self.slots, :, span] = value_states
            return key_states, value_states
        self.keys[self.indices[self.span], :, self.positions] = key_states[:, :, 0]
        self.values[self.indices[self.span], :, self.positions] = value_states[:, :, 0]
        return self.keys[self.span, :, : self.width], self.values[self.span, :, : self.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self.keys.shape[2]

    def select(self, slots: Tensor) -> None:
        """Keep only these slots, (n,), in this order; the memory of the others is released."""
        self.keys, self.values = self.keys[slots], self.values[slots]
        self.indices = self.indices[: len(slots)]

    def grow(self, slots: int, length: int) -> None:
        """Make room for at least `slots` slots of `length` tokens."""
        old_slots, heads, old_length, width = self.keys.shape
        shape = (max(slots, old_slots), heads, max(length, old_length), width)
        keys, values = self.keys.new_zeros(shape), self.values.new_zeros(shape)
        keys[:old_slots, :, :old_length], values[:old_slots, :, :old_length] = self.keys, self.values
        self.indices = torch.arange(shape[0], device=keys.device)
        self.keys, self.values = keys, values

    def arrange(self, slots: Tensor, width: int) -> None:
        """Permute: slot i gets the contents of slot slots[i] up to position `width`; slots: (n,), the others stay."""
        self.keys[: len(slots), :, :width] = self.keys[slots, :, :width]
        self.values[: len(slots), :, :width] = self.values[slots, :, :width]


class SlotCache(Cache):
    """The key-value cache of `slots` rows of at most `length` tokens, for a transformers decoder."""

    def __init__(self, config: Any, slots: int, length: int, dtype: torch.dtype, device: torch.device) -> None:
        heads, width = key_value_shape(config)
        shape = (slots, heads, length, width)
        self.slot_layers = [SlotLayer(shape, dtype, device) for _ in range(config.num_hidden_layers)]
        super().__init__(layers=list(self.slot_layers))
        self.dtype = dtype
        sliding, self.full = sliding_kinds(config)
        self.window = config.sliding_window if sliding else None
        self.columns = torch.arange(length, device=device)

    def prefill(self, slots: Tensor) -> None:
        """Prepare a forward pass that writes whole prompts into these slots, (n,)."""
        for layer in self.slot_layers:
            layer.slots, layer.positions = slots, None

    def decode(self, positions: Tensor, width: int, span: slice = slice(None)) -> Tensor | Mapping[str, Tensor]:
        """Prepare a forward pass of one token per slot of `span`, at these positions (slots,), all below `width`.

        Returns the additive mask (slots, 1, 1, width): 0 where a query may attend, else -inf. Every layer would convert
        a boolean mask into this. A model with layers of both kinds gets one mask for each, by the kind's name.
        """
        for layer in self.slot_layers:
            layer.slots, layer.positions, layer.width, layer.span = None, positions, width, span
        columns = self.columns[None, :width]
        future = columns > positions[:, None]
        if self.window is None:
            return self._additive(future)
        windowed = self._additive(future | (columns <= positions[:, None] - self.window))
        return {FULL: self._additive(future), SLIDING: windowed} if self.full else windowed

    def _additive(self, masked: Tensor) -> Tensor:
        mask = torch.zeros(masked.shape, dtype=self.dtype, device=masked.device)
        return mask.masked_fill(masked, -torch.inf)[:, None, None, :]

    def select(self, slots: Tensor) -> None:
        """Keep only these slots, (n,), in this order."""
        for layer in self.slot_layers:
            layer.select(slots)

    def clear(self, slot: int) -> None:
        """Zeros in a slot whose row failed: its NaN, times 0, would reach the slot's next row."""
        for layer in self.slot_layers:
            layer.keys[slot], layer.values[slot] = 0, 0

    def arrange(self, slots: Tensor, width: int) -> None:
        """Permute: slot i gets the contents of slot slots[i] up to position `width`; slots: (n,)."""
        for layer in self.slot_layers:
            layer.arrange(slots, width)

    def grow(self, slots: int, length: int) -> None:
        """Make room for at least `slots` slots of `length` tokens; their contents stay.

        Layer by layer, so that two whole caches never exist at once. Out of memory in between, all layers still hold
        their contents and can be used as before.
        """
        for layer in self.slot_layers:
            layer.grow(slots, length)
        self.columns = torch.arange(self.slot_layers[0].keys.shape[2], device=self.columns.device)
