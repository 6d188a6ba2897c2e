"""KL between two models, over whole distributions along the answers of the first one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lite_c2f.actors.answers import Answer
from lite_c2f.data.encode import pad_right
from lite_c2f.runtime.batch_size import BatchSize, groups_by_length, retry_smaller

Hidden = Callable[[Tensor], Tensor]  # tokens (B, T) -> final hidden states (B, T, H)
KL_TOKENS = 256  # positions whose logits are in memory at once: 64 MiB at vocabulary 32,000


@torch.no_grad()
def mean_kl(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Answer],
    policy: Hidden,
    reference: Hidden,
    head: Any,
    pad_id: int,
    device: torch.device,
    batch: int | BatchSize,
) -> float:
    """Mean KL(policy || reference) in nats per token of the answers, from final hidden states; 0 where none has text.

    prompts: token ids; policy: the model that answered; reference: the other one; head: the head of both.
    """
    size = batch if isinstance(batch, BatchSize) else BatchSize("batch", batch)
    rows = [
        (list(prompt), answer.text_tokens)
        for prompt, answer in zip(prompts, answers, strict=True)
        if answer.text_tokens
    ]
    lengths = [len(prompt) + len(text) for prompt, text in rows]
    if not rows:
        return 0.0

    def summed_kl(at_once: int) -> float:
        total = 0.0
        for chosen in groups_by_length(
            sorted(range(len(rows)), key=lengths.__getitem__), lengths, at_once * max(lengths)
        ):
            tokens, real = pad_right([rows[row][0] + rows[row][1] for row in chosen], pad_id)
            for index, row in enumerate(chosen):
                real[index, : len(rows[row][0])] = False
            tokens, mask = tokens.to(device), real[:, 1:].to(device)
            total += kl_sum(head, policy(tokens)[:, :-1][mask], reference(tokens)[:, :-1][mask])
        return total

    return retry_smaller(size, summed_kl) / sum(len(text) for _, text in rows)


def kl_sum(head: Any, left: Tensor, right: Tensor) -> float:
    """Sum of KL(left || right) over positions, from final hidden states (N, H), KL_TOKENS positions at a time."""
    total = 0.0
    for first, second in zip(left.split(KL_TOKENS), right.split(KL_TOKENS), strict=True):
        p, q = (head(hidden).log_softmax(-1) for hidden in (first, second))
        total += float((p.exp() * (p - q)).sum())
    return total
