"""Copies of weights for faster sampling. The model itself is unchanged.

On a GPU: the adapters as a copy in the base's half precision. They train in float32, and autocast would cast them
again in every step. On a CPU: base and adapter of every linear layer as one dense float32 matrix, where memory allows
it: unpacking 4-bit weights and two thin products per layer are most of a step there; and products of a few rows in the
order that is faster there. The adapter is not merged into the 4-bit base itself, which drifts 6% per cycle of merging
and unmerging.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import bitsandbytes as bnb
import psutil
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lite_c2f.backbone.device import has_bfloat16

MEMORY_SHARE = 0.25  # of the available memory, for dense copies
# Rows of which W @ x.T is faster than x @ W.T on CPUs with AMX, with MKL 2024.2 and oneDNN 3.12: 0.5 to 0.9 of the time
# in float32, 0.6 to 0.9 in bfloat16; on a CPU without (AMD's EPYC of AVX2) it takes up to 2.7 times as long. Not so for
# weights that stay in a core's cache.
FEW_ROWS = {torch.float32: range(8, 16), torch.bfloat16: range(2, 65)} if has_bfloat16(torch.device("cpu")) else {}
LARGE = 2**18  # elements of a weight


@contextlib.contextmanager
def sampling_copies(model: nn.Module) -> Iterator[None]:
    """Make the model, with its active adapters, sample faster inside the block. Our own.

    Outputs are the same up to rounding. Neither train nor switch adapters inside.
    """
    layers = _linear_layers(model)
    if next(model.parameters()).device.type != "cpu":
        with half_copies(layers):
            yield
        return
    with dense_copies(layers) if has_room(layers) else half_copies(layers), dense_copies(_plain_layers(model, layers)):
        yield


def _linear_layers(model: nn.Module) -> list[nn.Module]:
    """Linear layers with an adapter, and 4-bit ones without."""
    adapted: list[nn.Module] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    inside = {id(getattr(layer, "base_layer", None)) for layer in adapted}
    bare = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit) and id(m) not in inside]
    return adapted + bare


def _plain_layers(model: nn.Module, layers: list[nn.Module]) -> list[nn.Module]:
    """The other linear layers, a model's head among them."""
    inside = {id(module) for layer in layers for module in layer.modules()}
    return [module for module in model.modules() if type(module) is nn.Linear and id(module) not in inside]


@contextlib.contextmanager
def dense_copies(layers: list[nn.Module]) -> Iterator[None]:
    """Base and active adapters of every layer as one matrix, which is no copy where it is a weight that is there."""
    before = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            base: Any = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
            weight = dequantized(base)
            if isinstance(layer, LoraLayer) and not layer.disable_adapters:
                for name in layer.active_adapters:
                    delta: Any = layer.get_delta_weight(name)  # type: ignore[operator]
                    weight = weight.float() + (delta.T if isinstance(base, Conv1D) else delta).float()
            layer.forward = functools.partial(_linear, weight, base.bias)  # type: ignore[union-attr, arg-type]
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.forward = forward


def _linear(weight: Tensor, bias: Tensor | None, hidden: Tensor) -> Tensor:
    """Computed in the weight's type: bfloat16 would round away most of a small adapter."""
    states, rows = hidden.to(weight.dtype), hidden.numel() // hidden.shape[-1]
    if rows in FEW_ROWS.get(weight.dtype, ()) and weight.numel() >= LARGE and weight.is_contiguous():
        product = torch.mm(weight, states.reshape(rows, -1).t()).t().contiguous().view(*hidden.shape[:-1], -1)
        product = product if bias is None else product + bias
    else:
        product = functional.linear(states, weight, None if bias is None else bias.to(weight.dtype))
    return product.to(hidden.dtype)


def dequantized(layer: Any) -> Tensor:
    """The weight (out, in) of a linear layer as a matrix, unpacked where it is 4-bit; GPT-2 stores (in, out)."""
    weight = layer.weight
    if isinstance(layer, Conv1D):
        return weight.data.T
    if isinstance(weight, bnb.nn.Params4bit):
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    return weight.data


@contextlib.contextmanager
def half_copies(layers: list[nn.Module]) -> Iterator[None]:
    """Adapter weights in the type of the base's arithmetic; the float32 ones come back untouched."""
    originals: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for layer in layers:
            if not isinstance(layer, LoraLayer) or layer.disable_adapters:
                continue
            base: Any = layer.get_base_layer()
            dtype = getattr(base, "compute_dtype", None) or base.weight.dtype
            if dtype not in (torch.bfloat16, torch.float16):
                continue
            for name in layer.active_adapters:
                for part in (layer.lora_A[name], layer.lora_B[name]):
                    weight: Any = part.weight
                    originals.append((weight, weight.data))
                    weight.data = weight.data.to(dtype)
        yield
    finally:
        for parameter, data in originals:
            parameter.data = data


def has_room(layers: Sequence[nn.Module]) -> bool:
    """Whether the dense copies fit into the available memory: free, or held by the page cache alone."""
    needed = sum(layer.in_features * layer.out_features for layer in layers) * 4  # type: ignore[operator, misc]
    return needed <= MEMORY_SHARE * psutil.virtual_memory().available
