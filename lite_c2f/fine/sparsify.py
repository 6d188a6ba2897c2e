"""What is done to a residue before it is added: sparsified, capped, joined by the quantisation error. Off by default.

Every element's fate depends on the seed, the weight's name and the element's place alone: neither the order of shards
nor the size of a chunk nor the number of threads changes a result.
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lite_c2f.errors import ConfigError

Sparsify = Literal["none", "magnitude", "dare", "ties"]
Rounding = Literal["nearest", "stochastic"]
METHODS = ("none", "magnitude", "dare", "ties")
ROUNDINGS = ("nearest", "stochastic")
NF4_BLOCK = 64  # elements that share a scale
NESTED_BLOCK = 256  # scales that share a scale, with double quantisation


class Treatment(NamedTuple):
    """How the residue is treated. The defaults leave it alone.

    sparsify: `magnitude` keeps the `density` largest |dW| of each weight; `dare` keeps a random share and divides by it
    (Yu et al. 2023, DARE); `ties` keeps the largest, and of those the elements whose sign is that of
    ratio * dW + (W_instruct - W_base) (after Yadav et al. 2023, TIES; here the instruct model's own task vector has a
    say in the sign but is never trimmed: our own). norm_cap: |change| of a weight is at most this times |W_instruct|
    (our own). rounding: `stochastic` rounds to bfloat16 up or down by chance, right on average, so that changes below
    half a step survive. qerr_ratio: share of dequant(NF4(W_base)) - W_base that is added, whatever the ratio, to the
    linear weights within layers that the adapter changes at a ratio other than 0, for adapters trained on a 4-bit base
    (our own).
    """

    sparsify: Sparsify = "none"
    density: float | None = None
    seed: int = 0
    norm_cap: float | None = None
    rounding: Rounding = "nearest"
    qerr_ratio: float = 0.0

    def check(self, dtypes: Iterable[str]) -> None:
        """Raise ConfigError naming the setting. dtypes: those the changed weights will be stored in."""
        for key, value, known in (
            ("sparsify", self.sparsify, METHODS),
            ("rounding", self.rounding, ROUNDINGS),
        ):
            if value not in known:
                raise ConfigError.because(f"'{key}' is {value!r}", f"one of {', '.join(known)}", "choose one")
        if (self.sparsify == "none") != (self.density is None):
            got = f"'sparsify' is '{self.sparsify}' and 'density' is {self.density}"
            raise ConfigError.because(got, "both or neither", "give both, e.g. --sparsify dare --density 0.5")
        if self.density is not None and not (is_number(self.density) and 0 < self.density <= 1):
            raise ConfigError.because(f"'density' is {self.density!r}", "a number above 0 up to 1", "write e.g. 0.5")
        if type(self.seed) is not int or self.seed < 0:
            raise ConfigError.because(f"'seed' is {self.seed!r}", "a whole number from 0 up", "write e.g. 0")
        if self.norm_cap is not None and not (is_number(self.norm_cap) and self.norm_cap > 0):
            raise ConfigError.because(f"'norm_cap' is {self.norm_cap!r}", "a number above 0", "write e.g. 0.05")
        if not (is_number(self.qerr_ratio) and 0 <= self.qerr_ratio <= 1):
            raise ConfigError.because(f"'qerr_ratio' is {self.qerr_ratio!r}", "a number from 0 to 1", "write e.g. 0")
        wrong = sorted(set(dtypes) - {"BF16"})
        if self.rounding == "stochastic" and wrong:
            got = f"'rounding' is 'stochastic' with weights in {wrong[0]}"
            raise ConfigError.because(got, "bfloat16", "add --dtype bfloat16, or round to nearest")

    @property
    def needs_base(self) -> bool:
        """Are the base's weights part of the arithmetic?"""
        return self.sparsify == "ties" or self.qerr_ratio != 0

    def describe(self) -> dict[str, Any]:
        """As the report and the model card name it."""
        return self._asdict()


def is_number(value: Any) -> bool:
    """A finite int or float, no bool, that fits into a float."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


Parts = Callable[[Callable[[slice], Any]], Iterable[Any]]
"""Calls a function for every chunk of rows of a weight, in order, and gives its results."""


def magnitude_threshold(parts: Parts, delta: Callable[[slice], Tensor], elements: int, density: float) -> float:
    """The k-th largest |dW| of a weight, k = density * elements, exactly, in chunks: two counts of float32's bits.

    The bits of a float that is not negative are ordered as the float is: the upper 16 are counted first, then the lower
    16 of those that share the bin of the k-th. Elements equal to the threshold are all kept.
    """
    wanted = max(1, round(density * elements))

    def count(shift: int, bins: int, upper: int | None) -> Tensor:
        def one(rows: slice) -> Tensor:
            bits = delta(rows).float().abs_().view(torch.int32).view(-1)
            if upper is not None:
                bits = bits[(bits >> 16) == upper] & 0xFFFF
            return torch.bincount(bits >> shift, minlength=bins)

        total = torch.zeros(bins, dtype=torch.int64)
        for part in parts(one):
            total += part
        return total

    def bin_of(counts: Tensor, rank: int) -> tuple[int, int]:
        above = torch.flip(torch.cumsum(torch.flip(counts, [0]), 0), [0])  # how many lie in this bin or above
        place = int((above >= rank).nonzero()[-1])
        return place, rank - (int(above[place + 1]) if place + 1 < len(above) else 0)

    upper, left = bin_of(count(16, 2**15, None), wanted)
    lower, _ = bin_of(count(0, 2**16, upper), left)
    return float(torch.tensor([(upper << 16) | lower], dtype=torch.int32).view(torch.float32))


def random_bits(seed: int, name: str, purpose: str, start: int, count: int) -> Tensor:
    """16 random bits for `count` elements of a weight from its `start`-th on: (count,) int32, 0 to 65535.

    Counter-based (Philox, Salmon et al. 2011): element i has the same bits whatever is drawn beside it.
    """
    digest = hashlib.sha256(f"{seed}\n{purpose}\n{name}".encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8")
    block, skip = divmod(start, 16)  # a counter gives 256 bits
    blocks = -(-(skip + count) // 16)
    raw = np.random.Philox(key=key, counter=block).random_raw(4 * blocks)
    bits = raw.astype("<u8", copy=False).view("<u2")[skip : skip + count]
    return torch.from_numpy(bits.astype(np.int32))


def drop_at_random(delta: Tensor, bits: Tensor, density: float) -> Tensor:
    """DARE: keep the elements whose 16 bits are below density * 65536, divided by the share that is; in place."""
    below = max(1, round(density * 2**16))
    return delta.mul_((bits < below).view(delta.shape)).div_(below / 2**16)


def elect_signs(delta: Tensor, ratio: float, task: Tensor) -> Tensor:
    """Keep the elements of dW whose sign is that of ratio * dW + task, task = W_instruct - W_base; in place."""
    agreed = (delta * ratio + task).mul_(delta).mul_(ratio) > 0
    return delta.mul_(agreed)


def round_stochastically(values: Tensor, bits: Tensor) -> Tensor:
    """float32 -> bfloat16, up with the probability of the part that is cut off: right on average.

    Adding 16 random bits below bfloat16's last one carries into it just as often. Values that bfloat16 has stay.
    """
    raised = values.float().contiguous().view(torch.int32) + bits.view(values.shape)
    return (raised >> 16).to(torch.int16).view(torch.bfloat16)


class QuantisationError:
    """dequant(NF4(W_base)) - W_base with double quantisation, in chunks of rows, as bitsandbytes makes it.

    The scales of all blocks are quantised together (their mean is taken off first), so they are gathered beforehand.
    """

    def __init__(self, parts: Parts, base: Callable[[slice], Tensor], columns: int) -> None:
        import bitsandbytes.functional as bnb

        self._bnb, self._columns = bnb, columns
        scales = torch.cat(list(parts(lambda rows: base(rows).float().view(-1, NF4_BLOCK).abs().amax(1))))
        offset = scales.mean()
        coded, state = bnb.quantize_blockwise(scales - offset, blocksize=NESTED_BLOCK)
        self._scales = bnb.dequantize_blockwise(coded, state) + offset

    def rows(self, rows: slice, base: Tensor) -> Tensor:
        """Those rows of the error in float32. base: the same rows in the base's own dtype."""
        coded, state = self._bnb.quantize_4bit(base.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
        first = rows.start * self._columns // NF4_BLOCK
        state.absmax = self._scales[first : first + base.numel() // NF4_BLOCK].contiguous()
        return self._bnb.dequantize_4bit(coded, state).view(base.shape).float() - base.float()
