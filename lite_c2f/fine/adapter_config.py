"""Configuration of a LoRA adapter (adapter_config.json): its known keys, and the rank and scaling of each module."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lite_c2f.errors import C2FError, ModelError
from lite_c2f.fine.adapter_files import CONFIG, no_adapter_error
from lite_c2f.fine.ratios import is_number
from lite_c2f.fine.tensor_names import PREFIX, plain_pattern

# Keys that are read below, and keys about training or inference, which do not change the adapter's values. Every other
# key has to be null, false or empty, because it may change the meaning of the tensors.
READ_KEYS = {
    *("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "rank_pattern"),
    *("alpha_pattern", "init_lora_weights", "bias", "lora_bias", "fan_in_fan_out", "modules_to_save"),
    *("trainable_token_indices", "target_parameters", "ensure_weight_tying", "eva_config"),
}
IGNORED_KEYS = {
    *("auto_mapping", "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout"),
    *("megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules"),
    "lora_dtype",  # ms-swift's: the type that it trained in
}
MODULE_NAME_KEYS = ("rank_pattern", "alpha_pattern", "modules_to_save", "target_parameters", "trainable_token_indices")
IGNORED_PREFIX = "lorap_"  # ms-swift's: learning rates of LoRA+
OTHER_FORM = "train a plain LoRA or rsLoRA adapter"
PLAIN_INITS = ("true", "false", "gaussian", "orthogonal", "eva")  # keep the base's weights
POLICY = "merge the adapter of the policy, not that of a reward model or a critic"
TASKS = dict.fromkeys(("SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION"), POLICY)
# PEFT 0.21.2's convert_to_lora turns these into LoRA, LoKr, RandLoRA and C3A nearly (logits up to 2e-3 off). It takes
# DoRA too, and drops its magnitudes: findings/peft_converts_dora_without_its_magnitudes.sh
CONVERTIBLE = ("LOHA", "LOKR", "VERA", "RANDLORA", "FOURIERFT", "MISS", "C3A")
REMEDIES = {
    "use_dora": f"{OTHER_FORM}; PEFT's convert_to_lora is no way: it drops DoRA's magnitudes",
    "init_lora_weights": "it changes the base's weights or starts from a delta that is not the residue: train with "
    "init_lora_weights=True, or save with path_initial_model_for_weight_conversion",
    "loftq_config": "LoftQ changes the base's weights: train with init_lora_weights=True",
    "layer_replication": "its layers are not the base's layers: train without it",
    "alora_invocation_tokens": "it acts on a part of each text only, which no merged weight can: train without it",
}


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of an adapter folder, with modules named as `plain_name` names the adapter's tensors.

    Raises ModelError naming the file.
    """
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise no_adapter_error(folder) from None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or not isinstance(config.get("base_model_name_or_path"), str | None):
        got = f"'{file}' is not a JSON object, or its base_model_name_or_path no text"
        raise ModelError.because(got, "the file PEFT wrote", "save the adapter again")
    return config | {key: _plain_names(key, config[key], file) for key in MODULE_NAME_KEYS if key in config}


def _plain_names(key: str, value: Any, file: Path) -> Any:
    """A key's module names without the parts of wrappers; other values unchanged, for the checks of that key."""
    if isinstance(value, list):
        return [plain_pattern(name) if isinstance(name, str) else name for name in value]
    if not isinstance(value, dict):
        return value
    plain: dict[str, Any] = {}
    for pattern, of_modules in value.items():
        name = plain_pattern(pattern)
        if plain.setdefault(name, of_modules) != of_modules:
            got = f"{plain[name]!r} and {of_modules!r} for '{name}', once with a wrapper's name in it"
            raise _key_error(file, key, got, "one value for a module", "remove the one that was not trained with")
    return plain


def check_adapter_config(config: Mapping[str, Any], file: Path) -> None:
    """Raise ModelError unless it is a LoRA or rsLoRA of a causal language model on an unchanged base.

    The message names the key, its value and the remedy.
    """
    if config.get("peft_type") is None and config.get("swift_type"):
        remedy = "train without use_swift_lora: its PEFT backend writes what can be merged"
        raise _key_error(file, "swift_type", config["swift_type"], "an adapter of PEFT", remedy)
    if config.get("peft_type") != "LORA":
        kind = config.get("peft_type")
        remedy = "convert it with PEFT's convert_to_lora" if kind in CONVERTIBLE else OTHER_FORM
        raise _key_error(file, "peft_type", kind, "'LORA'", remedy)
    if config.get("task_type") not in ("CAUSAL_LM", None):
        remedy = TASKS.get(str(config["task_type"]), "merge a causal language model's adapter")
        raise _key_error(file, "task_type", config.get("task_type"), "'CAUSAL_LM'", remedy)
    init = config.get("init_lora_weights", True)
    if str(init).lower() not in PLAIN_INITS:
        raise _key_error(
            file, "init_lora_weights", init, "one of " + ", ".join(PLAIN_INITS), REMEDIES["init_lora_weights"]
        )
    if config.get("eva_config") and init != "eva":
        raise _key_error(file, "eva_config", config["eva_config"], "null unless init_lora_weights is 'eva'", OTHER_FORM)
    if config.get("bias", "none") not in ("none", "lora_only", "all"):
        raise _key_error(file, "bias", config["bias"], "'none', 'lora_only' or 'all'", "save the adapter again")
    for key in ("use_rslora", "lora_bias", "fan_in_fan_out", "ensure_weight_tying"):
        if config.get(key, False) not in (True, False, None):
            raise _key_error(file, key, config[key], "true or false", "save the adapter again")
    for key in ("modules_to_save", "target_parameters"):
        value = config.get(key) or []
        if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
            raise _key_error(file, key, value, "a list of names", "save the adapter again")
    if config.get("target_parameters") and (config.get("rank_pattern") or config.get("alpha_pattern")):
        got = config["target_parameters"]
        raise _key_error(file, "target_parameters", got, "it without rank_pattern and alpha_pattern", OTHER_FORM)
    for key, value in sorted(config.items()):
        if (
            key not in READ_KEYS | IGNORED_KEYS
            and not key.startswith(IGNORED_PREFIX)
            and value not in (None, False, [], {})
        ):
            raise _key_error(file, key, value, "null, false or empty", REMEDIES.get(key, OTHER_FORM))


def rank_and_scaling(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """The rank and the scaling of one module: alpha / r, or alpha / sqrt(r) with use_rslora.

    A pattern is a regular expression for the end of the module's name, whole name parts only; the first that fits wins
    (PEFT's rule). Raises ModelError naming the key when a value is not a positive rank or a finite alpha.
    """
    rank = _by_pattern(config, "rank_pattern", module, config.get("r"))
    alpha = _by_pattern(config, "alpha_pattern", module, config.get("lora_alpha"))
    if type(rank) is not int or rank < 1:
        raise ModelError.because(f"'r' or 'rank_pattern' gives {rank!r}", "a rank of at least 1", f"correct {CONFIG}")
    if not is_number(alpha):
        raise ModelError.because(f"'lora_alpha' or 'alpha_pattern' gives {alpha!r}", "a number", f"correct {CONFIG}")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def unused_patterns(config: Mapping[str, Any], modules: Mapping[str, str], file: Path) -> list[str]:
    """A note for each pattern of rank_pattern and alpha_pattern that fits no module of the adapter.

    PEFT ignores such a pattern both in training and in merging, and so does this merge. modules: {plain name: name in
    the file}. Raises ModelError for one that fits a module's name with a wrapper, which may have been its name in
    training.
    """
    notes = []
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern, value in (config.get(key) or {}).items():
            if any(_pattern_matches(pattern, module) for module in modules):
                continue
            if module := next((plain for plain, raw in modules.items() if _matches_wrapped(pattern, plain, raw)), None):
                raise _key_error(
                    file,
                    key,
                    {pattern: value},
                    f"patterns for the names without wrappers, such as '{module}'",
                    "write it so if it counted in training, remove it if it did not",
                )
            notes.append(f"'{key}' of '{file}' has '{pattern}', which fits no module of the adapter: not used")
    return notes


def _pattern_matches(pattern: str, module: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def _matches_wrapped(pattern: str, plain: str, raw: str) -> bool:
    """Whether a pattern fits a name with some of the wrappers. raw: the name with all of them."""
    parts = raw.split(".")
    names: Iterable[str] = (".".join(parts[start:]) for start in range(len(parts)))
    return any(_pattern_matches(pattern, name) for name in (*names, f"module.{plain}", ".".join([*PREFIX, plain])))


def _by_pattern(config: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    try:
        for pattern, value in (config.get(key) or {}).items():
            if _pattern_matches(pattern, module):
                return value
    except (re.error, AttributeError) as error:
        raise ModelError.because(f"'{key}' {error}", "regular expressions -> numbers", f"correct {CONFIG}") from None
    return default


def _key_error(file: Path, key: str, value: Any, expected: str, remedy: str) -> C2FError:
    return ModelError.because(f"'{key}' is {value!r} in '{file}'", expected, remedy)
