"""Loading of a model, quantised and frozen so that adapters train through it, and of its tokenizer."""

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
)

from lite_c2f.backbone.context import sliding_window
from lite_c2f.backbone.end_tokens import eos_ids_of
from lite_c2f.backbone.machine import pick_device, pick_dtype
from lite_c2f.backbone.model_kind import attention_of
from lite_c2f.backbone.padding import check_embedded, read_limits, resolve_padding
from lite_c2f.config.settings import Config
from lite_c2f.errors import C2FError, ModelError
from lite_c2f.toy.build import restore_bos


def load_tokenizer(model: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, its padding resolved: `padding_id` gives an id that ends no text.

    Raises ModelError when there is none, or when text can be encoded to an id that the model has no embedding for.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise model_error(model, "its tokenizer", error) from None
    # Without any file Transformers makes tokenizers of some families out of their special tokens alone.
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder) or tokenizer.eos_token_id is None:
        raise ModelError.because(
            f"model '{model}': no tokenizer with a vocabulary and an end-of-sequence token",
            "tokenizer.json and tokenizer_config.json in the folder",
            "save the tokenizer there",
        )
    restore_bos(tokenizer)
    tokenizer.clean_up_tokenization_spaces = False  # Llama-3's files set it; it removes spaces from "x != y"
    limits = read_limits(model, revision)
    check_embedded(tokenizer, model, limits.embeddings)
    resolve_padding(tokenizer, limits)
    return tokenizer


def quantization_config(config: Config, device: torch.device) -> BitsAndBytesConfig | None:
    """NF4 with double quantisation, computing in the run's type; None where quantisation is off."""
    if config.model.quantization == "none":
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=pick_dtype(config, device),
    )


def load_model(
    model: str, config: Config, *, revision: str | None = None, auto_class: Any = AutoModelForCausalLM, **extra: Any
) -> torch.nn.Module:
    """Load a model, frozen, quantised as configured, so that gradients pass through it to adapters.

    Frozen by hand: PEFT's `prepare_model_for_kbit_training` would cast embeddings and head, and with them the KV
    cache, to float32 (+0.5 GiB on Mistral-7B, and twice the cache). Raises ModelError when it cannot be loaded.
    """
    device = pick_device(config)
    try:
        settings = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False, **extra)
        window, kinds = sliding_window(settings), set(getattr(settings, "layer_types", None) or ())
        if window and len(kinds) < 2 and config.longest_row <= window:
            settings.sliding_window = None  # no row is longer: without a window SDPA keeps its fast causal path
        loaded = auto_class.from_pretrained(
            model,
            config=settings,
            revision=revision,
            dtype=pick_dtype(config, device),
            quantization_config=quantization_config(config, device),
            device_map={"": torch.cuda.current_device() if device.type == "cuda" else device.type},
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=attention_of(auto_class, settings),
        )
    except C2FError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:  # the last: a file cut short
        raise model_error(model, "the model", error) from None
    loaded.requires_grad_(False)
    keep_weights_trainable(loaded)
    return loaded.eval()


def window_of(model: str) -> int | None:
    """The sliding window a model was trained with, also where it is loaded without."""
    return sliding_window(AutoConfig.from_pretrained(model, trust_remote_code=False))


def keep_weights_trainable(model: torch.nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    The first eval-mode forward would repack them, and training after that loses gradients through the base
    (cosine to the true gradient 0.61) with only a warning; with this it is 1.0.
    """
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def model_error(model: str, part: str, error: Exception) -> ModelError:
    """The error for a model, or a part of it, that cannot be loaded."""
    reason = " ".join(str(error).split())
    if not Path(model).exists() and (model.startswith((".", "/", "~")) or model.count("/") != 1):
        reason = "no such folder"
    return ModelError.because(
        f"model '{model}': cannot load {part} ({reason[:200]})",
        "a Hugging Face model folder with config.json, *.safetensors and a tokenizer, or a hub name",
        "check the folder, or model.base and model.instruct",
    )


def end_tokens(model: Any, tokenizer: Any, turn_end: int | None = None) -> list[int]:
    """The model's own list of end tokens (some have several), the tokenizer's, and the one that ends a chat's turn."""
    ids = (*eos_ids_of(model.generation_config), tokenizer.eos_token_id, turn_end)
    return sorted({i for i in ids if i is not None})
