"""Families whose linear layers are joined, transposed or experts: merged as PEFT merges them, or refused rightly."""

import json
import shutil
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPTNeoXConfig,
    MixtralConfig,
    Phi3Config,
)

from lite_c2f.errors import ModelError
from lite_c2f.fine.merge import merge

WEIGHTS = "adapter_model.safetensors"
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "phi3": Phi3Config(**SIZES, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "gpt2": GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4),
    "mixtral": MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=2),
}
# family -> (target modules, a weight of each as it is stored)
FUSED = {
    "phi3": ("all-linear", ["self_attn.qkv_proj", "mlp.gate_up_proj", "self_attn.o_proj", "mlp.down_proj"]),
    "gpt_neox": ("all-linear", ["attention.query_key_value", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]),
    "gpt2": ("all-linear", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
    "mixtral": (["q_proj", "o_proj"], ["self_attn.q_proj", "self_attn.o_proj"]),
}


@pytest.fixture(scope="module")
def family(pico, tmp_path_factory):
    """Folders of tiny random models: name -> (base, instruct), made once."""
    made = {}

    def make(name):
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            for seed, which in enumerate(("base", "instruct")):
                torch.manual_seed(seed)
                AutoModelForCausalLM.from_config(CONFIGS[name]).save_pretrained(root / which)
                shutil.copy(pico["base"] / "tokenizer.json", root / which)
            made[name] = root / "base", root / "instruct"
        return made[name]

    return make


def train(base, folder, auto=AutoModelForCausalLM, task="CAUSAL_LM", loaded=None, **lora):
    """A PEFT adapter on `base` whose every trainable value moved."""
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(
            loaded or auto.from_pretrained(base), LoraConfig(r=4, lora_alpha=6, task_type=task, **lora)
        )
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.add_(torch.randn_like(weight) * 0.05)
        model.save_pretrained(folder)
    return folder


def by_peft(base, adapter):
    """Logits of the base with the adapter merged into it by PEFT, and its weights."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()
        return model(torch.arange(20)[None]).logits, model.state_dict()


def logits(folder):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_pretrained(folder)(torch.arange(20)[None]).logits


@pytest.mark.parametrize("name", FUSED)
def test_a_plain_lora_of_fused_and_transposed_layers(tmp_path, family, name):
    base, instruct = family(name)
    targets, modules = FUSED[name]
    adapter = train(base, tmp_path / "a", target_modules=targets)
    report = merge(adapter, base, base, tmp_path / "out")
    expected, actor = by_peft(base, adapter)
    merged, before = load_file(tmp_path / "out" / "model.safetensors"), load_file(base / "model.safetensors")
    for module in modules:
        assert any(f".0.{module}.weight" in weight for weight in report.tensors), module
    for weight, tensor in merged.items():
        if weight in actor:
            assert torch.equal(tensor, actor[weight]), weight
    torch.testing.assert_close(logits(tmp_path / "out"), expected, rtol=0, atol=1e-6)
    # on another model: W + 0.5 (PEFT's - base's)
    merge(adapter, base, instruct, tmp_path / "out2", ratio=0.5)
    other = load_file(instruct / "model.safetensors")
    for weight, tensor in load_file(tmp_path / "out2" / "model.safetensors").items():
        delta = merged[weight].double() - before[weight].double()
        torch.testing.assert_close(tensor.double(), other[weight].double() + 0.5 * delta, rtol=0, atol=3e-7)


def test_transposed_layers_whatever_the_flag_says(tmp_path, family):
    """PEFT corrects fan_in_fan_out for Conv1D itself, and files exist with either value."""
    base, _ = family("gpt2")
    adapter = train(base, tmp_path / "a", target_modules=["c_attn", "c_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    merged = []
    for flag in (True, False):
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"fan_in_fan_out": flag}))
        merge(adapter, base, base, tmp_path / f"out-{flag}")
        merged.append(load_file(tmp_path / f"out-{flag}" / "model.safetensors"))
    assert all(torch.equal(merged[0][weight], merged[1][weight]) for weight in merged[0])


def test_experts_are_refused_by_their_name_and_the_advice_works(tmp_path, family):
    base, _ = family("mixtral")
    adapter = train(base, tmp_path / "a", target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"])
    with pytest.raises(ModelError, match="mixture of experts cannot be merged: train a LoRA of the attention"):
        merge(adapter, base, base, tmp_path / "out")
    assert merge(train(base, tmp_path / "b", target_modules=["q_proj"]), base, base, tmp_path / "out")


def test_experts_of_two_dimensions_are_merged(tmp_path, family, hand_adapter):
    """Transformers 4 had a linear layer for each expert, under the name that is still in the files."""
    base, _ = family("mixtral")
    before = load_file(base / "model.safetensors")
    name = "model.layers.0.block_sparse_moe.experts.1.w2"
    down, up = torch.arange(96.0).view(2, 48) / 100, torch.arange(64.0).view(32, 2) / 100
    adapter = hand_adapter(tmp_path / "a", {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, lora_alpha=6)
    report = merge(adapter, base, base, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert list(report.tensors) == [f"{name}.weight"]
    torch.testing.assert_close(merged[f"{name}.weight"], before[f"{name}.weight"] + 3 * up @ down, rtol=0, atol=1e-5)


def test_a_model_saved_without_its_head_is_named_and_the_advice_works(tmp_path, pico, family):
    """As GPT-2 itself is on the hub: `h.0...` in place of `transformer.h.0...`."""
    base, _ = family("gpt2")
    bare = tmp_path / "bare"
    AutoModel.from_pretrained(base).save_pretrained(bare)
    shutil.copy(base / "tokenizer.json", bare)
    adapter = train(bare, tmp_path / "a", target_modules=["c_attn"])
    with pytest.raises(ModelError, match=r"holds 'h\.0\.attn\.c_attn\.weight'.*AutoModelForCausalLM and save it"):
        merge(adapter, bare, bare, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        AutoModelForCausalLM.from_pretrained(bare).save_pretrained(tmp_path / "whole")
    shutil.copy(base / "tokenizer.json", tmp_path / "whole")
    merge(adapter, tmp_path / "whole", tmp_path / "whole", tmp_path / "out")
    torch.testing.assert_close(logits(tmp_path / "out"), by_peft(bare, adapter)[0], rtol=0, atol=1e-6)


def test_an_adapter_of_a_model_without_its_head_is_named(tmp_path, pico):
    adapter = train(pico["base"], tmp_path / "a", AutoModel, None, target_modules=["q_proj"])
    with pytest.raises(ModelError, match=r"holds 'model\.layers\.0\..*train it on AutoModelForCausalLM"):
        merge(adapter, pico["base"], pico["base"], tmp_path / "out")


@pytest.mark.parametrize("task", ["SEQ_CLS", None])
def test_reward_models_are_refused_as_that(tmp_path, pico, task):
    """With the task recorded, and with only the head to know it by."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForSequenceClassification.from_pretrained(pico["base"], num_labels=1)
    extra = {} if task else {"modules_to_save": ["score"]}
    adapter = train(None, tmp_path / "a", task=task, loaded=model, target_modules=["q_proj"], **extra)
    with pytest.raises(ModelError, match="merge the adapter of the policy, not that of a reward model"):
        merge(adapter, pico["base"], pico["base"], tmp_path / "out")


def test_convolutions_are_refused_as_that(tmp_path, hand_adapter, hand_model):
    name = "model.conv"
    instruct = hand_model(tmp_path / "m", {f"{name}.weight": torch.ones(4, 3, 3, 3)})
    factors = {f"{name}.lora_A.weight": torch.ones(2, 3, 3, 3), f"{name}.lora_B.weight": torch.ones(4, 2, 1, 1)}
    with pytest.raises(ModelError, match="convolutions cannot be merged"):
        merge(hand_adapter(tmp_path / "a", factors), None, instruct, tmp_path / "out")


def test_a_weight_that_neither_model_has_is_not_the_instruct_models_fault(tmp_path, pico, hand_adapter):
    name = "model.layers.0.self_attn.qkv_proj"
    factors = {f"{name}.lora_A.weight": torch.ones(2, 32), f"{name}.lora_B.weight": torch.ones(64, 2)}
    adapter = hand_adapter(tmp_path / "a", factors, base_model_name_or_path="org/other")
    with pytest.raises(ModelError, match=r"neither .* has.*trained on another kind of model \('org/other'\)"):
        merge(adapter, pico["base"], pico["instruct"], tmp_path / "out")


@pytest.mark.parametrize(
    ("recorded", "said"),
    [
        ("org/another-model", True),
        ("/gone/another-model", True),
        ("C:\\models\\Base\\", False),
        ("org/Base", False),
        ("unsloth/base-unsloth-bnb-4bit", False),
        ("/gone/base", False),
        ("", False),
        (None, False),
    ],
)
def test_another_recorded_base_is_said(tmp_path, pico, editable, edit_json, recorded, said):
    adapter = editable("adapter")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=recorded)
    notices = []
    report = merge(adapter, pico["base"], pico["base"], tmp_path / "out", notice=notices.append)
    assert [f"note: {note}" for note in report.notes] == [text for text in notices if "same model?" in text]
    assert len(report.notes) == said and (not said or recorded in report.notes[0])


def test_a_base_of_the_same_shape_at_hand(tmp_path, pico, editable, edit_json):
    """A copy in another folder is the same model; another model of its kind is asked about."""
    copy, adapter = editable("base"), editable("adapter")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(copy))
    assert merge(adapter, pico["base"], pico["base"], tmp_path / "out").notes == []
    tensors = load_file(copy / "model.safetensors")
    save_file(
        {name: tensor + 1 for name, tensor in tensors.items()}, copy / "model.safetensors", metadata={"format": "pt"}
    )
    assert "same model?" in merge(adapter, pico["base"], pico["base"], tmp_path / "out2").notes[0]
