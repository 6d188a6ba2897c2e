"""Tokens to scores: what the reward model says of a prompt and a response."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lite_c2f.backbone.roles import Roles
from lite_c2f.data.encode import pad_right


class Normalizer(NamedTuple):
    """The reward model's own mean and spread on held-out pairs: scores are standardised by them."""

    mean: float
    std: float

    def __call__(self, score: float) -> float:
        return (score - self.mean) / self.std


def scored_row(prompt: Sequence[int], text_tokens: Sequence[int], ended: bool, eos_id: int) -> list[int]:
    """The row the reward model reads: prompt, response without its ending, and EOS if the response ended.

    A response that ended with the next turn's marker ends with EOS here, as the answers it was trained on do; one that
    ran into the limit has no EOS, as the cut-off answers it was taught to reject.
    """
    return [*prompt, *text_tokens, *([eos_id] if ended else [])]


@torch.no_grad()
def score(roles: Roles, rows: Sequence[Sequence[int]], *, pad_id: int, batch: int = 32) -> Tensor:
    """Raw scores (N,) float32 on the CPU, read at the last token of each row by the reward head.

    Rows are scored in order of length, so that a batch carries little padding.
    """
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    scores = torch.empty(len(rows))
    with roles.use("reward"):
        for first in range(0, len(order), batch):
            chosen = order[first : first + batch]
            tokens, mask = pad_right([list(rows[row]) for row in chosen], pad_id)
            hidden = roles.hidden(tokens.to(roles.device))
            last = (mask.sum(1) - 1).to(roles.device)
            picked = hidden[torch.arange(len(chosen), device=roles.device), last]
            scores[chosen] = roles.heads["reward"](picked).float().cpu()
    return scores
