"""Scalar heads: one number per token from its hidden state, in float32."""

import torch
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """w . h + c in float32. hidden: (..., H) -> (...)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @classmethod
    def of(cls, weight: Tensor, bias: float = 0.0) -> "ScalarHead":
        """A head with this weight (1, H) and bias."""
        head = cls(weight.shape[1])
        with torch.no_grad():
            head.linear.weight.copy_(weight)
            head.linear.bias.fill_(bias)
        return head

    def rescaled(self, mean: float, std: float) -> "ScalarHead":
        """A new head that gives (this head - mean) / std: a reward head as the first critic of normalised rewards."""
        return ScalarHead.of(self.linear.weight.detach() / std, (self.linear.bias.item() - mean) / std)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values (...) float32 of hidden states (..., H), also under autocast."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.linear(hidden.float()).squeeze(-1)
