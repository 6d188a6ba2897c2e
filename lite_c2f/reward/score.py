"""Scores of the reward model for prompts and responses."""

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from lite_c2f.backbone.roles import Roles
from lite_c2f.data.encode import pad_right
from lite_c2f.runtime.batch_size import BatchSize, groups_by_length, retry_smaller


def scored_row(prompt: Sequence[int], text_tokens: Sequence[int], ended: bool, eos_id: int) -> list[int]:
    """The row the reward model reads: prompt, response without its ending, and EOS if the response ended.

    A response that ended with the next turn's marker ends with EOS here, as the answers it was trained on do; one that
    ran into the limit has no EOS, like the cut-off answers that it was trained to reject.
    """
    return [*prompt, *text_tokens, *([eos_id] if ended else [])]


def read_at_last_token(model: Any) -> None:
    """Make a Transformers sequence classifier read its score at the last token of its right-padded rows, as `score`.

    The stock forward pass takes the last token that is not `config.pad_token_id`: where that is EOS, EOS is never read,
    and a text cut off scores as one that ended. Here the row's length counts, from the attention mask, which the
    decoder does not need (see `Roles.hidden`). The head computes in float32.
    """
    model.forward = MethodType(_forward, model)


def _forward(model: Any, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SequenceClassifierOutputWithPast:
    """Scores (B, 1) of right-padded rows (B, T)."""
    decoder = getattr(model, model.base_model_prefix)
    hidden = decoder(input_ids=input_ids, use_cache=False).last_hidden_state
    last = attention_mask.sum(1) - 1
    picked = hidden[torch.arange(len(last), device=last.device), last]
    with torch.autocast(picked.device.type, enabled=False):
        scores: Any = model.score(picked.float())
    return SequenceClassifierOutputWithPast(logits=scores)


def score(
    roles: Roles, rows: Sequence[Sequence[int]], *, pad_id: int, batch: int | BatchSize = 32, role: str = "reward"
) -> Tensor:
    """Raw scores (N,) float32 on the CPU, read at the last token of each row by the head of a reward model's role.

    batch: rows of the greatest length scored at once; shorter ones share its tokens, grouped by length, so that a
    group carries little padding. Out of GPU memory, all are scored again in smaller groups.
    """
    size = batch if isinstance(batch, BatchSize) else BatchSize("batch", batch)
    lengths = [len(row) for row in rows]
    return retry_smaller(size, lambda at_once: _score(roles, role, rows, lengths, pad_id, at_once * max(lengths)))


@torch.no_grad()
def _score(
    roles: Roles, role: str, rows: Sequence[Sequence[int]], lengths: list[int], pad_id: int, budget: int
) -> Tensor:
    order = sorted(range(len(rows)), key=lambda row: lengths[row])
    scores = torch.empty(len(rows), dtype=torch.float32)
    with roles.use(role):
        for chosen in groups_by_length(order, lengths, budget):
            tokens, mask = pad_right([list(rows[row]) for row in chosen], pad_id)
            last = mask.sum(1) - 1
            scores[chosen] = score_at(roles, tokens.to(roles.device), last.to(roles.device), role).cpu()
    return scores


def score_at(roles: Roles, tokens: Tensor, last: Tensor, role: str = "reward") -> Tensor:
    """Scores (B,) float32 of rows (B, T), read at position last (B,) of each: the part of scoring on the device."""
    hidden = roles.hidden(tokens)
    picked = hidden[torch.arange(len(tokens), device=tokens.device), last]
    return roles.heads[role](picked)
