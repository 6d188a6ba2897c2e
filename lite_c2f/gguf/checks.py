"""Checks of a GGUF file against what Transformers makes of it without a warning: defaults, and weights left random."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lite_c2f.errors import ModelError

Get = Callable[[str], Any]  # the value of a key of the file, None without it
ANOTHER = "use the model's folder or hub name instead"
AGAIN = "download it again, or take another file of the model"
# Keys under the architecture's name; where one is missing, Transformers takes a published model's value for it.
SIZES = ("block_count", "context_length", "embedding_length", "attention.head_count")
OF_ROTARY = ("feed_forward_length", "attention.head_count_kv")  # what all have but GPT-2
LAYER_NORM = ("gpt2", "stablelm")
STABLELM_ROTARY, STABLELM_BASE = 0.25, 10000.0  # of Transformers' StableLM, which reads neither from a file
TOKENS = "tokenizer.ggml.tokens"
VOCABULARY = {"gpt2": "merges", "llama": "scores"}  # tokenizer.ggml.model -> what its tokens are joined by
NAMED_TOKENS = ("eos", "bos", "unknown", "padding")
CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


def check_sizes(file: Path, architecture: str, get: Get) -> None:
    """Raise ModelError unless a file states every size that Transformers would otherwise guess."""
    norm = "attention.layer_norm_epsilon" if architecture in LAYER_NORM else "attention.layer_norm_rms_epsilon"
    for name in (*SIZES, *(() if architecture == "gpt2" else OF_ROTARY), norm):
        value = get(f"{architecture}.{name}")
        if not isinstance(value, float if name == norm else int) or value <= 0:
            got = f"'{file}' has {'no ' if value is None else ''}{architecture}.{name}"
            got += "" if value is None else f" = {str(value)[:40]}"
            raise ModelError.because(got, "one positive number", ANOTHER)


def check_rotary(file: Path, architecture: str, get: Get, tensors: Iterable[str]) -> None:
    """Raise ModelError for rotary settings that Transformers 5.23 does not read from a file: all of them but the base.

    With scaled frequencies long contexts would be read as if there were no scaling.
    """
    scaling = get(f"{architecture}.rope.scaling.type")
    factors = {get(f"{architecture}.rope.{name}") for name in ("scaling.factor", "scale_linear")} - {None, 0.0, 1.0}
    if (
        scaling not in (None, "none")
        or (scaling is None and factors)  # llama.cpp scales linearly where the type is not named
        or any(name.startswith("rope_") for name in tensors)
    ):
        got = f"'{file}' scales its rotary frequencies, which Transformers does not read from a GGUF file"
        raise ModelError.because(got, "a model without (Llama 3.0, not 3.1)", ANOTHER)
    if architecture in ("gpt2", "llama"):  # no rotary positions; the rotary width is that of a head
        return
    width = get(f"{architecture}.attention.key_length")
    width = width or get(f"{architecture}.embedding_length") // get(f"{architecture}.attention.head_count")
    share = STABLELM_ROTARY if architecture == "stablelm" else 1.0
    if (rotated := get(f"{architecture}.rope.dimension_count") or width) != int(share * width):
        got = f"'{file}' rotates {rotated} of {width} dimensions of a head"
        raise ModelError.because(got, f"{int(share * width)}, as Transformers does for '{architecture}'", ANOTHER)
    base = get(f"{architecture}.rope.freq_base")
    if architecture == "stablelm" and base is not None and not math.isclose(base, STABLELM_BASE):
        got = f"'{file}' has the rotary base {base:g}, which Transformers does not read for '{architecture}'"
        raise ModelError.because(got, f"{STABLELM_BASE:g}", ANOTHER)


def check_tokenizer(file: Path, kind: str, get: Get) -> None:
    """Raise ModelError unless a file has all parts of its tokenizer, and an end token; every named id has a token.

    Without types no control token is one; without an end token Transformers takes the class's, any ordinary token.
    Its SentencePiece tokenizer puts a space before every text, whatever the file says.
    """
    if kind == "llama" and get("tokenizer.ggml.add_space_prefix") is False:
        got = f"'{file}' puts no space before a text (tokenizer.ggml.add_space_prefix), and Transformers always does"
        raise ModelError.because(got, "a tokenizer that does", ANOTHER)
    for name in (TOKENS, "tokenizer.ggml.token_type", f"tokenizer.ggml.{VOCABULARY[kind]}"):
        if not get(name):
            raise ModelError.because(f"'{file}' has a tokenizer without {name}", "a whole tokenizer", AGAIN)
    size = len(get(TOKENS))
    for name in NAMED_TOKENS:
        id_ = get(f"tokenizer.ggml.{name}_token_id")
        if id_ is None and name == "eos":
            raise ModelError.because(f"'{file}' names no end token", "tokenizer.ggml.eos_token_id", ANOTHER)
        if id_ is not None and not (isinstance(id_, int) and id_ < size):
            got = f"'{file}' has tokenizer.ggml.{name}_token_id = {id_}"
            raise ModelError.because(got, f"one of its {size} tokens", AGAIN)


def check_special_tokens(file: Path, tokenizer: Any, get: Get) -> None:
    """Raise ModelError unless a loaded tokenizer has the tokens that are read as a whole under the file's ids.

    They are the named ones, those of the chat template, and user-defined ones. In a byte-level vocabulary Transformers
    spells a token with any other character (`<｜User｜>`) as bytes: text of that name falls into pieces, and an
    end token of that name gets a new id behind the vocabulary, which no model ever writes.
    """
    named = {get(f"tokenizer.ggml.{name}_token_id") for name in NAMED_TOKENS}
    template = get("tokenizer.chat_template") or ""
    for id_, (token, kind) in enumerate(zip(get(TOKENS), get("tokenizer.ggml.token_type"), strict=True)):
        whole = id_ in named or kind == USER_DEFINED or (kind == CONTROL and token in template)
        if whole and (loaded := tokenizer.convert_tokens_to_ids(token)) != id_:
            got = f"'{file}' has the token '{token}' with the id {id_}, and Transformers reads it as {loaded}"
            raise ModelError.because(got, "special tokens in the vocabulary's own spelling", ANOTHER)


def check_weights(file: Path, architecture: str, stored: Iterable[str], model: Any, loading: Any) -> None:
    """Raise ModelError unless the file's tensors and a loaded model's weights are the same ones, and have values.

    Transformers fills a weight that a file lacks, or has in another shape, with random numbers, and leaves out what
    its class has no place for, such as biases. stored: names of the file's tensors; loading: what `from_pretrained`
    tells of it.
    """
    import gguf

    number = {name: id_ for id_, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, model.config.num_hidden_layers)
    expected = {}
    for name, weight in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        if name != "lm_head.weight" or not model.config.tie_word_embeddings:
            expected[f"{names.get_name(stem) or stem}.{kind}"] = weight
    there = set(stored)
    if missing := sorted(expected.keys() - there):
        got = f"'{file}' lacks the weight {_first(missing)}"
        raise ModelError.because(got, f"all of {model.config.num_hidden_layers} layers", AGAIN)
    if extra := sorted(there - expected.keys()):
        got = f"'{file}' has the weight {_first(extra)}, for which {type(model).__name__} has no place"
        raise ModelError.because(got, "the weights of that class alone", ANOTHER)
    for name, got_shape, shape in sorted(loading["mismatched_keys"]):
        got = f"'{file}' has {name} of the shape {tuple(got_shape)}"
        raise ModelError.because(got, f"{tuple(shape)} by the sizes that it names", AGAIN)
    for name, weight in expected.items():
        if not weight.isfinite().all():
            raise ModelError.because(f"'{file}': {name} has values that are not finite", "numbers", AGAIN)
        if weight.ndim > 1 and not weight.any():
            got = f"'{file}': all of {name} is 0, as in a download that was not finished"
            raise ModelError.because(got, "a weight", AGAIN)


def _first(names: list[str]) -> str:
    return f"'{names[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
