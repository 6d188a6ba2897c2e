"""4-bit layers against their unpacked weights; real NF4, and layers that are broken on purpose."""

import bitsandbytes as bnb
import pytest
import torch

from lite_c2f.backbone import four_bit
from lite_c2f.backbone.four_bit import ROWS, LayerTrial, check_four_bit, tolerance, trials
from lite_c2f.errors import ModelError

CPU = torch.device("cpu")


def test_tolerance_is_the_rounding_of_the_type():
    """eps: 2^-7 in bfloat16, 2^-10 in float16, 2^-23 in float32, in which 512 products are summed up."""
    assert tolerance(torch.bfloat16, 512) == 4 * 2**-7 + 512 * 2**-23
    assert tolerance(torch.float16, 512) == 4 * 2**-10 + 512 * 2**-23
    assert tolerance(torch.float32, 512) == (4 + 512) * 2**-23
    assert tolerance(torch.float32, 512, on_gpu=True) == 4 * 2**-10 + 512 * 2**-23  # tensor cores may round to TF32


def test_4bit_layers_are_right_here():
    made = trials(CPU, [torch.float32, torch.bfloat16], [64, 576])
    assert len(made) == 2 * 2 * (1 + len(ROWS) + 2)
    assert [trial for trial in made if not trial.passed] == []
    packing = [trial.error for trial in made if not trial.product]
    assert min(packing) > 0.08 and max(packing) < 0.10  # 16 levels of normal weights, not the weights themselves
    products = [trial for trial in made if trial.product and trial.dtype == torch.bfloat16]
    assert all(trial.error > 1e-4 for trial in products)  # rounded: the tolerance is not for nothing


def test_what_is_no_number_is_not_good():
    assert not LayerTrial(torch.float32, 2, "1 row of 2", True, float("nan"), 0.1).passed


FORWARD = bnb.nn.Linear4bit.forward


def wrong_for(rows):
    """A kernel that leaves a column out for this count of rows, as if its last block were not read."""

    def forward(self, x):
        x = x.clone()
        x[:, -1] *= len(x) != rows
        return FORWARD(self, x)

    return forward


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2


@pytest.mark.parametrize("rows", ROWS)
def test_one_wrong_kernel_is_enough(monkeypatch, rows):
    monkeypatch.setattr(bnb.nn.Linear4bit, "forward", wrong_for(rows))
    words = rf"4-bit layers are wrong on this device: {rows} rows? of 64, float32, relative error 0\.\d+"
    with pytest.raises(ModelError, match=words) as e:
        check_four_bit(CPU, torch.float32, [64])
    assert "model.quantization=none" in str(e.value)


def test_a_wrong_gradient(monkeypatch):
    monkeypatch.setattr(bnb.nn.Linear4bit, "forward", lambda self, x: FORWARD(self, Halved.apply(x)))
    with pytest.raises(ModelError, match=r"gradient of 600 rows of 64, float32, relative error 0\.5 "):
        check_four_bit(CPU, torch.float32, [64])


def test_wrongly_unpacked_weights(monkeypatch):
    """Wrong at a width of whole blocks they are refused; at another one, known of CPUs, they are a warning."""
    monkeypatch.setattr(four_bit, "PACKED_TOLERANCE", 0.05)  # NF4 itself is wrong by 0.09, in 64 and in 96
    with pytest.raises(ModelError, match="weights of 64, packed and unpacked"):
        check_four_bit(CPU, torch.float32, [96, 64])
    warning = check_four_bit(CPU, torch.float32, [96])
    assert warning.startswith("warning: 4-bit weights of 96, packed and unpacked, float32, relative error ")
    assert warning.endswith("set model.quantization=none")


def test_a_device_that_has_no_kernel(monkeypatch):
    def forward(self, x):
        raise RuntimeError("CUDA error: no kernel image is available\nfor execution on the device")

    monkeypatch.setattr(bnb.nn.Linear4bit, "forward", forward)
    with pytest.raises(ModelError, match="fail on this device: CUDA error: no kernel image is available for execution"):
        check_four_bit(CPU, torch.float32, [64])


def test_nothing_is_said_where_all_is_well():
    assert check_four_bit(CPU, torch.float32, [64]) is None
