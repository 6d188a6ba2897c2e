"""Exported adapters in a real llama.cpp: the numbers of Transformers with the adapter at the same ratio."""

import warnings

import pytest
import torch
from families import FAMILIES
from gguf_files import write_gguf
from llama_cpp import changed_tokens, float32_copy, greedy, llama_cpp, log_probabilities, needs_llama_cpp
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lite_c2f.fine.gguf_adapter import export_adapter
from lite_c2f.gguf import packed_file, unpacked
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


@pytest.mark.filterwarnings("ignore")
def test_smollm2_in_float32_and_as_it_is_shipped(tmp_path):
    """Greedy tokens and their log-probabilities at three ratios; on 4-bit weights the change that the adapter makes.

    `benchmarks/gguf_adapter.py` does the same with a trained adapter and 64 questions.
    """
    folder = unpacked("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    adapted = adapt(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        tmp_path / "adapter",
        0.15,
        r=8,
        lora_alpha=16,
    )
    file = export_adapter(tmp_path / "adapter", "smollm2", tmp_path / "out" / "residue.gguf").file
    assert f"FROM {packed_file('smollm2')}\n" in (tmp_path / "out" / "Modelfile").read_text()
    float32_copy(packed_file("smollm2"), tmp_path / "float32.gguf")
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for text in ("Why is the sky blue?",)
    ]
    texts = {scale: greedy(adapted, scale, prompts, 16) for scale in SCALES}
    assert texts[0.0] != texts[1.0] and texts[0.5] != texts[0.0]
    for scale in SCALES:
        rows = [{"tokens": text, "prompt": len(prompt)} for text, prompt in zip(texts[scale], prompts, strict=True)]
        (result,) = llama_cpp(tmp_path / "float32.gguf", file, [scale], sequences=rows)
        for row, steps in zip(rows, result["sequences"], strict=True):
            answer = row["tokens"][row["prompt"] :]
            expected = of_tokens(adapted, scale, row)
            assert all(other["margin"] < 1e-3 for other in changed_tokens(steps, answer))  # none, or a near tie
            got = torch.tensor([step["nextLogp"] for step in steps])
            torch.testing.assert_close(got, expected, atol=1e-3, rtol=0)

    # The stock file: activations are rounded to 8 bits, and single log-probabilities move by tenths of a nat.
    results = llama_cpp(packed_file("smollm2"), file, [0.0, 1.0], sequences=rows)  # the texts of scale 1
    before, after = (
        torch.tensor([step["nextLogp"] for steps in result["sequences"] for step in steps]) for result in results
    )
    change = torch.cat([of_tokens(adapted, 1.0, row) - of_tokens(adapted, 0.0, row) for row in rows])
    assert change.abs().mean() > 0.1
    assert (after - before - change).abs().mean() < 0.3 * change.abs().mean()
    assert torch.corrcoef(torch.stack([after - before, change]))[0, 1] > 0.95


def of_tokens(adapted, scale, row):
    """(tokens,) log-probabilities of a row's answer, of Transformers."""
    answer = torch.tensor(row["tokens"][row["prompt"] :])
    return log_probabilities(adapted, scale, row["tokens"])[row["prompt"] - 1 : -1].gather(1, answer[:, None])[:, 0]
