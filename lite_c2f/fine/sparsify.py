"""Treatments of the residue before it is added: sparsification, norm cap, rounding. All off by default.

A sparsification method is a function of this file and an entry of METHODS; `--sparsify` and `Treatment` offer what
METHODS holds. No torch is imported here, so that the command line can read the table.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from lite_c2f.errors import ConfigError
from lite_c2f.fine.ratios import is_number

if TYPE_CHECKING:
    from torch import Tensor


class Chunk(NamedTuple):
    """Rows of dW of one weight, and what a method may need for them."""

    delta: "Tensor"  # (rows, ...) float32 or float64: changed in place
    density: float  # share of the elements to keep, above 0 up to 1
    ratio: float  # of this weight
    threshold: float | None  # the k-th largest |dW| of the whole weight, k = density * elements; None: all are kept
    bits: "Callable[[], Tensor]"  # 16 random bits for each element, (elements,) int32
    task: "Callable[[], Tensor]"  # W_instruct - W_base of the same rows, in the type of delta


def magnitude(chunk: Chunk) -> "Tensor":
    """Magnitude pruning: keep the elements of a weight's residue that are largest, by |dW|."""
    if chunk.threshold is None:
        return chunk.delta
    return chunk.delta.mul_(chunk.delta.abs().float() >= chunk.threshold)


def dare(chunk: Chunk) -> "Tensor":
    """DARE (Yu et al. 2023): keep a random share of the elements and divide by it, which is unbiased.

    An element is kept when its 16 bits are below density * 65536; the divisor is the share of numbers that are.
    """
    if chunk.density == 1:
        return chunk.delta
    below = max(1, round(chunk.density * 2**16))
    return chunk.delta.mul_((chunk.bits() < below).view(chunk.delta.shape)).div_(below / 2**16)


def ties(chunk: Chunk) -> "Tensor":
    """TIES (after Yadav et al. 2023): keep the largest, and of those the elements that win the election of the sign.

    The sign is that of ratio * dW + (W_instruct - W_base). The instruct model's own task vector takes part in the
    election but is never trimmed: our own.
    """
    delta = magnitude(chunk)
    agrees = (delta * chunk.ratio + chunk.task()).mul_(delta).mul_(chunk.ratio) > 0
    return delta.mul_(agrees)


class Method(NamedTuple):
    """A sparsification method, and what it reads."""

    function: "Callable[[Chunk], Tensor]"  # the residue of a chunk, sparsified
    threshold: bool = False  # chunk.threshold
    random: bool = False  # chunk.bits
    base: bool = False  # chunk.task


METHODS = {
    "magnitude": Method(magnitude, threshold=True),
    "dare": Method(dare, random=True),
    "ties": Method(ties, threshold=True, base=True),
}
NONE = "none"
SPARSIFY = (NONE, *METHODS)
ROUNDINGS = ("nearest", "stochastic")


class Treatment(NamedTuple):
    """How the residue is treated. The defaults leave it as it is.

    sparsify: one of SPARSIFY; the method of that name keeps about `density` of the elements of each weight's residue.
    norm_cap: |change| of a weight is at most this times |W_instruct| (our own). rounding: `stochastic` rounds to
    bfloat16 up or down at random, unbiased, so that changes below half a step are not lost. seed: of `dare` and of
    stochastic rounding.
    """

    sparsify: str = NONE
    density: float | None = None
    seed: int = 0
    norm_cap: float | None = None
    rounding: str = "nearest"

    def check(self, dtypes: Iterable[str]) -> None:
        """Raise ConfigError naming the setting. dtypes: those the changed weights will be stored in."""
        for key, value, choices in (("sparsify", self.sparsify, SPARSIFY), ("rounding", self.rounding, ROUNDINGS)):
            if value not in choices:
                raise ConfigError.because(f"'{key}' is {value!r}", f"one of {', '.join(choices)}", "choose one")
        if (self.sparsify == NONE) != (self.density is None):
            got = f"'sparsify' is '{self.sparsify}' and 'density' is {self.density}"
            raise ConfigError.because(got, "both or neither", "give both, e.g. --sparsify dare --density 0.5")
        if self.density is not None and not (is_number(self.density) and 0 < self.density <= 1):
            raise ConfigError.because(f"'density' is {self.density!r}", "a number above 0 up to 1", "write e.g. 0.5")
        if type(self.seed) is not int or self.seed < 0:
            raise ConfigError.because(f"'seed' is {self.seed!r}", "a whole number from 0 up", "write e.g. 0")
        if self.norm_cap is not None and not (is_number(self.norm_cap) and self.norm_cap > 0):
            raise ConfigError.because(f"'norm_cap' is {self.norm_cap!r}", "a number above 0", "write e.g. 0.05")
        others = sorted(set(dtypes) - {"BF16"})
        if self.rounding == "stochastic" and others:
            got = f"'rounding' is 'stochastic' with weights in {others[0]}"
            raise ConfigError.because(got, "bfloat16", "add --dtype bfloat16, or round to nearest")

    @property
    def method(self) -> Method | None:
        """The sparsification method; None where the residue keeps all of its elements."""
        return METHODS.get(self.sparsify)

    @property
    def needs_base(self) -> bool:
        """Whether the method needs the base's weights."""
        return self.method is not None and self.method.base

    @property
    def is_random(self) -> bool:
        """Whether the result depends on the seed."""
        return self.rounding == "stochastic" or (self.method is not None and self.method.random)

    def describe(self) -> dict[str, Any]:
        """The treatment as merge.json holds it."""
        return self._asdict()
