"""Model folder check: whether it can be trained on and merged into, before any weights are loaded."""

import re
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lite_c2f.backbone.pair import read_config
from lite_c2f.backbone.weights import weight_files
from lite_c2f.errors import ConfigError, ModelError


def check_architecture(folder: Path) -> None:
    """Raise ModelError unless config.json is that of a full-precision causal language model Transformers knows.

    A model with code of its own is refused: that code is never run.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    file, config = folder / "config.json", read_config(folder)
    for name in ("quantization_config", "adapter_config.json"):
        if config.get(name) or (folder / name).exists():
            got = f"'{folder}' has '{name}'"
            raise ModelError.because(got, "a plain full-precision model", "take the model before it was changed")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in KNOWN:
        code = ", with code of its own (auto_map), which is not run" if config.get("auto_map") else ""
        raise ModelError.because(
            f"'{file}': model_type {kind!r} is unknown{code}", "a Mistral or another decoder", "choose another model"
        )
    named = config.get("architectures")
    if isinstance(named, list) and KNOWN[kind].casefold() not in map(str.casefold, map(str, named)):  # MPT's are MPT...
        raise ModelError.because(
            f"'{file}': a {kind} with architectures {named}", KNOWN[kind], "use a causal language model"
        )


def check_weights(folder: Path, targets: Sequence[str] | str) -> None:
    """Raise ModelError unless all shards are there and whole, by their headers; ConfigError for an unknown module.

    targets: `lora.target_modules`. No weight is read.
    """
    tensors: list[str] = []
    matrices: set[str] = set()
    for shard in weight_files(folder):
        try:
            with safe_open(shard, framework="pt") as file:
                names = file.keys()
                tensors += names
                matrices |= {name for name in names if len(file.get_slice(name).get_shape()) == 2}
        except FileNotFoundError:
            raise ModelError.because(f"no '{shard}'", "every shard of the index", "download the model again") from None
        except (SafetensorError, OSError) as error:
            reason = str(error)[:160]
            raise ModelError.because(f"'{shard}': {reason}", "a whole file", "download the model again") from None
    for target in () if isinstance(targets, str) else targets:
        if not any(f".{tensor}".endswith(f".{target}.weight") for tensor in tensors):
            modules = sorted({name.split(".")[-2] for name in matrices if re.search(r"\.\d+\..*\.weight$", name)})
            raise ConfigError.because(
                f"lora.target_modules names '{target}', which '{folder}' does not have",
                f"names of linear layers, such as {', '.join(modules)}",
                "correct it, or use all-linear",
            )
