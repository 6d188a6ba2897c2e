"""Adapter folder -> named weight deltas: dW = scaling * B @ A, with the rank and alpha that were trained."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from lite_c2f.errors import C2FError, ModelError
from lite_c2f.fine import shards

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

# Keys that are read below, and keys that say how the adapter was trained or runs but not what it holds. Every other
# key has to be null, false or empty: a key we do not know may change what the tensors mean.
READ_KEYS = {
    *("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "rank_pattern"),
    *("alpha_pattern", "init_lora_weights", "bias"),
}
INERT_KEYS = {
    *("auto_mapping", "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout"),
    *("megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules"),
}
ABSOLUTE = (
    "its values replace the base's instead of adding to them: train without it (a later version will merge these)"
)
OTHER_FORM = "train a plain LoRA or rsLoRA adapter"
REMEDIES = {
    **dict.fromkeys(("bias", "lora_bias", "modules_to_save", "trainable_token_indices"), ABSOLUTE),
    "target_parameters": "name modules in target_modules instead (a later version will merge these)",
    "fan_in_fan_out": "its weights lie transposed, which no Mistral or Llama has: train on nn.Linear layers",
    "init_lora_weights": "it changes the base's weights or starts from a delta that is not the residue: train with "
    "init_lora_weights=True, or save with path_initial_model_for_weight_conversion",
    "layer_replication": "its layers are not the base's layers: train without it",
}


class LowRank(NamedTuple):
    """One delta dW = scaling * B @ A of shape (out, in), kept as its factors."""

    A: torch.Tensor  # (r, in) float32
    B: torch.Tensor  # (out, r) float32
    scaling: float

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), the shape of the weight that this is a delta of."""
        return self.B.shape[0], self.A.shape[1]

    def delta(self, rows: slice = slice(None)) -> torch.Tensor:
        """Rows of dW = scaling * B[rows] @ A: (rows, in) float32."""
        return (self.B[rows] @ self.A).mul_(self.scaling)


class Adapter(NamedTuple):
    """What an adapter adds: weight name (as in the model's own files) -> delta."""

    deltas: dict[str, LowRank]
    base_model_name: str | None  # as recorded by PEFT: a path or a hub name


def read_adapter(path: str | Path) -> Adapter:
    """Read a LoRA or rsLoRA adapter in PEFT's format, on the CPU.

    scaling = alpha / r, or alpha / sqrt(r) with use_rslora (Hu et al. 2021; Kalajdzievski 2023), where rank_pattern
    and alpha_pattern override r and alpha layer by layer: (r, in) and (out, r) factors come out in float32. A LoRA of
    an embedding has W (vocabulary, hidden) and trained factors the other way round; they come out turned.

    Raises ModelError for pickles, missing or damaged files, every variant whose tensors mean something else (naming
    the key), tensors that are not used or lack their partner, ranks that disagree, NaN and infinity.

    >>> adapter = read_adapter("runs/a/coarse/adapter")
    >>> adapter.deltas["model.layers.0.self_attn.q_proj.weight"].delta(slice(0, 2)).shape
    torch.Size([2, 4096])
    """
    folder = Path(path)
    config = _read_config(folder)
    check_adapter_config(config, folder / CONFIG)
    tensors = _read_tensors(folder)
    deltas = {}
    for name in sorted(tensors):
        module, partner = _partner(name)
        if partner not in tensors:
            raise ModelError.because(
                f"'{name}' of '{folder}' has no '{partner}'", "lora_A and lora_B together", "save the adapter again"
            )
        if "lora_B" in name or "lora_embedding_B" in name:
            continue
        first, second = tensors[name].float(), tensors[partner].float()
        if "lora_embedding" in name:  # delta = scaling * (B @ A)^T = scaling * A^T @ B^T
            first, second = second.T.contiguous(), first.T.contiguous()
        rank, scaling = rank_and_scaling(config, module)
        if first.ndim != 2 or second.ndim != 2 or not first.shape[0] == second.shape[1] == rank:
            raise ModelError.because(
                f"'{name}' {tuple(tensors[name].shape)} and '{partner}' {tuple(tensors[partner].shape)} of '{folder}'",
                f"two matrices of the rank {rank} that r and rank_pattern give",
                "save the adapter again together with its adapter_config.json",
            )
        deltas[f"{module}.weight"] = LowRank(first, second, scaling)
    return Adapter(deltas, config.get("base_model_name_or_path"))


def rank_and_scaling(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """The rank and the scaling of one module: alpha / r, or alpha / sqrt(r) with use_rslora.

    A pattern is a regular expression for the end of the module's name, whole name parts only; the first that fits wins
    (PEFT's rule). Raises ModelError naming the key when a value is not a positive rank or a finite alpha.
    """
    rank = _by_pattern(config, "rank_pattern", module, config.get("r"))
    alpha = _by_pattern(config, "alpha_pattern", module, config.get("lora_alpha"))
    if type(rank) is not int or rank < 1:
        raise ModelError.because(f"'r' or 'rank_pattern' gives {rank!r}", "a rank of at least 1", f"correct {CONFIG}")
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise ModelError.because(f"'lora_alpha' or 'alpha_pattern' gives {alpha!r}", "a number", f"correct {CONFIG}")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def check_adapter_config(config: Mapping[str, Any], file: Path) -> None:
    """Refuse every adapter_config.json that is not a plain LoRA or rsLoRA of a causal language model.

    Raises ModelError naming the key, its value and the remedy.
    """
    if config.get("peft_type") != "LORA":
        raise _refused(file, "peft_type", config.get("peft_type"), "'LORA'", OTHER_FORM)
    if config.get("task_type") not in ("CAUSAL_LM", None):
        remedy = "merge the adapter of the policy, not that of a reward model or a critic"
        raise _refused(file, "task_type", config.get("task_type"), "'CAUSAL_LM'", remedy)
    if str(config.get("init_lora_weights", True)).lower() not in ("true", "false", "gaussian"):
        value = config["init_lora_weights"]
        raise _refused(file, "init_lora_weights", value, "true, false or 'gaussian'", REMEDIES["init_lora_weights"])
    if config.get("bias", "none") != "none":
        raise _refused(file, "bias", config["bias"], "'none'", ABSOLUTE)
    if config.get("use_rslora", False) not in (True, False, None):
        raise _refused(file, "use_rslora", config["use_rslora"], "true or false", "save the adapter again")
    for key, value in sorted(config.items()):
        if key not in READ_KEYS | INERT_KEYS and value not in (None, False, [], {}):
            raise _refused(file, key, value, "null, false or empty", REMEDIES.get(key, OTHER_FORM))


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise ModelError.because(f"no '{file}'", "an adapter folder saved by PEFT", "check the path") from None
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ModelError.because(f"'{file}' is not a JSON object", "the file PEFT wrote", "save the adapter again")
    return config


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Tensor name without PEFT's prefix -> tensor, in the adapter's own dtype."""
    file = folder / WEIGHTS
    if not file.is_file():
        pickle = (folder / "adapter_model.bin").exists()
        raise ModelError.because(
            f"no '{file}'" + (", only the pickle 'adapter_model.bin'" if pickle else ""),
            "weights as safetensors",
            "load the adapter with PEFT and save it again" if pickle else "check the path",
        )
    if not shards.read_header(file):  # also refuses truncated files, with their name
        raise ModelError.because(f"'{file}' holds no tensors", "a trained adapter", "save the adapter again")
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if not name.startswith(PREFIX):
            raise _unused(file, name, "save the adapter with PEFT's save_pretrained")
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ModelError.because(f"'{name}' of '{file}' is {tensor.dtype}", "floats", "save the adapter again")
        if not torch.isfinite(tensor).all():
            raise ModelError.because(
                f"'{name}' of '{file}' holds NaN or infinity", "finite weights", "take a checkpoint from before"
            )
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def _partner(name: str) -> tuple[str, str]:
    """('q_proj.lora_A.weight') -> ('q_proj', 'q_proj.lora_B.weight'), and B -> A."""
    match = re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(\.weight)?", name)
    if match is None or bool(match[2]) == bool(match[4]):
        if re.search(r"\b(score|classifier)\b", name):
            remedy = "this is a classifier's head: merge the adapter of the policy, not that of a reward model"
        elif ".base_layer." in name:
            remedy = "this is a copy of the base's weight: save the adapter with save_embedding_layers=False"
        else:
            remedy = OTHER_FORM
        raise _unused(WEIGHTS, name, remedy)
    other = "B" if match[3] == "A" else "A"
    return match[1], f"{match[1]}.lora_{match[2] or ''}{other}{match[4] or ''}"


def _by_pattern(config: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    try:
        for pattern, value in (config.get(key) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
    except (re.error, AttributeError) as error:
        raise ModelError.because(f"'{key}' {error}", "regular expressions -> numbers", f"correct {CONFIG}") from None
    return default


def _refused(file: Path, key: str, value: Any, expected: str, remedy: str) -> C2FError:
    return ModelError.because(f"'{key}' is {value!r} in '{file}'", expected, remedy)


def _unused(file: Path | str, name: str, remedy: str) -> C2FError:
    got = f"tensor '{name}' of '{file}' is not used"
    return ModelError.because(got, "only lora_A and lora_B tensors", remedy)
