"""Weights as they are while tokens are said: same outputs, and nothing of the model changed afterwards."""

import os

import psutil
import pytest
import torch

from lite_c2f.backbone import copies
from lite_c2f.backbone.copies import half_copies, has_room, sampling_copies
from lite_c2f.backbone.device import has_bfloat16
from lite_c2f.backbone.load import load_model
from lite_c2f.backbone.roles import Roles
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Lora

TOKENS = torch.tensor([[1, 5, 9, 30, 31]])


def randomised(base, **lora):
    torch.manual_seed(1)
    roles = Roles(base, Lora(r=4, alpha=8, **lora), ("policy", "critic"))
    with torch.no_grad():
        for name in roles.adapters:
            for parameter in roles.adapter_parameters(name):
                parameter.normal_(std=0.2)
    return roles


def logits(roles):
    return roles.lm_head(roles.hidden(TOKENS))


def state(roles):
    return {key: value.clone() for key, value in roles.model.state_dict().items()}


@pytest.mark.parametrize("lora", [{}, {"target_modules": ("q_proj", "down_proj")}])
@pytest.mark.parametrize("role", ["policy", "critic", "reference"])
def test_dense_copies_say_the_same(quantized, role, lora):
    roles = randomised(quantized(), **lora)
    before = state(roles)
    with roles.use(role), torch.no_grad():
        expected = logits(roles)
    with roles.sampling(role), torch.no_grad():
        replaced = [module for module in roles.model.modules() if "forward" in module.__dict__]
        assert len(replaced) == 15  # the head, and seven in each of two layers, with an adapter or without
        torch.testing.assert_close(logits(roles), expected, atol=2e-5, rtol=0)
    assert not any("forward" in module.__dict__ for module in roles.model.modules())
    after = state(roles)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    with roles.use(role), torch.no_grad():
        assert torch.equal(logits(roles), expected)


def test_copies_go_also_when_sampling_fails(quantized):
    roles = randomised(quantized())
    with pytest.raises(RuntimeError, match="boom"), roles.sampling("policy"):
        raise RuntimeError("boom")
    assert not any("forward" in module.__dict__ for module in roles.model.modules())


def test_without_room_for_dense_copies_the_layers_stay_as_they_are(quantized, monkeypatch):
    roles = randomised(quantized())
    monkeypatch.setattr(copies, "MEMORY_SHARE", 0.0)
    with roles.sampling("policy"):
        replaced = [module for module in roles.model.modules() if "forward" in module.__dict__]
        assert replaced == [roles.model.get_output_embeddings()]  # a weight that is there


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_few_rows_are_the_same_in_either_order(monkeypatch, dtype, bias):
    """Of 1 to 70 rows, as (rows, in) and (rows, 1, in); the other order is taken where it was measured to be faster."""
    few = {torch.float32: range(8, 16), torch.bfloat16: range(2, 65)}
    assert (few if has_bfloat16(torch.device("cpu")) else {}) == copies.FEW_ROWS
    monkeypatch.setattr(copies, "FEW_ROWS", few)
    draw = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(40, 24, bias=bias, dtype=dtype)
    monkeypatch.setattr(copies, "LARGE", layer.weight.numel())
    taken, mm = set(), torch.mm
    monkeypatch.setattr(torch, "mm", lambda *factors: taken.add(factors[1].shape[1]) or mm(*factors))
    with torch.no_grad(), sampling_copies(torch.nn.Sequential(layer)):
        for rows in range(1, 71):
            hidden = torch.randn(rows, 1, 40, generator=draw).to(dtype)
            expected = torch.nn.functional.linear(hidden.double(), layer.weight.double())
            expected = expected if layer.bias is None else expected + layer.bias.double()
            for states, wanted in ((hidden, expected), (hidden[:, 0], expected[:, 0])):
                result = layer(states)
                assert result.is_contiguous() and result.dtype == dtype
                close = {"atol": 1e-5, "rtol": 0} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.01}
                torch.testing.assert_close(result.double(), wanted, **close)
    assert taken == set(few[dtype])
    taken.clear()
    layer.weight.data = layer.weight.data.t().contiguous().t()  # as of GPT-2's layers: fast in the usual order
    with torch.no_grad(), sampling_copies(torch.nn.Sequential(layer)):
        layer(torch.randn(12, 40, generator=draw).to(dtype))
    assert not taken
    layer.weight.data = layer.weight.data.contiguous()
    monkeypatch.setattr(copies, "LARGE", layer.weight.numel() + 1)
    with torch.no_grad(), sampling_copies(torch.nn.Sequential(layer)):
        layer(torch.randn(12, 40, generator=draw).to(dtype))
    assert not taken


def test_half_copies_are_of_the_active_adapter_and_the_float32_weights_come_back(pico):
    """As on a GPU: base in bfloat16, adapters in float32 but for the time of sampling."""
    base = load_model(str(pico["base"]), load_config({}, ["model.compute_dtype=bfloat16", "coarse.length.max=128"]))
    roles = randomised(base)
    originals = {name: [p.data for p in roles.adapter_parameters(name)] for name in roles.adapters}
    with roles.use("policy"), torch.no_grad():
        expected = logits(roles).float()
    layers = copies._linear_layers(roles.model)
    with roles.use("policy"), torch.no_grad(), torch.autocast("cpu", enabled=False), half_copies(layers):
        assert {p.dtype for p in roles.adapter_parameters("policy")} == {torch.bfloat16}
        assert {p.dtype for p in roles.adapter_parameters("critic")} == {torch.float32}
        result = logits(roles).float()
    assert (result - expected).norm() < 0.03 * expected.norm()
    for name, before in originals.items():
        for parameter, data in zip(roles.adapter_parameters(name), before, strict=True):
            assert parameter.data.data_ptr() == data.data_ptr() and parameter.dtype == torch.float32


def test_half_copies_go_also_when_sampling_fails(pico):
    base = load_model(str(pico["base"]), load_config({}, ["model.compute_dtype=bfloat16", "coarse.length.max=128"]))
    roles = randomised(base)
    with (
        pytest.raises(RuntimeError, match="boom"),
        roles.use("policy"),
        half_copies(copies._linear_layers(roles.model)),
    ):
        raise RuntimeError("boom")
    assert {p.dtype for p in roles.adapter_parameters("policy")} == {torch.float32}


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_small_adapter_is_not_rounded_away_in_bfloat16(pico, quantization):
    """Entries of the delta are a thousandth of the weight's: within half a step of bfloat16."""
    settings = ["model.compute_dtype=bfloat16", f"model.quantization={quantization}", "coarse.length.max=128"]
    roles = randomised(load_model(str(pico["base"]), load_config({}, settings)))
    with torch.no_grad():
        for parameter in roles.adapter_parameters("policy"):
            parameter.mul_(0.02)
    layer = roles.decoder.layers[0].mlp.up_proj
    hidden = torch.eye(32)
    with roles.use("reference"), torch.no_grad():
        bare = copies.dequantized(layer.get_base_layer()).float()
    with roles.use("policy"), torch.no_grad():
        delta = layer.get_delta_weight("policy").float()
    with roles.sampling("policy"), torch.no_grad():
        result = layer(hidden).T - bare
    assert delta.abs().mean() < 0.05 * bare.abs().mean()
    assert (result - delta).norm() < 0.01 * delta.norm()


def test_a_model_in_float32_needs_no_half_copies(quantized):
    roles = randomised(quantized())
    with roles.use("policy"), half_copies(copies._linear_layers(roles.model)):
        assert {p.dtype for p in roles.adapter_parameters("policy")} == {torch.float32}
    with sampling_copies(roles.model):
        pass


@pytest.mark.parametrize(("available", "room"), [(4 * 4 * 600, True), (4 * 4 * 600 - 1, False)])
def test_memory_that_the_page_cache_gives_back_is_room(monkeypatch, available, room):
    """A quarter of what is available holds 600 weights in float32; hardly anything is free."""
    layers = [torch.nn.Linear(10, 40, device="meta"), torch.nn.Linear(20, 10, device="meta")]
    memory = psutil.virtual_memory()._replace(available=available, free=1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(os, "sysconf", lambda name: 1)
    assert has_room(layers) is room
