"""Vocabularies of base, instruct model and adapter: allowed differences, and embeddings saved with an adapter."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lite_c2f.backbone.pair import different_token, read_added_tokens, read_config, read_vocabulary
from lite_c2f.errors import ModelError
from lite_c2f.fine.adapter_config import CONFIG
from lite_c2f.fine.delta import read_tensor
from lite_c2f.fine.shards import TensorEntry, part_of
from lite_c2f.fine.tensor_names import EMBEDDINGS, HEADS, is_embedding, is_named

KEEP_EMBEDDING = "train without the embedding and the head (all-linear leaves them out, and no modules_to_save of them)"


def check_tokens(base: Path, instruct: Path, changed: list[str]) -> str | None:
    """A sentence on how the tokens of the two models differ; None if they do not. changed: weights of the adapter.

    Tokens of one side only, and renamed added tokens (reserved ones in use), are allowed: the layers of both models
    read the same hidden states. Raises ModelError if a token of the base's own vocabulary has another number or name,
    and if any token differs and the adapter changes an embedding or a head, whose rows would belong to other tokens.
    """
    base_tokens, instruct_tokens = read_vocabulary(base), read_vocabulary(instruct)
    sizes = [read_config(folder).get("vocab_size") for folder in (base, instruct)]
    if base_tokens == instruct_tokens and sizes[0] == sizes[1]:
        return None
    instruct_names = {number: token for token, number in instruct_tokens.items()}
    added = read_added_tokens(base)
    wrong = [
        token
        for token, number in base_tokens.items()
        if token not in added
        and (instruct_tokens.get(token, number) != number or instruct_names.get(number, token) != token)
    ]
    if wrong:
        raise different_token(base, instruct, base_tokens, instruct_tokens, wrong)
    only = {
        "base": base_tokens.keys() - instruct_tokens.keys(),
        "instruct model": instruct_tokens.keys() - base_tokens.keys(),
    }
    counts = [f"{len(tokens)} only in the {side} (such as {min(tokens)!r})" for side, tokens in only.items() if tokens]
    moved = [token for token, number in base_tokens.items() if instruct_tokens.get(token, number) != number]
    counts += [f"{len(moved)} of them under other numbers (such as {moved[0]!r})"] if moved else []
    rows = (
        [] if sizes[0] == sizes[1] else [f"vocab_size is {sizes[0]} in the base and {sizes[1]} in the instruct model"]
    )
    shared = len(base_tokens.keys() & instruct_tokens.keys())
    differ = ", ".join([f"{shared} tokens are in both vocabularies", *counts, *rows])
    if touched := [name for name in changed if is_embedding(name)]:
        got = f"the adapter changes '{touched[0]}', and the tokens of '{base}' and '{instruct}' differ: {differ}"
        raise ModelError.because(got, "the same tokens in both, or a change of the layers alone", KEEP_EMBEDDING)
    return f"{differ}; the adapter changes neither embedding nor head, so that both stay the instruct model's"


def check_rows(config: Mapping[str, object], entries: Mapping[str, TensorEntry], folder: Path) -> None:
    """Raise ModelError unless a model's embedding has as many rows as its config.json says there are tokens."""
    size = config.get("vocab_size")
    for name, entry in entries.items():
        if is_named(name, EMBEDDINGS) and type(size) is int and entry.shape[:1] != (size,):
            got = f"'vocab_size' is {size} in '{folder / 'config.json'}', and '{name}' has the shape {entry.shape}"
            raise ModelError.because(got, "a row for every token", "download the model again")


def check_copies(copies: Mapping[str, TensorEntry], of_base: Mapping[str, TensorEntry], base: Path) -> list[str]:
    """Compare weights that were saved beside an adapter with the base's own; a sentence for each that is not merged.

    Values are equal if the base's round to them in the copy's dtype. A vocabulary that was resized in training has more
    or fewer rows: the common ones are compared. Raises ModelError naming the rows that differ.
    """
    embedding = next((entry for name, entry in of_base.items() if is_named(name, EMBEDDINGS)), None)
    sentences = []
    for name, copy in copies.items():
        own = of_base.get(name, embedding if is_named(name, HEADS) else None)  # a tied head is the embedding
        another = "give the base that the adapter was trained on"
        if own is None or own.shape[1:] != copy.shape[1:] or (own.shape != copy.shape and not is_embedding(name)):
            got = f"the adapter comes with a '{name}' {copy.shape}, '{base}' has {own.shape if own else 'none'}"
            raise ModelError.because(got, "the base's own", another)
        rows = min(own.shape[0], copy.shape[0]) if copy.shape else 1
        if differing := _rows_that_differ(copy, own, rows):
            trained = name.rpartition(".")[0].split(".")[-1]
            raise ModelError.because(
                f"the adapter comes with a '{name}' that is not the one of '{base}': {differing} of {rows} rows differ",
                "the base's own, unchanged",
                another
                if re.search(r"\.(base_layer|original_module)\.", copy.name)
                else f"{another}; if it is given and '{trained}' was trained too, add '{trained}' to modules_to_save "
                f"in {CONFIG}",
            )
        resized = "" if own.shape == copy.shape else f" ({copy.shape[0]} rows, of which {rows} are the base's)"
        left = "is the base's own" if not resized else "is the base's, resized in training"
        sentences.append(f"'{name}' beside the adapter {left}{resized}: not merged")
    return sentences


def _rows_that_differ(copy: TensorEntry, own: TensorEntry, rows: int) -> int:
    """How many of the first rows hold other numbers."""
    step = max(1, 2**20 // max(1, copy.shape[-1] if copy.shape else 1))
    count = 0
    for first in range(0, rows, step):
        size = min(step, rows - first)
        a, b = (read_tensor(part_of(entry, first, size)).view(size, -1) for entry in (copy, own))
        count += int((~_equal(a, b)).any(1).sum())
    return count


def _equal(copy: Tensor, own: Tensor) -> Tensor:
    """Element by element. A copy in a coarser type is the base's own values, rounded."""
    return (copy.float() == own.float()) | (copy == own.to(copy.dtype))
