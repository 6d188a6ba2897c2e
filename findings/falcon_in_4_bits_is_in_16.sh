#!/usr/bin/env bash
# A Falcon that is loaded with load_in_4bit has no 4-bit layer at all, and nothing says so.
#
# Guess: every linear layer of a model becomes a Linear4bit but its head, whatever family it is of.
# Seen: a layer becomes 4-bit where its type is exactly torch.nn.Linear (or GPT-2's Conv1D). Falcon's are of a class
# derived from it, FalconLinear, and stay as they are; is_loaded_in_4bit is true all the same. A 7B then takes four times
# the memory that was planned for it. GPT-NeoX, of the same fused layout, is converted.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 bitsandbytes==0.50.2 accelerate==1.15.0 >/dev/null 2>&1
"$folder/venv/bin/python" - "$folder" 2>/dev/null <<'PYTHON'
import sys

import bitsandbytes
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

print("transformers", transformers.__version__, "bitsandbytes", bitsandbytes.__version__)
SIZES = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
layers = {}
for family, more in (("falcon", {}), ("gpt_neox", {"intermediate_size": 256})):
    path = f"{sys.argv[1]}/{family}"
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, **more)).save_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(
        path, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"), device_map={"": "cpu"}
    )
    inside = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    layers[family] = sum(isinstance(module, bitsandbytes.nn.Linear4bit) for module in inside)
    print(f"{family}: {len(inside)} linear layers with the head, {layers[family]} of them 4-bit; "
          f"is_loaded_in_4bit={model.is_loaded_in_4bit}, {type(inside[0]).__name__}")
    assert model.is_loaded_in_4bit
assert layers == {"falcon": 0, "gpt_neox": 4}, "the behaviour has changed"
PYTHON
