"""GGUF files of tiny models, written as llama.cpp's converter writes them: other names, turned heads."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from families import Family, write_config
from tokenizer_kinds import made
from transformers import AutoModelForCausalLM

LLAMA_HEADS = ("llama",)  # rotary halves are interleaved there
SPLITS = {"gpt2": "gpt-2", "qwen": "qwen2", "llama3": "llama-bpe"}  # tokenizer.ggml.pre
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # token types


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key projection, each head's two rotary halves interleaved."""
    rows = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, rows, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    file: Path,
    family: Family,
    architecture: str,
    *,
    tokenizer: str | None = "qwen",
    scaled_rope: bool = False,
    **keys: Any,
) -> Any:
    """Write a random model of a family as a GGUF file of float32; returns the model, in float32 with
    weights that bfloat16 holds.

    keys: more keys of the file, with `__` for a dot, such as general__type="adapter".
    """
    folder = file.parent / "config"
    size = len(made(tokenizer or "qwen"))
    config = write_config(folder, family, vocab_size=size)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:  # norms and biases, which would be ones and zeros
                weight.add_(0.1 * torch.randn_like(weight))
            weight.copy_(weight.bfloat16())  # the weights alone: rotary frequencies stay what they are
    writer = gguf.GGUFWriter(file, architecture)
    _write_shape(writer, config, architecture)
    if tokenizer is not None:
        _write_tokenizer(writer, tokenizer)
    for name, value in keys.items():
        key = name.replace("__", ".")
        (writer.add_uint16 if isinstance(value, int) else writer.add_string)(key, value)
    number = {name: id_ for id_, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    tied = getattr(config, "tie_word_embeddings", False)
    for name, weight in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        stem, _, kind = name.rpartition(".")
        if architecture in LLAMA_HEADS and stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
            weight = interleaved(weight, heads)
        if architecture == "gemma" and stem.endswith("norm"):
            weight = weight + 1  # Transformers multiplies by 1 + weight, llama.cpp by the weight
        if architecture == "gpt2" and stem.endswith(("c_attn", "c_proj", "c_fc")) and kind == "weight":
            weight = weight.T.contiguous()
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", weight.numpy())
    if scaled_rope:  # as Llama 3.1 and later have it
        writer.add_tensor("rope_freqs.weight", torch.ones(8).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def rewrite(
    file: Path, keys: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None, *, big_endian: bool = False
) -> None:
    """Write a GGUF file anew with other values of some keys, and other arrays for some tensors; None: without."""
    reader, keys, tensors = gguf.GGUFReader(file), keys or {}, tensors or {}
    fields = {name: (field.contents(), *field.types[:2]) for name, field in reader.fields.items() if "." in name}
    content = {tensor.name: np.array(tensor.data) for tensor in reader.tensors} | tensors
    order = gguf.GGUFEndian.BIG if big_endian else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(file, fields["general.architecture"][0], endianess=order)
    for name, (value, *types) in fields.items():
        if name not in keys and not name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(name, value, *types)
    for name, value in keys.items():
        if value is not None:
            kind = gguf.GGUFValueType.get_type(value)
            of = gguf.GGUFValueType.get_type(value[0]) if isinstance(value, list) else None
            writer.add_key_value(name, value, kind, of)
    for name, array in content.items():
        if array is not None:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_shape(writer: Any, config: Any, architecture: str) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_head_count_kv(config.num_key_value_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(width)
    writer.add_value_length(width)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(width * rope.get("partial_rotary_factor", 1.0)))
    if architecture == "stablelm":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_parallel_residual(False)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)


def _write_tokenizer(writer: Any, kind: str) -> None:
    tokenizer = made(kind)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    control = {tokenizer.bos_token_id, tokenizer.eos_token_id, *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    types = [CONTROL if id_ in control else NORMAL for id_ in range(len(tokens))]
    if kind == "sentencepiece":
        types = [BYTE if token.startswith("<0x") else type_ for token, type_ in zip(tokens, types, strict=True)]
        types[tokenizer.unk_token_id] = UNKNOWN
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(id_) for id_ in range(len(tokens))])
        writer.add_unk_token_id(tokenizer.unk_token_id)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(SPLITS[kind])
        merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
        writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)
    writer.add_pad_token_id(tokenizer.eos_token_id)  # as SmolLM2 and Phi-3 have it
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
