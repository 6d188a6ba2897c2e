"""The traps of several adapters on one 4-bit base: each test fails when its guard is taken away."""

import warnings

import bitsandbytes as bnb
import pytest
import torch
from peft.tuners.lora import LoraLayer

from lite_c2f.backbone.heads import ScalarHead
from lite_c2f.backbone.load import keep_weights_trainable, load_model
from lite_c2f.backbone.roles import Roles
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Lora

TOKENS = torch.tensor([[1, 5, 9, 12, 33], [1, 7, 20, 41, 8]])


def make(quantized, checkpointing=False):
    torch.manual_seed(0)
    roles = Roles(quantized(), Lora(r=4, alpha=8), ("policy", "critic", "reward"), checkpointing=checkpointing)
    with torch.no_grad():
        for name in roles.adapters:
            for parameter in roles.adapter_parameters(name):
                parameter.normal_(std=0.1)
    roles.add_head("critic", ScalarHead.of(torch.randn(1, 32)))
    return roles


def gradients(roles, name):
    with roles.use(name, train=True):
        (roles.hidden(TOKENS) ** 2).sum().backward()
    grads = [parameter.grad.clone() for parameter in roles.adapter_parameters(name)]
    for parameter in roles.adapter_parameters(name):
        parameter.grad = None
    return torch.cat([grad.flatten() for grad in grads])


def test_the_base_is_real_nf4_with_double_quantisation(quantized):
    layers = [module for module in quantized().modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(layers) == 14  # seven a layer; the head stays as it is
    assert all(layer.weight.quant_type == "nf4" and layer.weight.quant_state.nested for layer in layers)


def test_roles_differ_and_the_reference_is_the_bare_base(quantized):
    roles, base = make(quantized), quantized()
    result = {}
    for name in ("policy", "critic", "reward", "reference"):
        with roles.use(name):
            result[name] = roles.hidden(TOKENS)
    with torch.no_grad():
        bare = base.model(input_ids=TOKENS, use_cache=False).last_hidden_state
    torch.testing.assert_close(result["reference"], bare, rtol=0, atol=0)
    for one, other in (("policy", "critic"), ("critic", "reward"), ("policy", "reference")):
        assert (result[one] - result[other]).abs().max() > 1e-3


def test_trap_1_a_backward_under_another_role_raises(quantized):
    roles = make(quantized, checkpointing=True)
    with roles.use("policy", train=True):
        loss = roles.hidden(TOKENS).sum()
    with pytest.raises(RuntimeError, match="backward of 'policy'"):
        loss.backward()
    with pytest.raises(RuntimeError, match="backward of 'policy' while 'critic'"):
        with roles.use("policy", train=True):
            loss = roles.hidden(TOKENS).sum()
        with roles.use("critic", train=True):
            loss.backward()


def test_trap_1_checkpointed_gradients_are_the_plain_ones(quantized):
    torch.testing.assert_close(
        gradients(make(quantized, checkpointing=True), "policy"),
        gradients(make(quantized), "policy"),
        atol=1e-5,
        rtol=1e-4,
    )


def trainable(roles):
    return {key for key, parameter in roles.model.named_parameters() if parameter.requires_grad}


def test_trap_2_only_the_active_role_takes_gradients(quantized):
    roles = make(quantized)
    assert trainable(roles) == set()
    with roles.use("critic", train=True):
        inside = trainable(roles)
        assert inside and all(".critic." in key for key in inside) and len(inside) == 2 * 14
        assert all(parameter.requires_grad for parameter in roles.heads["critic"].parameters())
        with roles.use("reference"):
            assert trainable(roles) == set()
        assert trainable(roles) == inside
    assert trainable(roles) == set() and not roles.heads["critic"].linear.weight.requires_grad


def test_trap_2_state_comes_back_after_an_error(quantized):
    roles = make(quantized, checkpointing=True)
    with pytest.raises(ZeroDivisionError), roles.use("policy", train=True):
        raise ZeroDivisionError
    assert trainable(roles) == set() and not roles.model.training
    with pytest.raises(RuntimeError, match="outside a role"):
        roles.hidden(TOKENS)


def test_trap_3_training_after_an_eval_forward_keeps_its_gradients(quantized):
    """On a CPU with AVX512-BF16 the eval forward would repack the weights; elsewhere nothing is to be seen."""
    roles = make(quantized)
    before = gradients(roles, "policy")
    with roles.use("policy"):
        roles.hidden(TOKENS)
    after = gradients(roles, "policy")
    assert torch.nn.functional.cosine_similarity(before, after, dim=0) > 0.9999
    flags = [m.support_avx512bf16_for_cpu for m in roles.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert flags and not any(flags)


def test_trap_3_the_guard_switches_the_repacking_off():
    layer = bnb.nn.Linear4bit(64, 64)
    layer.support_avx512bf16_for_cpu = True
    keep_weights_trainable(torch.nn.Sequential(layer))
    assert layer.support_avx512bf16_for_cpu is False


def test_trap_4_embeddings_norms_and_head_keep_their_type(pico):
    base = load_model(str(pico["base"]), load_config({}, ["model.compute_dtype=bfloat16", "evaluation.max_tokens=32"]))
    roles = Roles(base, Lora(r=4), ("policy",))
    model = roles.model.get_base_model()
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert model.lm_head.weight.dtype == model.model.norm.weight.dtype == torch.bfloat16


def test_trap_5_adapters_and_heads_are_float32(pico):
    base = load_model(str(pico["base"]), load_config({}, ["model.compute_dtype=bfloat16", "evaluation.max_tokens=32"]))
    roles = Roles(base, Lora(r=4), ("policy", "critic"))
    roles.add_head("critic", ScalarHead(32))
    assert {parameter.dtype for name in roles.adapters for parameter in roles.trainable(name)} == {torch.float32}
    with roles.use("critic", train=True):
        assert roles.value(TOKENS).dtype == torch.float32


def test_trap_6_a_merged_adapter_is_refused(quantized):
    roles = make(quantized)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of the rounding itself
        roles.model.merge_adapter(["policy"])
    with pytest.raises(RuntimeError, match="merged"), roles.use("policy"):
        pass


def test_trap_7_checkpointing_is_on_for_training_alone(quantized):
    """Seen in how often a layer runs: in training once more, when the backward pass recomputes it."""
    for checkpointing, runs in ((True, 2), (False, 1)):
        roles = make(quantized, checkpointing=checkpointing)
        calls, layers = [], roles.decoder.layers
        for layer in layers:
            layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))  # noqa: B023 (called before the next round)
        with roles.use("policy", train=True):
            states = roles.hidden(TOKENS)
            assert len(calls) == len(layers) == 2
            states.sum().backward()
            assert len(calls) == runs * len(layers)
            if checkpointing:
                assert all(layer._gradient_checkpointing_func.keywords == {"use_reentrant": False} for layer in layers)
        with roles.use("policy"):
            assert not roles.model.training
            output = roles.model(input_ids=TOKENS, use_cache=True)
            assert output[1].get_seq_length() == 5  # the cache, by place: releases name it differently;
            # checkpointing would have switched the cache off
        assert len(calls) == (runs + 1) * len(layers)


def test_trap_8_padding_behind_the_row_changes_nothing(quantized):
    roles = make(quantized)
    padded = torch.cat([TOKENS, torch.full((2, 4), 3)], 1)
    with roles.use("policy"):
        torch.testing.assert_close(roles.hidden(padded)[:, :5], roles.hidden(TOKENS), atol=2e-6, rtol=0)


def test_unknown_role_and_training_the_reference(quantized):
    roles = make(quantized)
    with pytest.raises(ValueError, match="no role 'actor'"), roles.use("actor"):
        pass
    with pytest.raises(ValueError, match="cannot train"), roles.use("reference", train=True):
        pass


def test_a_head_rescaled_gives_normalised_rewards():
    head = ScalarHead.of(torch.tensor([[1.0, 2.0]]), 0.5)
    hidden = torch.tensor([[3.0, 4.0]])  # 3 + 8 + 0.5 = 11.5
    assert head(hidden).item() == 11.5
    assert head.rescaled(1.5, 4.0)(hidden).item() == pytest.approx(2.5)  # (11.5 - 1.5) / 4


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_in_bfloat16_the_input_of_an_adapter_is_not_cast_to_float32_and_back(pico, quantization):
    """The result is the same bit by bit: bfloat16 -> float32 -> bfloat16 changes nothing."""
    settings = ["model.compute_dtype=bfloat16", f"model.quantization={quantization}", "coarse.length.max=128"]
    roles = make(lambda: load_model(str(pico["base"]), load_config({}, settings)))
    seen = set()
    layers = [module for module in roles.model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.lora_A["policy"].register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].dtype))
    found = gradients(roles, "policy")
    assert seen == {torch.bfloat16}
    for layer in layers:
        layer.cast_input_dtype_enabled = True
    assert torch.equal(gradients(roles, "policy"), found) and torch.float32 in seen
