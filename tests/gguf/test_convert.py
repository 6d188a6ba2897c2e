"""llama.cpp's own converters: on merged folders, and beside ours on adapters."""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from families import FAMILIES, write_config
from llama_cpp import SOURCE, converter, greedy, llama_cpp, log_probabilities, needs_llama_cpp
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from lite_c2f.cli.model_check import conversion_report
from lite_c2f.fine.gguf_adapter import export_adapter
from lite_c2f.fine.merge import merge
from lite_c2f.gguf import unpacked

pytestmark = [
    pytest.mark.slow,
    needs_llama_cpp,
    pytest.mark.skipif(not SOURCE.is_dir(), reason=f"no llama.cpp source in {SOURCE}: `make .venv/.llama-cpp`"),
]


def adapt(model, folder, **lora):
    """An adapter of a model with B of one size, saved; returns the PEFT model."""
    torch.manual_seed(3)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **lora)).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if ".lora_B." in name:
                weight.copy_(0.2 * torch.randn_like(weight))
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.filterwarnings("ignore")
def test_a_plain_adapter_is_what_llama_cpp_makes_of_it(tmp_path):
    """The same tensors, bit by bit, and the same alpha."""
    write_config(tmp_path / "model", FAMILIES["Llama"])
    torch.manual_seed(0)
    adapt(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "model")), tmp_path / "adapter")
    export_adapter(tmp_path / "adapter", tmp_path / "model", tmp_path / "out" / "ours.gguf")
    converter(
        "convert_lora_to_gguf.py",
        "--base",
        tmp_path / "model",
        "--outfile",
        tmp_path / "theirs.gguf",
        tmp_path / "adapter",
    )
    ours, theirs = gguf.GGUFReader(tmp_path / "out" / "ours.gguf"), gguf.GGUFReader(tmp_path / "theirs.gguf")
    for key in ("general.type", "general.architecture", "adapter.type", "adapter.lora.alpha"):
        assert ours.fields[key].contents() == theirs.fields[key].contents()
    expected = {tensor.name: tensor.data for tensor in theirs.tensors}
    assert {tensor.name for tensor in ours.tensors} == expected.keys()
    for tensor in ours.tensors:
        np.testing.assert_array_equal(tensor.data, expected[tensor.name])


@pytest.mark.filterwarnings("ignore")
def test_a_merged_folder_becomes_a_gguf_file(tmp_path):
    """SmolLM2's tokenizer on a tiny model, merged, converted as docs/llama-cpp.md says: tokens, log-probabilities."""
    source, model = unpacked("smollm2"), tmp_path / "model"
    shutil.copytree(source, model, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        **sizes, num_key_value_heads=2, vocab_size=49152, bos_token_id=1, eos_token_id=2, pad_token_id=2
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    adapt(AutoModelForCausalLM.from_pretrained(model), tmp_path / "adapter")
    merge(tmp_path / "adapter", model, model, tmp_path / "fine", ratio=0.5)
    line, problems = conversion_report(tmp_path / "fine")
    assert (line, problems) == ("ready: 1 file of float32, tokenizer.json, with a chat template", [])
    converter("convert_hf_to_gguf.py", tmp_path / "fine", "--outfile", tmp_path / "fine.gguf", "--outtype", "f32")
    merged, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "fine").eval(),
        AutoTokenizer.from_pretrained(model),
    )
    chat = [{"role": "user", "content": "Name  three rivers,\n\tand 1234 more: naïve café!"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    (answer,) = greedy(merged, 1.0, [ids], 8)
    row = {"tokens": answer, "prompt": len(ids)}
    (result,) = llama_cpp(tmp_path / "fine.gguf", None, [1.0], sequences=[row], whole=True, texts=[text])
    assert result["tokenized"] == [ids]
    got = torch.tensor([step["logp"] for step in result["sequences"][0]])
    torch.testing.assert_close(got, log_probabilities(merged, 1.0, answer)[len(ids) - 1 : -1], atol=1e-4, rtol=0)
    template = gguf.GGUFReader(tmp_path / "fine.gguf").fields["tokenizer.chat_template"].contents()
    assert template == tokenizer.chat_template
    assert json.loads((tmp_path / "fine" / "merge.json").read_text())["ratio"] == 0.5
