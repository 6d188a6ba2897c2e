"""Trial of bitsandbytes' 4-bit layers on this device: whether they compute what their unpacked weights compute.

A build that does not fit the GPU loads, quantises and unpacks correctly, and multiplies wrongly without an error: seen
with published wheels for AMD's RDNA3 (relative error 1.0), and on CPUs once weights are repacked (`load.py`).
"""

from collections.abc import Iterable
from typing import NamedTuple

import bitsandbytes as bnb
import torch
from torch import Tensor

from lite_c2f.backbone.copies import dequantized
from lite_c2f.backbone.device import device_name
from lite_c2f.errors import ModelError

ROWS = (1, 2, 8, 40, 600)  # bitsandbytes has a kernel each for one, few and many rows; the counts depend on the GPU
OUT_FEATURES = 256
BLOCK_SIZE = 64  # weights per scale
REMEDY = "install bitsandbytes for this device (`lite-c2f doctor` tries it), or set model.quantization=none"
PACKED_TOLERANCE = 0.15  # NF4 of normal weights: 0.09


class LayerTrial(NamedTuple):
    """One product by a 4-bit layer."""

    dtype: torch.dtype
    width: int  # input features
    description: str  # such as "8 rows of 512"
    product: bool  # False: a comparison of weights after packing and unpacking
    error: float  # norm of the difference from the true product, relative to the norm of that
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance  # False for NaN as well


def tolerance(dtype: torch.dtype, width: int, *, on_gpu: bool = False) -> float:
    """Largest relative error that rounding explains, of dot products over `width` numbers.

    4 eps(dtype): code, scale, product and result are each rounded once by at most eps / 2, doubled for the device's own
    order of operations; and width * eps(float32), the bound of a sum in float32. on_gpu: tensor cores may compute
    float32 as TF32, whose eps is float16's.
    """
    eps = torch.finfo(dtype).eps
    if on_gpu:
        eps = max(eps, torch.finfo(torch.float16).eps)
    return 4 * eps + width * torch.finfo(torch.float32).eps


def trials(device: torch.device, dtypes: Iterable[torch.dtype], widths: Iterable[int]) -> list[LayerTrial]:
    """Products of a 4-bit layer against x @ W.T in float64, W its weights as unpacked; without and with gradient.

    widths: input features. The unpacked weights are compared with the original ones too. Some milliseconds per width.
    """
    result, on_gpu = [], device.type != "cpu"
    generator = torch.Generator().manual_seed(0)
    for width in widths:
        original = torch.randn(OUT_FEATURES, width, generator=generator) / width**0.5
        states = torch.randn(max(ROWS), width, generator=generator)
        output_gradient = torch.randn(max(ROWS), OUT_FEATURES, generator=generator)
        for dtype in dtypes:
            layer = _layer(original, dtype, device)
            weight = dequantized(layer).cpu().double()  # MPS has no float64
            error = _relative_error(weight, original.double())
            result.append(
                LayerTrial(dtype, width, f"weights of {width}, packed and unpacked", False, error, PACKED_TOLERANCE)
            )
            limit = tolerance(dtype, width, on_gpu=on_gpu)
            for rows in ROWS:
                x = states[:rows].to(device, dtype)
                true = x.cpu().double() @ weight.T
                with torch.no_grad():
                    error = _relative_error(layer(x), true)
                result.append(LayerTrial(dtype, width, f"{_counted(rows)} of {width}", True, error, limit))
            x.requires_grad_(True)
            g = output_gradient.to(device, dtype)
            product = layer(x)
            product.backward(g)
            error = _relative_error(product, true)
            result.append(LayerTrial(dtype, width, f"{_counted(rows)} of {width} in training", True, error, limit))
            error = _relative_error(x.grad, g.cpu().double() @ weight)
            limit = tolerance(dtype, OUT_FEATURES, on_gpu=on_gpu)
            result.append(LayerTrial(dtype, width, f"gradient of {_counted(rows)} of {width}", True, error, limit))
    return result


def check_four_bit(device: torch.device, dtype: torch.dtype, widths: Iterable[int]) -> str | None:
    """Raise ModelError when 4-bit layers of this type and these input features compute wrongly on this device.

    Returns a warning where weights are unpacked wrongly because of their width alone, as CPUs do; else None.
    """
    try:
        failed = [trial for trial in trials(device, [dtype], widths) if not trial.passed]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        line = " ".join(str(error).split())[:160]
        raise ModelError.because(f"4-bit layers fail on this device: {line}", "layers that compute", REMEDY) from None
    bad_widths = [trial for trial in failed if not trial.product and trial.width % BLOCK_SIZE]
    for trial in failed:
        if trial not in bad_widths:
            raise ModelError.because(
                f"4-bit layers are wrong on this device: {describe(trial, device)}",
                f"at most {trial.tolerance:.2g}",
                REMEDY,
            )
    if not bad_widths:
        return None
    return (
        f"warning: 4-bit {describe(bad_widths[0], device)} where 0.09 is usual: rows that are no multiple of "
        f"{BLOCK_SIZE} weights are unpacked wrongly here, so the base differs from the model in its folder; set "
        "model.quantization=none"
    )


def describe(trial: LayerTrial, device: torch.device) -> str:
    """A failed trial as text."""
    name = device_name(device)
    dtype = str(trial.dtype).removeprefix("torch.")
    return f"{trial.description}, {dtype}, relative error {trial.error:.2g} (bitsandbytes {bnb.__version__} on {name})"


def _layer(weight: Tensor, dtype: torch.dtype, device: torch.device) -> bnb.nn.Linear4bit:
    """A layer as the base's are loaded: NF4, double quantisation, not repacked on a CPU."""
    rows, width = weight.shape
    layer = bnb.nn.Linear4bit(width, rows, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta")
    layer.weight = bnb.nn.Params4bit(weight.to(dtype), requires_grad=False, compress_statistics=True, quant_type="nf4")
    layer = layer.to(device)
    layer.support_avx512bf16_for_cpu = False
    return layer.eval()


def _counted(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"


def _relative_error(result: Tensor | None, true: Tensor) -> float:
    if result is None or result.shape != true.shape:
        return float("inf")
    return float((result.detach().cpu().double() - true).norm() / true.norm())
