"""Threshold of magnitude pruning: the k-th largest element of a weight, counted chunk by chunk."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

MapChunks = Callable[[Callable[[slice], Any]], Iterable[Any]]
"""Calls a function for every chunk of rows of a weight, in order, and returns its results."""


def magnitude_threshold(parts: MapChunks, delta: Callable[[slice], Tensor], elements: int, density: float) -> float:
    """The k-th largest |dW| of a weight, k = density * elements, exactly, in chunks: two counts of float32's bits.

    The bits of a float that is not negative are ordered as the float is: the upper 16 are counted first, then the lower
    16 of those that share the bin of the k-th. Elements equal to the threshold are all kept.
    """
    rank = max(1, round(density * elements))

    def count(shift: int, bins: int, upper: int | None) -> Tensor:
        def count_chunk(rows: slice) -> Tensor:
            bits = delta(rows).float().abs_().view(torch.int32).view(-1)
            if upper is not None:
                bits = bits[(bits >> 16) == upper] & 0xFFFF
            return torch.bincount(bits >> shift, minlength=bins)

        total = torch.zeros(bins, dtype=torch.int64)
        for counts in parts(count_chunk):
            total += counts
        return total

    def bin_of(counts: Tensor, rank: int) -> tuple[int, int]:
        above = torch.flip(torch.cumsum(torch.flip(counts, [0]), 0), [0])  # how many lie in this bin or above
        index = int((above >= rank).nonzero()[-1])
        return index, rank - (int(above[index + 1]) if index + 1 < len(above) else 0)

    upper, rank_in_bin = bin_of(count(16, 2**15, None), rank)
    lower, _ = bin_of(count(0, 2**16, upper), rank_in_bin)
    return float(torch.tensor([(upper << 16) | lower], dtype=torch.int32).view(torch.float32))
