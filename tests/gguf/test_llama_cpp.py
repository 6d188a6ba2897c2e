"""Exported adapters in a real llama.cpp: the numbers of Transformers with the adapter at the same ratio."""

import warnings

import pytest
import torch
from families import FAMILIES
from gguf_files import write_gguf
from llama_cpp import llama_cpp, needs_llama_cpp
from peft import LoraConfig, get_peft_model

from lite_c2f.fine.gguf_adapter import export_adapter
from lite_c2f.gguf.families import FAMILIES as EXPORTED

pytestmark = [pytest.mark.slow, needs_llama_cpp]
SCALES = [0.0, 0.5, 1.0]
# Tokens of every kind in a context of one sliding window.
IDS = [9, 30, 31, 7, 40, 41, 11, 55, 8, 60, 61, 62, 20, 21, 300, 301, 17, 4, 5, 90]
TINY = {
    "llama": ("Llama", "llama", {}),
    "mistral": ("Mistral", "llama", {"head_dim": 32}),  # wider than hidden / heads, as Mistral-Nemo's
    "qwen2": ("Qwen2", "qwen2", {}),
    "qwen3": ("Qwen3", "qwen3", {}),
    "gemma": ("Gemma 1", "gemma", {}),
    "phi3": ("Phi-3", "phi3", {}),
}


def adapt(model, folder, size, **lora):
    """An adapter of a model with B of this size, saved; returns the PEFT model."""
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **lora)).eval()
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if ".lora_B." in name:
                    weight.copy_(size * torch.randn_like(weight))
        adapted.save_pretrained(folder)
    return adapted


def log_probabilities(adapted, scale, ids):
    """(T, vocabulary) of Transformers at a multiple of the adapter."""
    for module in adapted.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", scale)
    with torch.no_grad():
        return adapted(torch.tensor([ids])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("kind", EXPORTED)
def test_a_tiny_model_of_each_family(tmp_path, kind):
    """Every log-probability of every token, with ranks, alphas and rsLoRA that differ from layer to layer."""
    name, architecture, more = TINY[kind]
    family = FAMILIES[name]._replace(config={**FAMILIES[name].config, **more})
    model = write_gguf(tmp_path / "tiny.gguf", family, architecture)
    adapted = adapt(
        model,
        tmp_path / "adapter",
        0.5,
        r=4,
        lora_alpha=6,
        use_rslora=True,
        rank_pattern={"o_proj": 2, "layers.1.mlp.down_proj": 3},
        alpha_pattern={"down_proj": 5},
    )
    file = tmp_path / "out" / "residue.gguf"
    export_adapter(tmp_path / "adapter", tmp_path / "config", file)
    results = llama_cpp(tmp_path / "tiny.gguf", file, SCALES, sequences=[{"tokens": IDS, "prompt": 1}], whole=True)
    before = log_probabilities(adapted, 0.0, IDS)
    for scale, result in zip(SCALES, results, strict=True):
        expected = log_probabilities(adapted, scale, IDS)[:-1]
        got = torch.tensor([step["logp"] for step in result["sequences"][0]])
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=0)
        if scale:
            assert (expected - before[:-1]).abs().mean() > 0.05
