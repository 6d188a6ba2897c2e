"""What we save, stock PEFT reads; what does not fit is refused by name."""

import pytest
import torch
from peft import PeftModel

from lite_c2f.backbone.adapters import load_into, read_tensors, save_policy
from lite_c2f.backbone.load import load_model, load_tokenizer
from lite_c2f.backbone.roles import Roles
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Lora
from lite_c2f.errors import ModelError

TOKENS = torch.tensor([[1, 5, 9, 12]])


@pytest.fixture
def saved(quantized, pico, tmp_path):
    roles = Roles(quantized(), Lora(r=4, alpha=8, rslora=True), ("policy", "reward"))
    with torch.no_grad():
        for parameter in roles.adapter_parameters("policy"):
            parameter.normal_(std=0.1)
    save_policy(roles, "policy", tmp_path / "adapter", str(pico["base"]))
    return roles, tmp_path / "adapter"


def test_stock_peft_gives_the_same_hidden_states(saved, quantized):
    roles, folder = saved
    stock = PeftModel.from_pretrained(quantized(), str(folder))
    with roles.use("policy"), torch.no_grad():
        ours, theirs = roles.model(input_ids=TOKENS).logits, stock(input_ids=TOKENS).logits
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    assert stock.peft_config["default"].use_rslora and stock.peft_config["default"].task_type == "CAUSAL_LM"


def test_loading_into_another_role(saved):
    roles, folder = saved
    assert load_into(roles, "reward", folder) is None
    with roles.use("policy"):
        policy = roles.hidden(TOKENS)
    with roles.use("reward"):
        torch.testing.assert_close(roles.hidden(TOKENS), policy, atol=0, rtol=0)


def test_another_rank_is_refused(saved, quantized):
    other = Roles(quantized(), Lora(r=2), ("policy",))
    with pytest.raises(ModelError, match=r"lora_A.*expected shape \(2, 32\)"):
        load_into(other, "policy", saved[1])


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        read_tensors(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"garbage garbage")
    with pytest.raises(ModelError, match=r"bad\.safetensors"):
        read_tensors(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    ("remove", "words"),
    [("tokenizer.json", "tokenizer"), ("config.json", "config"), ("model.safetensors", "model")],
)
def test_a_folder_that_lacks_something(editable, remove, words):
    folder = editable("base")
    for file in folder.glob(remove.replace(".json", "*.json") if "tokenizer" in remove else remove):
        file.unlink()
    with pytest.raises(ModelError, match=words) as caught:
        load_tokenizer(str(folder))
        load_model(str(folder), load_config({}, ["evaluation.max_tokens=32"]))
    assert "\n" not in str(caught.value) and "copy-of-base" in str(caught.value)


def test_no_such_folder():
    with pytest.raises(ModelError, match="no such folder"):
        load_tokenizer("./nowhere/at/all")
