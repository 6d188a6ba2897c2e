"""Tied and transposed weights: the residue in the layout of the instruct model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lite_c2f.errors import ModelError
from lite_c2f.fine.adapter import Adapter
from lite_c2f.fine.delta import Absolute, Delta, LowRank, TokenRows, read_tensor
from lite_c2f.fine.ratios import layer_of
from lite_c2f.fine.shards import TensorEntry, part_of
from lite_c2f.fine.tensor_names import EMBEDDINGS, HEADS, is_named

TRANSPOSED_FAMILIES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # made of Conv1D


class ResolvedDeltas(NamedTuple):
    """Deltas in the layout of the instruct model's weights."""

    deltas: dict[str, Delta]
    aliases: dict[str, str]  # a second copy of a tied weight -> the weight it copies
    tied: str | None  # a sentence on what was done about tied embeddings


def resolve_tied(
    residue: Adapter, config: Mapping[str, Any], entries: Mapping[str, TensorEntry], instruct: Path
) -> ResolvedDeltas:
    """The deltas in this model's layout: transposed where its weights are, tied embeddings resolved.

    A tied weight is both embedding and head, so a delta for one of them cannot be merged: raises ModelError unless the
    adapter was trained with both tied (ensure_weight_tying) or trains single tokens (which PEFT keeps tied).
    """
    deltas = {name: _in_layout(name, delta, config, entries, residue) for name, delta in residue.deltas.items()}
    stored_head = next((name for name in entries if is_named(name, HEADS)), None)
    tied = config.get("tie_word_embeddings") is True or (
        config.get("tie_word_embeddings") is None
        and stored_head is None
        and any(is_named(name, EMBEDDINGS) for name in entries)
    )
    rows = config.get("vocab_size")
    head = next((name for name in deltas if is_named(name, HEADS)), None)
    embedding = next((name for name in deltas if name != head and _like_embedding(name, entries, rows)), None)
    if not tied or (embedding is None and head is None):
        return ResolvedDeltas(deltas, {}, None)
    both_tied = (
        residue.ties and embedding is not None and head is not None and _same_delta(deltas[embedding], deltas[head])
    )
    if not both_tied and not (embedding is not None and head is None and isinstance(deltas[embedding], TokenRows)):
        raise ModelError.because(
            f"the adapter changes '{embedding or head}', tied to another weight in '{instruct}' (tie_word_embeddings)",
            "a delta for both (ensure_weight_tying), or single tokens",
            "train without the embedding and the head, or the embedding alone with ensure_weight_tying=True",
        )
    assert embedding is not None
    deltas.pop(head or "", None)
    aliases = {}
    if stored_head is not None:  # stored twice although tied: both copies get the same change
        deltas[stored_head], aliases[stored_head] = deltas[embedding], embedding
    return ResolvedDeltas(deltas, aliases, f"'{embedding}' is tied to the head: its change is a change of both")


def _like_embedding(name: str, entries: Mapping[str, TensorEntry], rows: Any) -> bool:
    """An embedding by its name, or by having a row for every token."""
    shape = entries[name].shape if name in entries else ()
    return is_named(name, EMBEDDINGS) or (len(shape) == 2 and shape[0] == rows and layer_of(name) is None)


def _in_layout(
    name: str, delta: Delta, config: Mapping[str, Any], entries: Mapping[str, TensorEntry], residue: Adapter
) -> Delta:
    """The delta, transposed if its weight is stored as (in, out): by the shape, or the model family if it is square."""
    if not isinstance(delta, LowRank) or name not in entries or delta.shape[::-1] != entries[name].shape:
        return delta
    if delta.shape[0] != delta.shape[1]:
        return delta.transposed()
    if config.get("model_type") in TRANSPOSED_FAMILIES:
        return delta if is_named(name, (*HEADS, *EMBEDDINGS)) else delta.transposed()
    if residue.fan_in_fan_out:
        got = f"'fan_in_fan_out' is true and '{name}' is square in a '{config.get('model_type')}' model"
        raise ModelError.because(got, "a model that is known to keep its weights so", "train on nn.Linear layers")
    return delta


def _same_delta(left: Delta, right: Delta) -> bool:
    if isinstance(left, LowRank) and isinstance(right, LowRank):
        factors = ((left.down, right.down), (left.up, right.up))
        return left.scaling == right.scaling and all(torch.equal(a.read(), b.read()) for a, b in factors)
    if isinstance(left, Absolute) and isinstance(right, Absolute):
        return left.shape == right.shape and _equal(left.entry, right.entry)
    return False


def _equal(left: TensorEntry, right: TensorEntry) -> bool:
    """Do two tensors of one shape hold the same numbers? Their dtypes may differ."""
    rows = left.shape[0]
    step = max(1, 2**20 // max(1, left.shape[-1]))
    return all(
        torch.equal(
            read_tensor(part_of(left, first, min(step, rows - first))).float(),
            read_tensor(part_of(right, first, min(step, rows - first))).float(),
        )
        for first in range(0, rows, step)
    )
