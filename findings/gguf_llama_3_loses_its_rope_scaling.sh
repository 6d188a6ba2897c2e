#!/usr/bin/env bash
# Transformers reads a Llama 3.1 (or later) from a GGUF file without the scaling of its rotary frequencies.
#
# Guess: a GGUF file holds all that llama.cpp needs, and Transformers reads it or refuses the file.
# Seen: llama.cpp's converter stores Llama 3.1's scaling as a tensor, rope_freqs.weight, a divisor for each frequency.
# Transformers leaves that tensor out without a word: the config says rope_type "default", and logits are those of a
# model without scaling. On a tiny model here they differ from the true ones by far more than rounding does; a file of
# Llama 3.0, which has no such tensor, comes back exactly.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 gguf==0.19.0 >/dev/null 2>&1
"$folder/venv/bin/python" - "$folder" 2>/dev/null <<'PYTHON'
import sys

import gguf
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils.quantization_config import GgufConfig

print("transformers", transformers.__version__)
folder = sys.argv[1]
SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=False)
SCALED = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
ids = torch.arange(400)[None] % 64
gaps, kinds = {}, {}
for name, rope in (("3.0", {"rope_type": "default", "rope_theta": 10000.0}), ("3.1", SCALED)):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=rope)).eval()
    file = f"{folder}/llama-{name}.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.add_context_length(2048)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_vocab_size(64)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(32)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for key, weight in model.state_dict().items():
        if key.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp interleaves the halves of a head
            weight = weight.reshape(2, 2, 16, 64).swapaxes(1, 2).reshape(64, 64)
        writer.add_tensor(names.get_name(key, (".weight",)), weight.numpy())
    if name == "3.1":
        plain = 1 / 10000.0 ** (torch.arange(0, 32, 2) / 32)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=f"llama-{name}.gguf", quantization_config=GgufConfig(dequantize=True)
    ).float().eval()
    with torch.no_grad():
        gaps[name] = (read(ids).logits - model(ids).logits).abs().max().item()
    kinds[name] = read.config.rope_parameters["rope_type"]
    print(f"Llama {name}: rope_type {kinds[name]}, logits differ by {gaps[name]:.1e}")
assert kinds["3.1"] == "default" and gaps["3.0"] < 1e-5 < 1e-3 < gaps["3.1"], "the behaviour has changed"
PYTHON
