"""Change of one weight, by chunks of rows: residue, treatment, rounding, and sums for the report."""

import math
from functools import partial

import torch
from torch import Tensor

from lite_c2f.errors import ModelError
from lite_c2f.fine import stochastic
from lite_c2f.fine.delta import DTYPES, Delta, LowRank, read_tensor
from lite_c2f.fine.report import TensorChange
from lite_c2f.fine.shards import Buffer, TensorEntry, part_of
from lite_c2f.fine.sparsify import Chunk, Treatment
from lite_c2f.fine.threshold import MapChunks, magnitude_threshold


class WeightChange:
    """ratio * dW of one weight after its treatment; used by several threads at once.

    What depends on the whole weight (a magnitude threshold, norms for a cap) is computed in the constructor, in passes
    over its chunks.
    """

    def __init__(
        self,
        entry: TensorEntry,
        base: TensorEntry | None,
        delta: Delta,
        ratio: float,
        treatment: Treatment,
        parts: MapChunks,
        random_name: str | None = None,
    ) -> None:
        self.entry, self.base, self.ratio, self.treatment = entry, base, ratio, treatment
        self._random_name = random_name or entry.name  # copies of a tied weight share their random bits
        self.columns = math.prod(entry.shape[1:])
        self.cap: float | None = None
        self.touched = False  # whether a chunk changed
        plain = treatment._replace(seed=0) == Treatment()
        self.sum = delta.open_sum(ratio) if plain and isinstance(delta, LowRank) else None
        self._dw, self._delta_needs_base = delta.open(), delta.needs_base
        self.needs_base = delta.needs_base or treatment.needs_base
        self._threshold: float | None = None
        method, density = treatment.method, treatment.density
        if method is not None and method.threshold and density is not None and density < 1:
            self._threshold = magnitude_threshold(parts, self._untreated, math.prod(entry.shape), density)
        if treatment.norm_cap is not None:
            self.cap = self._cap(parts, treatment.norm_cap)

    def rows(self, rows: slice, weight: Tensor, base: Tensor | None) -> Tensor:
        """The change of these rows, in float32 or float64. weight, base: the same rows of W_instruct and W_base."""
        method, density = self.treatment.method, self.treatment.density
        change = self._dw(rows, base)
        if method is not None and density is not None:

            def task() -> Tensor:
                assert base is not None  # checked before the merge begins
                return weight.to(change.dtype) - base.to(change.dtype)

            bits = partial(self.bits, self.treatment.sparsify, rows)
            change = method.function(Chunk(change, density, self.ratio, self._threshold, bits, task))
        if self.ratio != 1:
            change.mul_(self.ratio)
        if self.cap is not None and self.cap < 1:
            change.mul_(self.cap)
        return change

    def bits(self, purpose: str, rows: slice) -> Tensor:
        """16 random bits for every element of these rows, in order."""
        start, count = rows.start * self.columns, (rows.stop - rows.start) * self.columns
        return stochastic.random_bits(self.treatment.seed, self._random_name, purpose, start, count)

    def read_base(self, rows: slice) -> Tensor | None:
        """These rows of W_base in its own dtype; None without a base."""
        return None if self.base is None else self._base_rows(rows)

    def _base_rows(self, rows: slice) -> Tensor:
        assert self.base is not None  # checked before the merge begins
        part = read_tensor(part_of(self.base, rows.start, rows.stop - rows.start))
        return part.view(-1, *self.base.shape[1:])

    def _untreated(self, rows: slice) -> Tensor:
        return self._dw(rows, self._base_rows(rows) if self._delta_needs_base else None)

    def _cap(self, parts: MapChunks, norm_cap: float) -> float:
        """The factor for the change so that |change| <= norm_cap * |W_instruct|."""

        def squares(rows: slice) -> tuple[float, float]:
            weight = read_tensor(part_of(self.entry, rows.start, rows.stop - rows.start))
            weight = weight.view(-1, *self.entry.shape[1:])
            change = self.rows(rows, weight, self.read_base(rows)).double()
            return float(change.square().sum()), float(weight.double().square().sum())

        change, weight = (math.sqrt(sum(part)) for part in zip(*parts(squares), strict=True))
        return min(1.0, norm_cap * weight / change) if change else 1.0


def merged_rows(
    work: WeightChange, rows: slice, weight: Tensor, dtype: torch.dtype, counts: bool
) -> tuple[Tensor, TensorChange]:
    """(W_fine of these rows in the output's dtype, rounded once; its sums, which are nearly empty unless `counts`).

    weight (rows, ...) as stored; the sum is in float32, or in float64 where the delta is.
    """
    if work.sum is not None and not counts:
        rounded = work.sum(rows, weight).to(dtype)
        return rounded, _uncounted(work, weight, rounded)
    base = work.read_base(rows) if counts or work.needs_base else None
    change = work.rows(rows, weight, base).view(weight.shape)
    merged = weight.to(change.dtype) + change
    if work.treatment.rounding == "stochastic":
        rounded = stochastic.round_stochastically(merged, work.bits("rounding", rows))
    else:
        rounded = merged.to(dtype)
    if not counts:
        return rounded, _uncounted(work, weight, rounded)
    return rounded, compare_rows(weight, change.float(), rounded, base, sparse=work.treatment.sparsify != "none")


def compare_rows(
    weight: Tensor, intended: Tensor, merged: Tensor, base: Tensor | None = None, sparse: bool = True
) -> TensorChange:
    """Compare merged rows with the instruct model's rows in the same dtype, so that a change of dtype does not count.

    weight (rows, in) as stored; intended (rows, in) float32; merged (rows, in) in the output's dtype; base as stored.
    sparse: whether the intended change may have zeros. Nine passes over a chunk here are half of a merge's time.
    """
    stored = weight.float()
    before, same = (stored, weight) if weight.dtype == merged.dtype else (rounded := weight.to(merged.dtype), rounded)
    before = before.float()
    realised = merged.float() - before if merged.dtype == torch.float32 else merged.float().sub_(before)
    different = int(torch.count_nonzero(_bits(merged) - _bits(same)))  # a third faster than as floats
    nonzero = int(torch.count_nonzero(intended)) if sparse else weight.numel()
    change = TensorChange(
        elements=weight.numel(),
        touched=int(different > 0),
        counted=weight.numel(),
        kept=nonzero,
        unchanged=max(0, nonzero - different),
        weight_square=_dot_product(stored, stored),
        intended_square=_dot_product(intended, intended),
        realised_intended=_dot_product(realised, intended),
    )
    if base is not None:
        task = base.to(torch.float32, copy=True)
        change.compared = base.numel()
        change.base_square = _dot_product(task, task)
        task.sub_(stored)  # -T
        change.task_square, change.task_intended = _dot_product(task, task), -_dot_product(task, intended)
    return change


def _uncounted(work: WeightChange, weight: Tensor, rounded: Tensor) -> TensorChange:
    """The sums of a chunk that is not counted: only whether anything changed."""
    if not work.touched:  # stops at the first difference
        work.touched = not torch.equal(_bits(rounded), _bits(weight.to(rounded.dtype)))
    return TensorChange(elements=weight.numel(), touched=int(work.touched))


def _bits(tensor: Tensor) -> Tensor:
    """A tensor's bit patterns, as integers."""
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def check_finite(tensor: Tensor, entry: TensorEntry) -> None:
    """Raise ModelError naming the weight when the output would hold NaN or infinity."""
    if not tensor.numel():
        return
    smallest, largest = tensor.aminmax()  # both NaN if one is; 17 times as fast as isfinite().all()
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        raise ModelError.because(
            f"'{entry.name}' holds NaN or infinity after the merge",
            f"finite weights in {str(tensor.dtype).removeprefix('torch.')}",
            f"check '{entry.file}', lower the ratio, or choose bfloat16 instead of float16",
        )


def tensor_of(chunk: Buffer, entry: TensorEntry) -> Tensor:
    """A chunk's bytes as rows of the tensor they are from, without a copy."""
    return torch.from_numpy(chunk).view(DTYPES[entry.dtype]).view(-1, *entry.shape[1:])


def bytes_of(tensor: Tensor) -> memoryview:
    """A contiguous tensor's bytes, without a copy."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def _dot_product(left: Tensor, right: Tensor) -> float:
    # float32 is exact to about 3e-6 and 15 times as fast as a float64 sum, but may overflow.
    left, right = left.reshape(-1), right.reshape(-1)
    value = float(torch.dot(left, right))
    return value if math.isfinite(value) else float(torch.dot(left.double(), right.double()))
