"""Delta of one weight by an adapter, as rows of dW that are read from the file when needed."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lite_c2f.fine.shards import TensorEntry, part_of, read_bytes

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

Rows = Callable[[slice, Tensor | None], Tensor]
"""(slice of rows, the base's rows in it) -> the same rows of dW, float32 or float64."""


def read_tensor(entry: TensorEntry) -> Tensor:
    """One tensor of a safetensors file in its own dtype, in memory of its own. Raises ModelError if it ends early."""
    buffer = read_bytes(entry)
    return torch.from_numpy(buffer).view(DTYPES[entry.dtype]).view(entry.shape)


@dataclass(frozen=True)
class Factor:
    """One of the two matrices of a low-rank delta, in its file."""

    entry: TensorEntry
    transposed: bool = False  # stored as its transpose

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns) as used, after transposing."""
        return self.entry.shape[::-1] if self.transposed else self.entry.shape

    def read(self) -> Tensor:
        """The matrix in float32."""
        tensor = read_tensor(self.entry).float()
        return tensor.T.contiguous() if self.transposed else tensor


@dataclass(frozen=True)
class LowRank:
    """dW = scaling * B @ A (Hu et al. 2021, equation 3), scaling = alpha / r or alpha / sqrt(r)."""

    down: Factor  # A (r, in)
    up: Factor  # B (out, r)
    scaling: float
    needs_base = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in), the shape of the weight that this is a delta of."""
        return self.up.shape[0], self.down.shape[1]

    def transposed(self) -> "LowRank":
        """The delta of the transposed weight: (B @ A)^T = A^T @ B^T."""
        down, up = (Factor(factor.entry, not factor.transposed) for factor in (self.up, self.down))
        return LowRank(down, up, self.scaling)

    def open(self) -> Rows:
        """Read both factors; rows of dW in float32, the product and then the scaling, as PEFT multiplies them."""
        down, up, scaling = self.down.read(), self.up.read(), self.scaling

        def rows_of(rows: slice, base: Tensor | None) -> Tensor:
            return (up[rows] @ down).mul_(scaling)

        return rows_of

    def open_sum(self, ratio: float) -> Callable[[slice, Tensor], Tensor] | None:
        """(rows, W's same rows) -> W + ratio * dW in float32, in one pass over W; None if that rounds differently.

        A factor that is a power of two can be multiplied into B beforehand without rounding. Up to rank 128 this gives
        the same bits as product and sum (from 256 on BLAS sums in parts), in 80% of the time.
        """
        factor = self.scaling * ratio
        if abs(math.frexp(factor)[0]) != 0.5 or self.down.shape[0] > 128:
            return None
        down, up = self.down.read(), self.up.read().mul_(factor)

        def sum_of(rows: slice, weight: Tensor) -> Tensor:
            return weight.to(torch.float32, copy=True).addmm_(up[rows], down)

        return sum_of


@dataclass(frozen=True)
class Bias:
    """db = scaling * b, the bias beside lora_B (`lora_bias`)."""

    entry: TensorEntry  # (out,)
    scaling: float
    needs_base = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(out,)"""
        return self.entry.shape

    def open(self) -> Rows:
        """Rows of db in float32."""
        value = read_tensor(self.entry).float().mul_(self.scaling)

        def rows_of(rows: slice, base: Tensor | None) -> Tensor:
            return value[rows].clone()

        return rows_of


@dataclass(frozen=True)
class Absolute:
    """dW = X - W_base: values that replace the base's (`modules_to_save`, `bias`)."""

    entry: TensorEntry
    needs_base = True

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight, and of X."""
        return self.entry.shape

    def open(self) -> Rows:
        """Rows of dW in float64, where the difference of two floats of 16 or 32 bits is exact or nearly so."""
        entry = self.entry

        def rows_of(rows: slice, base: Tensor | None) -> Tensor:
            assert base is not None  # `needs_base`
            part = part_of(entry, rows.start, rows.stop - rows.start)
            return read_tensor(part).double().view(base.shape).sub_(base.double())

        return rows_of


@dataclass(frozen=True)
class TokenRows:
    """dW = X - W_base in the rows of a few tokens, 0 elsewhere (`trainable_token_indices`)."""

    entry: TensorEntry  # (tokens, in)
    tokens: tuple[int, ...]
    shape: tuple[int, ...]  # (largest token + 1, in): the smallest possible shape of the weight
    needs_base = True

    def open(self) -> Rows:
        """Rows of dW in float64."""
        values, at = read_tensor(self.entry).double(), {token: index for index, token in enumerate(self.tokens)}

        def rows_of(rows: slice, base: Tensor | None) -> Tensor:
            assert base is not None  # `needs_base`
            delta = torch.zeros(base.shape, dtype=torch.float64)
            for token, index in at.items():
                if rows.start <= token < rows.stop:
                    delta[token - rows.start] = values[index] - base[token - rows.start].double()
            return delta

        return rows_of


Delta = LowRank | Bias | Absolute | TokenRows
