#!/usr/bin/env bash
# PEFT's convert_to_lora accepts a DoRA adapter, and what comes out is the adapter without DoRA's magnitudes.
#
# Guess: it refuses DoRA, which is no sum of the weight and a low-rank matrix, or it approximates the whole change of the
# weight, as it does for LoHa or LoKr.
# Seen: the rank that comes out is that of lora_A and lora_B, whose product alone is decomposed again; the magnitudes, which
# are part of what was trained, are left out. The only warning is that there is no need to convert a LoRA adapter. On the
# converted model's logits the error is larger than the adapter's whole effect. LoHa, converted by the same call, gives its
# logits back.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 peft==0.21.2 >/dev/null 2>&1
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import copy

import peft
import torch
from peft import LoHaConfig, LoraConfig, convert_to_lora, get_peft_model, set_peft_model_state_dict
from transformers import LlamaConfig, LlamaForCausalLM

print("peft", peft.__version__)
torch.manual_seed(0)
base = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
).eval()
tokens = torch.arange(3, 35)[None]
modules = ["q_proj", "v_proj", "o_proj"]
kinds = {
    "DoRA": LoraConfig(r=4, lora_alpha=8, target_modules=modules, use_dora=True),
    "LoHa": LoHaConfig(r=2, alpha=4, target_modules=modules),
}
errors = {}
with torch.no_grad():
    plain = base(tokens).logits
    for name, config in kinds.items():
        model = get_peft_model(copy.deepcopy(base), config).eval()
        for key, weight in model.named_parameters():
            if "magnitude" in key:
                weight.mul_(torch.empty_like(weight).uniform_(0.7, 1.4))
            elif "lora_" in key or "hada_" in key:
                weight.normal_(std=0.2)
        trained = model(tokens).logits
        converted, weights = convert_to_lora(model, rank=16)
        lora = get_peft_model(copy.deepcopy(base), converted).eval()
        set_peft_model_state_dict(lora, weights)
        effect = (trained - plain).abs().mean().item()
        errors[name] = (lora(tokens).logits - trained).abs().mean().item() / effect
        print(f"{name}: mean error of the logits after conversion is {errors[name]:.4f} of the adapter's effect")
assert errors["DoRA"] > 0.5, "the behaviour has changed"
assert errors["LoHa"] < 0.01
PYTHON
