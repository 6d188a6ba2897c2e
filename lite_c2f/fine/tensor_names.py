"""Names of an adapter's tensors, without the parts that wrappers of other tools leave in them."""

import re

PREFIX = ("base_model", "model")  # PEFT's own wrapper
# Attributes with which the wrappers of torch.compile, FSDP, activation checkpointing, and Lightning or DeepSpeed refer
# to the wrapped module. No model has modules of these names.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
FACTORS = {"lora_A", "lora_B", "lora_magnitude_vector"}  # a module or a parameter for each adapter's name below them
NAMED = {"lora_embedding_A", "lora_embedding_B", "trainable_tokens_delta"}  # a parameter for each
SAVED, ORIGINAL = "modules_to_save", "original_module"  # the copy of a module that is trained whole, and the base's own
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings")
HEADS = ("lm_head", "embed_out")
_DOT = r"(?:\\?\.|\[\.\])"  # in a regular expression
_WRAPPER = rf"(?<!\w)(?:{'|'.join(sorted(WRAPPERS))})"
_IN_PATTERN = re.compile(rf"{_WRAPPER}{_DOT}|{_DOT}{_WRAPPER}(?!\w)")


def plain_name(name: str) -> str | None:
    """A tensor's name as PEFT's `save_pretrained` writes it, less its `base_model.model.`; None without that prefix.

    Dropped: whole parts of the name that belong to a wrapper, `module` and repeated prefixes at its beginning, and the
    adapter's own name ("default" or any other), which PEFT leaves out too. A module trained whole is named as itself.

    >>> plain_name("module.base_model.model.model.layers.0._orig_mod.self_attn.q_proj.lora_A.default.weight")
    'model.layers.0.self_attn.q_proj.lora_A.weight'
    """
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    prefixed = False
    while True:
        if tuple(parts[:2]) == PREFIX:
            parts, prefixed = parts[2:], True
        elif parts[:1] == ["module"]:
            parts = parts[1:]
        else:
            break
    return ".".join(_unnamed(parts)) if prefixed and parts else None


def _unnamed(parts: list[str]) -> list[str]:
    """The parts without an adapter's name, which has no dot."""
    if len(parts) > 3 and parts[-3] in FACTORS and parts[-1] in ("weight", "bias"):
        return [*parts[:-2], parts[-1]]
    if len(parts) > 2 and parts[-2] in NAMED:
        return parts[:-1]
    if SAVED in parts[:-1]:
        at = parts.index(SAVED)
        return parts[:at] + parts[at + (1 if at == len(parts) - 2 else 2) :]
    return parts


def plain_pattern(pattern: str) -> str:
    """A module's name, or a regular expression for names, without the parts that `plain_name` drops within a name.

    >>> plain_pattern(r"layers\\.\\d+\\._checkpoint_wrapped_module\\.mlp.*")
    'layers\\\\.\\\\d+\\\\.mlp.*'
    """
    return _IN_PATTERN.sub("", pattern)


def is_named(name: str, modules: tuple[str, ...]) -> bool:
    """Whether it is the weight of a module whose last name part is one of these."""
    return name.endswith(".weight") and name.removesuffix(".weight").split(".")[-1] in modules


def is_embedding(name: str) -> bool:
    """Whether it is a tensor of an embedding or of a language model's head, by its name."""
    module, _, parameter = name.rpartition(".")
    return parameter in ("weight", "bias") and module.split(".")[-1] in (*EMBEDDINGS, *HEADS)


def is_reward_head(name: str) -> bool:
    """Whether it is a tensor of a classifier's or a value head."""
    return re.search(r"(^|\.)(score|classifier|v_head|value_head)\.", name) is not None


def is_expert(name: str) -> bool:
    """Whether it is a parameter of a mixture of experts, by its name."""
    return re.search(r"(^|\.)(experts|block_sparse_moe)(\.|$)", name) is not None
