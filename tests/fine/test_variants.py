"""Every kind of adapter that can be merged, made by PEFT itself, against PEFT's own merge; the others are refused."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lite_c2f.errors import ConfigError, ModelError, RunError
from lite_c2f.fine import stream
from lite_c2f.fine.merge import merge
from lite_c2f.fine.sparsify import Treatment


def weights_of(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def llama(folder, seed, tokenizer_from, tie=False):
    """A Llama with biases in attention, so that every kind of adapter tensor has a place."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        tie_word_embeddings=tie,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_()
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_from / file, folder / file)
    return folder


def train(base, folder, **lora):
    """A PEFT adapter on `base` whose every trainable value moved."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM", **lora}
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.add_(torch.randn_like(weight) * 0.05)
        model.save_pretrained(folder)
    return folder


def by_peft(base, adapter):
    """The base with the adapter merged into it by PEFT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
        return model.merge_and_unload().state_dict()


def logits(folder, adapter=None):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(folder)
        model = model if adapter is None else PeftModel.from_pretrained(model, adapter)
        return model(torch.arange(20)[None]).logits


@pytest.fixture
def pair(tmp_path, pico):
    return lambda **given: (
        llama(tmp_path / "base", 0, pico["base"], **given),
        llama(tmp_path / "instruct", 1, pico["base"], **given),
    )


VARIANTS = {
    "plain": {},
    "scaling of a power of two": {"lora_alpha": 8},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "lora_bias": {"lora_bias": True, "target_modules": ["q_proj", "o_proj"]},
    "bias lora_only": {"bias": "lora_only"},
    "bias all": {"bias": "all"},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "modules_to_save": {"modules_to_save": ["lm_head", "embed_tokens", "input_layernorm"]},
    "tokens": {"trainable_token_indices": [3, 60]},
    "tokens of both": {"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [1]}},
    "target_parameters": {"target_modules": ["q_proj"], "target_parameters": ["mlp.up_proj.weight"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_to_peft_on_its_own_base(tmp_path, pair, variant):
    """Ratio 1, base = instruct: PEFT knows this case, and says what comes out."""
    base, _ = pair()
    adapter = train(base, tmp_path / "adapter", **VARIANTS[variant])
    merge(adapter, base, base, tmp_path / "out")
    merged, expected, before = weights_of(tmp_path / "out"), by_peft(base, adapter), weights_of(base)
    changed = {name for name in expected if not torch.equal(expected[name], before[name])}
    assert changed and {name for name in merged if not torch.equal(merged[name], before[name])} == changed
    for name, tensor in merged.items():
        # bit for bit where deltas are added as PEFT adds them; X - W + W may be a last bit away from X
        exact = "lora_bias" not in variant and "bias" not in variant and "save" not in variant and "tok" not in variant
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0 if exact else 6e-8)


@pytest.mark.parametrize("alpha", [6, 8])
def test_chunks_that_are_not_counted_are_equal_to_peft_too(tmp_path, pair, alpha, monkeypatch):
    """Another path where the scaling is a power of two: the factor goes into B, and W is added in the same product."""
    monkeypatch.setattr(stream, "COUNT_ALL", 0)
    monkeypatch.setattr(stream, "COUNT_EVERY", 2)
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", 1)
    base, _ = pair()
    adapter = train(base, tmp_path / "adapter", lora_alpha=alpha)
    report = merge(adapter, base, base, tmp_path / "out")
    assert 0 < report.totals["counted_share"] < 1
    expected = by_peft(base, adapter)
    for name, tensor in weights_of(tmp_path / "out").items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_residue_on_another_model(tmp_path, pair, variant):
    """W_instruct + 0.5 (PEFT's merged base - base): what absolute values mean on a model that is not the base."""
    base, instruct = pair()
    adapter = train(base, tmp_path / "adapter", **VARIANTS[variant])
    report = merge(adapter, base, instruct, tmp_path / "out", ratio=0.5)
    actor, of_base, before, merged = by_peft(base, adapter), weights_of(base), weights_of(instruct), tmp_path / "out"
    for name, tensor in weights_of(merged).items():
        delta = actor[name].double() - of_base[name].double()
        np.testing.assert_allclose(tensor.double(), before[name].double() + 0.5 * delta, rtol=0, atol=3e-7)
        assert (name in report.tensors) == bool(delta.any())
    assert AutoModelForCausalLM.from_pretrained(merged)


def test_transposed_weights(tmp_path, pico):
    """GPT-2 keeps (in, out); fan_in_fan_out turns the product."""
    torch.manual_seed(0)
    base = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)).save_pretrained(base)
    shutil.copy(pico["base"] / "tokenizer.json", base / "tokenizer.json")
    adapter = train(base, tmp_path / "a", target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    merge(adapter, base, base, tmp_path / "out")
    expected = by_peft(base, adapter)
    for name, tensor in weights_of(tmp_path / "out").items():
        assert torch.equal(tensor, expected[name]), name


def test_saved_embeddings_that_are_the_bases_are_no_delta(tmp_path, pair):
    base, instruct = pair()
    adapter = train(base, tmp_path / "a", target_modules=["embed_tokens"])
    assert "base_model.model.model.embed_tokens.base_layer.weight" in load_file(adapter / "adapter_model.safetensors")
    assert set(merge(adapter, base, instruct, tmp_path / "out").tensors) == {"model.embed_tokens.weight"}
    with pytest.raises(ModelError, match="not the one of"):
        merge(adapter, instruct, instruct, tmp_path / "out2")
    with pytest.raises(ModelError, match="give the folder of the base"):
        merge(adapter, None, instruct, tmp_path / "out2")


def test_tied_embeddings(tmp_path, pair):
    """Single tokens stay tied in PEFT, and ensure_weight_tying keeps the rest so; one of the two alone is refused."""
    base, instruct = pair(tie=True)
    for name, lora in {
        "tokens": {"trainable_token_indices": [3, 60]},
        "lora": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        "save": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    }.items():
        adapter = train(base, tmp_path / name, **lora)
        report = merge(adapter, base, base, tmp_path / f"{name}-out")
        assert set(weights_of(tmp_path / f"{name}-out")) == set(weights_of(base))
        # Against the unmerged adapter: PEFT 0.21.2 merges the delta of a tied weight twice.
        torch.testing.assert_close(logits(tmp_path / f"{name}-out"), logits(base, adapter), rtol=0, atol=5e-7)
        assert (logits(base) - logits(base, adapter)).abs().max() > 0.01
        assert "tied" in report.tied and "model.embed_tokens.weight" in report.tensors
    for lora in ({"target_modules": ["embed_tokens"]}, {"modules_to_save": ["lm_head"]}):
        adapter = train(base, tmp_path / f"no-{'-'.join(lora)}", **lora)
        with pytest.raises(ModelError, match="tie_word_embeddings"):
            merge(adapter, base, instruct, tmp_path / "out")


def test_absolute_values_need_the_base(tmp_path, pair):
    base, instruct = pair()
    adapter = train(base, tmp_path / "a", modules_to_save=["lm_head"])
    with pytest.raises(ModelError, match=r"values of 'lm_head\.weight'"):
        merge(adapter, None, instruct, tmp_path / "out")
    plain = train(base, tmp_path / "plain")
    with pytest.raises(ConfigError, match="without the base"):
        merge(plain, None, instruct, tmp_path / "out", treatment=Treatment(sparsify="ties", density=0.5))


@pytest.mark.parametrize(
    ("lora", "key"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
        ({"layer_replication": [(0, 2), (1, 2)]}, "layer_replication"),
    ],
)
def test_real_adapters_that_are_refused(tmp_path, pair, lora, key):
    base, instruct = pair()
    adapter = train(base, tmp_path / "a", **lora)
    with pytest.raises(ModelError, match=f"'{key}'"):
        merge(adapter, base, instruct, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "tensors", "named"),
    [
        ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, {}, "trainable_token_indices"),
        ({"trainable_token_indices": [1, 1]}, {"model.embed_tokens": 2}, "trainable_token_indices"),
        ({"trainable_token_indices": [1]}, {"model.embed_tokens": 2}, "trainable_token_indices"),
        ({"trainable_token_indices": [-1]}, {"model.embed_tokens": 1}, "trainable_token_indices"),
        ({"trainable_token_indices": {"lm_head": [1]}}, {"model.embed_tokens": 1}, "trainable_token_indices"),
        ({"trainable_token_indices": [64]}, {"model.embed_tokens": 1}, "embed_tokens"),
        ({"lora_bias": True}, {}, "lora_bias"),
        ({"target_parameters": ["mlp.up_proj.weight"], "rank_pattern": {"q_proj": 2}}, {}, "target_parameters"),
    ],
)
def test_configurations_and_tensors_that_disagree(tmp_path, pair, changes, tensors, named):
    base, instruct = pair()
    adapter = train(base, tmp_path / "a")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | changes))
    extra = {
        f"base_model.model.{module}.token_adapter.trainable_tokens_delta": torch.ones(rows, 32)
        for module, rows in tensors.items()
    }
    save_file(load_file(adapter / "adapter_model.safetensors") | extra, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=named):
        merge(adapter, base, instruct, tmp_path / "out")


def test_parameters_of_experts_are_refused(tmp_path, hand_adapter, hand_model):
    name = "model.layers.0.mlp.experts"
    instruct = hand_model(tmp_path / "m", {f"{name}.gate_up_proj": torch.ones(2, 4, 6)})
    factors = {f"{name}.lora_A.weight": torch.ones(4, 4), f"{name}.lora_B.weight": torch.ones(6, 4)}
    adapter = hand_adapter(tmp_path / "a", factors, target_parameters=["mlp.experts.gate_up_proj"])
    with pytest.raises(ModelError, match="experts"):
        merge(adapter, None, instruct, tmp_path / "out")
    flat = {f"{name}.lora_A.weight": torch.ones(2, 4), f"{name}.lora_B.weight": torch.ones(6, 2)}
    adapter = hand_adapter(tmp_path / "b", flat, target_parameters=["mlp.experts.gate_up_proj"])
    with pytest.raises(ModelError, match="experts"):
        merge(adapter, None, instruct, tmp_path / "out")
    nested = {f"{name}.base_layer.{part}": tensor for part, tensor in (("lora_A.weight", torch.ones(2, 4)),)}
    nested[f"{name}.base_layer.lora_B.weight"] = torch.ones(6, 2)
    adapter = hand_adapter(tmp_path / "c", nested, target_parameters=["mlp.experts.gate_up_proj"])
    with pytest.raises(ModelError, match="experts"):
        merge(adapter, None, instruct, tmp_path / "out")


# -- what was once wrong in silence


def gpt2(folder, tokenizer_from, seed=0, **config):
    torch.manual_seed(seed)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4, **config)
    ).save_pretrained(folder)
    shutil.copy(tokenizer_from / "tokenizer.json", folder / "tokenizer.json")
    return folder


def test_square_weights_of_conv1d_are_turned_whatever_the_flag_says(tmp_path, pico):
    """PEFT saves one fan_in_fan_out for all modules: that of the last, a Linear here."""
    base = gpt2(tmp_path / "base", pico["base"], tie_word_embeddings=False)
    adapter = train(base, tmp_path / "a", target_modules=["attn.c_proj", "lm_head"], fan_in_fan_out=True)
    config = json.loads((adapter / "adapter_config.json").read_text())
    for flag in (True, False):
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"fan_in_fan_out": flag}))
        merge(adapter, base, base, tmp_path / f"out-{flag}")
        torch.testing.assert_close(logits(tmp_path / f"out-{flag}"), logits(base, adapter), rtol=0, atol=1e-5)
    assert (logits(base) - logits(base, adapter)).abs().max() > 1e-3


def test_square_weights_of_an_unknown_family_are_refused_where_the_flag_is_set(tmp_path, hand_adapter, hand_model):
    name = "h.0.c_proj"
    instruct = hand_model(tmp_path / "m", {f"{name}.weight": torch.ones(4, 4)}, model_type="unheard-of")
    factors = {f"{name}.lora_A.weight": torch.ones(2, 4), f"{name}.lora_B.weight": torch.ones(4, 2)}
    with pytest.raises(ModelError, match="fan_in_fan_out"):
        merge(hand_adapter(tmp_path / "a", factors, fan_in_fan_out=True), None, instruct, tmp_path / "out")


@pytest.mark.parametrize(
    "lora", [{"target_modules": ["wte"]}, {"target_modules": ["c_attn"], "modules_to_save": ["wte"]}]
)
def test_tied_embeddings_under_other_names_are_refused_too(tmp_path, pico, lora):
    base = gpt2(tmp_path / "base", pico["base"])
    adapter = train(base, tmp_path / "a", fan_in_fan_out=True, **lora)
    with pytest.raises(ModelError, match="tied to another weight"):
        merge(adapter, base, base, tmp_path / "out")


@pytest.mark.parametrize(
    "given",
    [
        {"layer_ratios": [("*embed_tokens*", 0.25)]},
        {"treatment": Treatment(sparsify="dare", density=0.5)},
        {"treatment": Treatment(rounding="stochastic"), "dtype": "bfloat16"},
    ],
)
def test_a_tied_head_that_is_stored_twice_stays_a_copy(tmp_path, pair, given):
    base, _ = pair(tie=True)
    adapter = train(base, tmp_path / "a", target_modules=["embed_tokens"], ensure_weight_tying=True)
    weights = weights_of(base)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, base / "model.safetensors")
    report = merge(adapter, base, base, tmp_path / "out", **given)
    merged = weights_of(tmp_path / "out")
    assert torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
    assert set(report.tensors) == {"lm_head.weight", "model.embed_tokens.weight"}


def test_a_tied_adapter_can_be_verified(tmp_path, pair):
    base, instruct = pair(tie=True)
    adapter = train(base, tmp_path / "a", target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True)
    found = merge(adapter, base, instruct, tmp_path / "out", 0.5, verify="w1 w2 w3").verified
    assert found["compared"] and found["error"] < 1e-3 * found["effect"]


def test_token_rows_at_the_edges_of_chunks(tmp_path, pair, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", 1)  # 16 rows a chunk
    base, _ = pair()
    adapter = train(base, tmp_path / "a", trainable_token_indices=[0, 15, 16, 31, 32, 63])
    merge(adapter, base, base, tmp_path / "out")
    torch.testing.assert_close(
        weights_of(tmp_path / "out")["model.embed_tokens.weight"],
        by_peft(base, adapter)["model.embed_tokens.weight"],
        rtol=0,
        atol=0,
    )


def test_odd_tensors_pass(tmp_path, hand_adapter, hand_model, pico):
    """Scalars, empty tensors and integers beside the weights; some of them in modules_to_save."""
    name = "model.layers.0.self_attn.q_proj"
    odd = {
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(4, 0),
        "none": torch.zeros(0, 3),
        "ids": torch.arange(3),
        "m.scale": torch.tensor(2.0),
        "m.none": torch.zeros(0, 3),
        f"{name}.weight": torch.ones(2, 2),
    }
    folders = [hand_model(tmp_path / which, odd) for which in ("base", "instruct")]
    for folder in folders:
        shutil.copy(pico["base"] / "tokenizer.json", folder / "tokenizer.json")
    factors = {f"{name}.lora_A.weight": torch.eye(2), f"{name}.lora_B.weight": torch.eye(2)}
    factors |= {"m.scale": torch.tensor(5.0), "m.none": torch.zeros(0, 3)}
    adapter = hand_adapter(tmp_path / "a", factors, modules_to_save=["m"])
    for dtype, treatment in (
        (None, Treatment(norm_cap=9.0)),
        ("bfloat16", Treatment(sparsify="magnitude", density=0.9)),
    ):
        out = tmp_path / f"out-{dtype}"
        merge(adapter, *folders, out, dtype=dtype, treatment=treatment)
        merged = weights_of(out)
        assert (
            merged["scalar"].item() == 3.0 and merged["empty"].shape == (4, 0) and merged["ids"].tolist() == [0, 1, 2]
        )
        assert merged["m.scale"].item() == 5.0 and merged["m.none"].shape == (0, 3)


def test_infinity_in_a_config_survives_another_dtype(tmp_path, hand_adapter, hand_model):
    name = "model.layers.0.self_attn.q_proj"
    instruct = hand_model(tmp_path / "m", {f"{name}.weight": torch.ones(2, 2)}, time_step_limit=[0.0, float("inf")])
    factors = {f"{name}.lora_A.weight": torch.eye(2), f"{name}.lora_B.weight": torch.eye(2)}
    merge(hand_adapter(tmp_path / "a", factors), None, instruct, tmp_path / "out", dtype="bfloat16")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["time_step_limit"] == [0.0, float("inf")]


def test_modules_to_save_match_the_end_of_a_name(tmp_path, pair):
    """PEFT's rule: `norm` is input_layernorm too."""
    base, instruct = pair()
    adapter = train(base, tmp_path / "a", modules_to_save=["norm"])
    report = merge(adapter, base, instruct, tmp_path / "out")
    assert {"model.norm.weight", "model.layers.0.input_layernorm.weight"} < set(report.tensors)


def test_a_report_never_lies_in_a_models_way(tmp_path, pair):
    base, instruct = pair()
    adapter = train(base, tmp_path / "a")
    out = tmp_path / "out"
    places = (
        out,
        out / "config.json",
        out / "model.safetensors",
        out / "README.md",
        instruct / "merge.json",
        adapter / "x",
    )
    for place in places:
        with pytest.raises(RunError, match="in the way"):
            merge(adapter, base, instruct, out, report=place)
    assert not out.exists() and not (instruct / "merge.json").exists()
    assert (
        merge(adapter, base, instruct, out, report=out / "notes" / "merge.json")
        and (out / "notes" / "merge.json").is_file()
    )


def test_swapped_models_are_noticed(tmp_path, pair):
    base, instruct = pair()
    adapter = train(base, tmp_path / "a")
    with pytest.raises(ModelError, match="swap the two"):
        merge(adapter, instruct, base, tmp_path / "out")
    report = merge(adapter, base, base, tmp_path / "out")
    assert any("its own base" in warning for warning in report.warnings)
