"""Model kinds: whether a model can be trained here, from its config.json alone, without loading it.

PPO and sampling need a causal decoder of plain attention with its head in one place; QLoRA needs linear layers; the
reward stage needs a sequence classifier. `check_kind` checks what config.json shows; for the rest `small_copy` is a
model of the same class with the same switches and tiny sizes, which `sampling.trial` tries.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lite_c2f.backbone.pair import check_configs, read_config
from lite_c2f.errors import ModelError
from lite_c2f.memory.sizes import LIKE_LLAMA, cached_folder

FAMILIES = "docs/models.md"  # the table of families that were tried
LAYER_KINDS = {"full_attention", "sliding_attention"}
OTHER_MODEL = f"choose a model of a family that {FAMILIES} lists as trained"
# Sizes of a small copy, by Transformers' names; a key applies where the configuration has set it.
SMALL_SIZES = {
    "vocab_size": 96,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "ffn_hidden_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEADS, WINDOW = 2, 6
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads")
EMBEDDED = ("word_embed_proj_dim", "embedding_size")  # width of embeddings, where a projection follows


def check_named(*names: str) -> None:
    """`check_kind` for models by name that are on this machine: in a folder, or in the hub's cache."""
    for folder in local_folders(*names):
        check_kind(folder)


def check_lineage(base: str, instruct: str) -> None:
    """Raise ModelError where both are on this machine and their config.json are not of one lineage."""
    if len(folders := local_folders(base, instruct)) == 2:
        check_configs(*folders)


def local_folders(*names: str) -> list[Path]:
    """Folders of the models that are on this machine and have a configuration; without the toy pair."""
    folders = [Path(name) if Path(name).is_dir() else cached_folder(name) for name in names if name != "toy"]
    return [folder for folder in folders if folder is not None and (folder / "config.json").is_file()]


def is_like_llama(folder: Path) -> bool:
    """Whether the model is of a family like Llama, whose classes need no trial for a plan."""
    return read_config(folder).get("model_type") in LIKE_LLAMA


def check_kind(folder: Path) -> None:
    """Raise ModelError naming the architecture and the reason, unless config.json may be that of a model to train.

    Reads no weights and imports no library: a model that passes is tried by `sampling.trial` next.
    """
    config = read_config(folder)
    reason = reason_against(config)
    if reason:
        raise refused(folder, reason)


def reason_against(config: Mapping[str, Any]) -> str | None:
    """Why a model with this config.json cannot be trained; None where no key shows a reason."""
    if any(isinstance(config.get(part), dict) for part in ("vision_config", "audio_config")):
        return "reads images or sound beside text, and its text model is inside of another one"
    if config.get("is_encoder_decoder"):
        return "has an encoder beside its decoder, and PPO here is for decoders alone"
    if config.get("alibi") or config.get("model_type") == "bloom":
        return "encodes positions by biases (ALiBi) computed from an attention mask, which the sampler does not pass"
    if config.get("is_moe") is not False and (
        experts := sorted(key for key, value in config.items() if _counts_experts(key) and _above_one(value))
    ):
        return f"has experts ({experts[0]}={config[experts[0]]}), whose weights here can neither be 4-bit nor adapted"
    if config.get("kv_lora_rank"):
        return f"keeps latent keys and values (kv_lora_rank={config['kv_lora_rank']}), which the sampler does not"
    kinds = config.get("layer_types") or config.get("layers_block_type") or ()
    if other := sorted({str(kind) for kind in kinds} - LAYER_KINDS - {"attention"}):
        return f"has layers of {other[0]}, and the sampler keeps keys and values of attention alone"
    return None


def _counts_experts(key: str) -> bool:
    return key.endswith("experts") and (key.startswith("n_") or "num" in key)


def _above_one(value: Any) -> bool:
    return isinstance(value, int | float) and value > 1


def refused(folder: Path, reason: str, remedy: str = OTHER_MODEL) -> ModelError:
    """The error for a model that cannot be trained. reason: continues the sentence after the architecture's name."""
    config = read_config(folder)
    named = config.get("architectures") or [config.get("model_type")]
    return ModelError.because(f"'{folder}': {named[0]} {reason}", "a model that can be trained here", remedy)


def small_copy(folder: Path, auto_class: Any) -> Any:
    """A model of the folder's class and switches, with random weights, tiny sizes and a layer or more of each kind.

    On the CPU in float32, in eval mode, in a tenth of a second. Raises whatever its class raises where tiny sizes do
    not fit together.
    """
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    _shrink(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto_class.from_config(
            config, attn_implementation=attention_of(auto_class, config), dtype=torch.float32
        )
        with torch.no_grad():
            for parameter in model.parameters():  # larger than usual: every layer then has a measurable effect
                if parameter.ndim > 1:
                    parameter.mul_(4.0)
    return model.eval()


def _shrink(config: Any) -> None:
    """Give a configuration tiny sizes that fit together: few heads and layers, of the width that heads have."""
    values = config.to_dict()
    heads, layers, hidden = config.num_attention_heads, config.num_hidden_layers, config.hidden_size
    for name in KEY_VALUE_HEADS:
        if isinstance(size_before := getattr(config, name, None), int):
            setattr(config, name, HEADS if size_before == heads else 1)
    kinds = getattr(config, "layer_types", None) or [None]
    few_layers = max(2, 1 + max(kinds.index(kind) for kind in set(kinds)))
    for name, value in values.items():
        if isinstance(value, list) and len(value) == layers:  # one entry for each layer
            setattr(config, name, value[:few_layers])
        elif "window" in name and "layers" not in name and isinstance(value, int) and value > WINDOW:
            setattr(config, name, WINDOW)  # shorter than a trial's rows
    width = HEADS * (values.get("head_dim") or hidden // heads)
    for name in EMBEDDED:
        if isinstance(size_before := getattr(config, name, None), int):
            setattr(config, name, width if size_before == hidden else width // 2)
    for name, size in {
        **SMALL_SIZES,
        "num_hidden_layers": few_layers,
        "num_attention_heads": HEADS,
        "hidden_size": width,
    }.items():
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, size)


def attention_of(auto_class: Any, config: Any) -> str:
    """SDPA, or plain attention for the families that it cannot compute: Gemma 2 caps its attention's scores."""
    return "sdpa" if getattr(auto_class._model_mapping[type(config)], "_supports_sdpa", False) else "eager"
