"""Adapters of roles in stock PEFT format, saved and loaded, so that plain peft and transformers read them."""

import json
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from lite_c2f.backbone.heads import ScalarHead
from lite_c2f.backbone.roles import Roles
from lite_c2f.errors import ModelError
from lite_c2f.storage.files import publish_folder, write_text

HEAD_KEY = "base_model.model.score.weight"


def save_policy(roles: Roles, name: str, folder: Path, base: str, revision: str | None = None) -> None:
    """Publish an adapter as a stock PEFT CAUSAL_LM folder that names its base model."""
    with publish_folder(folder, replace=True) as unfinished:
        write_adapter(roles.model, name, unfinished, base, revision)


def write_adapter(
    model: PeftModel, name: str, folder: Path, base: str, revision: str | None = None, task_type: str = "CAUSAL_LM"
) -> None:
    """Write adapter_config.json and adapter_model.safetensors (float32) into an existing folder."""
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, folder / "adapter_model.safetensors")
    settings = model.peft_config[name].to_dict()
    settings.update(base_model_name_or_path=base, revision=revision, inference_mode=True, task_type=task_type)
    write_text(folder / "adapter_config.json", json.dumps(_plain(settings), indent=2, sort_keys=True) + "\n")


def load_into(roles: Roles, name: str, folder: Path) -> ScalarHead | None:
    """Copy a saved adapter into the adapter `name`; returns its scalar head where it has one (a reward model).

    Raises ModelError when the folder is no adapter, or does not fit this base and rank.
    """
    tensors = read_tensors(folder / "adapter_model.safetensors")
    score = tensors.pop(HEAD_KEY, None)
    expected = get_peft_model_state_dict(roles.model, adapter_name=name, save_embedding_layers=False)
    for key, value in expected.items():
        if key not in tensors or tensors[key].shape != value.shape:
            got = "no such tensor" if key not in tensors else f"shape {tuple(tensors[key].shape)}"
            raise ModelError.because(
                f"adapter '{folder}': {key}: {got}",
                f"shape {tuple(value.shape)}",
                "use the lora settings it was made with",
            )
    set_peft_model_state_dict(roles.model, tensors, adapter_name=name)
    return None if score is None else ScalarHead.of(score.float())


def check_adapter(folder: Path) -> None:
    """Raise ModelError naming the file of a saved adapter that is missing or damaged; no weight is read."""
    file = folder / "adapter_config.json"
    try:
        readable = isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except (ValueError, OSError):
        readable = False
    if not readable:
        got = f"'{file}' is missing or no JSON object"
        raise ModelError.because(got, "an adapter that PEFT reads", "train that stage again")
    path = folder / "adapter_model.safetensors"
    try:
        with safe_open(path, framework="pt"):
            pass
    except (FileNotFoundError, SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file; raises ModelError naming it."""
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ModelError:
    reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
    return ModelError.because(f"'{path}': {reason}", "a safetensors file of an adapter", "train that stage again")


def save_critic(roles: Roles, folder: Path, base: str, revision: str | None = None) -> None:
    """Publish the critic: its adapter, if it has its own, in PEFT format, and its head (weight and bias, float32)."""
    with publish_folder(folder, replace=True) as unfinished:
        if "critic" in roles.adapters:  # not CAUSAL_LM: a critic writes no text, and the merger refuses it by this
            write_adapter(roles.model, "critic", unfinished, base, revision, task_type="FEATURE_EXTRACTION")
        head = roles.heads["critic"].linear
        save_file(
            {"weight": head.weight.detach().cpu(), "bias": head.bias.detach().cpu()}, unfinished / "head.safetensors"
        )


def _plain(value: object) -> object:
    """JSON-ready: PEFT keeps sets and enums in its configs."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, set | list | tuple):
        items = [_plain(item) for item in value]
        return sorted(items, key=str) if isinstance(value, set) else items
    return getattr(value, "value", value)
