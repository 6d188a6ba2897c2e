"""Verification of a merge: logits of the merged model and of the unmerged adapter, both loaded with Transformers."""

import contextlib
import gc
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lite_c2f.errors import ModelError
from lite_c2f.fine.adapter_config import IGNORED_KEYS, READ_KEYS, read_adapter_config
from lite_c2f.fine.adapter_files import CONFIG, WEIGHTS
from lite_c2f.fine.delta import Delta, LowRank, read_tensor
from lite_c2f.fine.shards import TensorEntry
from lite_c2f.fine.sparsify import Treatment

MAX_TOKENS = 256


def compare_logits(
    merged: Path,
    instruct: Path,
    adapter: Path,
    tensors: Mapping[str, TensorEntry],
    deltas: Mapping[str, Delta],
    ratios: Mapping[str, float],
    treatment: Treatment,
    prompt: str,
) -> dict[str, Any]:
    """Logits of the merged folder on a prompt against those of the instruct model with the adapter scaled on top.

    In float32 where memory allows it, so that what differs is the rounding of the weights: `error` is the root mean
    square of the difference in logits, `effect` that of what the adapter itself does, `agreement` the share of
    positions with the same most likely token, `kl` the mean KL(unmerged || merged) in nats. Where the residue was
    treated, or holds more than low-rank factors, there is no unmerged counterpart: then only `effect`, of the merged
    model, is measured.

    Raises ModelError when the folder does not load, its logits are not finite, or the merged model is nearer to the
    plain instruct model than to the unmerged one (rounding has removed the residue).
    """
    from transformers import AutoTokenizer

    with _loading(merged):
        tokenizer, dtype = AutoTokenizer.from_pretrained(merged, trust_remote_code=False), _dtype(merged)
    ids = tokenizer(prompt, return_tensors="pt").input_ids[:, :MAX_TOKENS]
    if ids.shape[1] == 0:
        raise ModelError.because(f"the prompt {prompt!r} has no tokens", "some text", "give another prompt")
    actual_logits = _logits(merged, ids, dtype)
    if not torch.isfinite(actual_logits).all():
        raise ModelError.because("the merged model's logits are not finite", "finite ones", "lower the ratio")
    plain = _logits(instruct, ids, dtype)
    result = {"prompt_tokens": ids.shape[1], "dtype": str(dtype).removeprefix("torch."), "compared": False}
    if treatment != Treatment(seed=treatment.seed) or not all(isinstance(delta, LowRank) for delta in deltas.values()):
        return result | {"effect": _rms(actual_logits - plain)}
    # A tied head is no weight of its own: its LoRA has the embedding's ratio.
    tied = next((ratio for weight, ratio in ratios.items() if weight.endswith("embed_tokens.weight")), 1.0)
    unmerged = _logits(instruct, ids, dtype, adapter, tensors, {"lm_head.weight": tied, **ratios})
    error, effect = _rms(actual_logits - unmerged), _rms(unmerged - plain)
    expected, actual = (logits.double().log_softmax(-1) for logits in (unmerged, actual_logits))
    kl = (expected.exp() * (expected - actual)).sum(-1).mean()
    result |= {
        "compared": True,
        "error": error,
        "effect": effect,
        "agreement": float((actual_logits.argmax(-1) == unmerged.argmax(-1)).float().mean()),
        "kl": float(kl),
    }
    if error >= _rms(actual_logits - plain) and error > 1e-6:
        raise ModelError.because(
            f"verification failed: the merged logits are {error:.2g} from those of the unmerged adapter, which itself "
            f"changes them by {effect:.2g}",
            "an error below the effect",
            "merge into float32, or round stochastically; a larger ratio loses less",
        )
    return result


def _logits(
    folder: Path,
    ids: Tensor,
    dtype: torch.dtype,
    adapter: Path | None = None,
    tensors: Mapping[str, TensorEntry] | None = None,
    ratios: Mapping[str, float] | None = None,
) -> Tensor:
    """(tokens, vocabulary) float32 logits; the model is freed afterwards."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with _loading(folder):
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    if adapter is not None and tensors is not None and ratios is not None:
        with _plain_peft_folder(adapter, tensors) as folder:
            model = PeftModel.from_pretrained(model, str(folder))
        scale_layers(model, ratios)
    try:
        with torch.no_grad():
            return model.eval()(ids).logits[0].float()
    finally:
        del model
        gc.collect()


@contextlib.contextmanager
def _plain_peft_folder(adapter: Path, tensors: Mapping[str, TensorEntry]) -> Iterator[Path]:
    """The adapter with plain names and keys, without the base's weights saved beside it: they would replace the
    instruct model's."""
    config = read_adapter_config(adapter)
    known = {key: value for key, value in config.items() if key in READ_KEYS | IGNORED_KEYS and key != "lora_dtype"}
    with tempfile.TemporaryDirectory() as folder:
        weights = {f"base_model.model.{name}": read_tensor(entry) for name, entry in tensors.items()}
        save_file(weights, Path(folder) / WEIGHTS)
        (Path(folder) / CONFIG).write_text(json.dumps(known), encoding="utf-8")
        yield Path(folder)


@contextlib.contextmanager
def _loading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        got = f"'{folder}' does not load with Transformers ({' '.join(str(error).split())[:200]})"
        raise ModelError.because(got, "a model folder", "check the files of the instruct model") from None


def scale_layers(model: Any, ratios: Mapping[str, float]) -> None:
    """Multiply the scaling of every LoRA layer by the ratio of its weight (`ratios`: weight name -> ratio)."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            ratio = ratios[f"{name.removeprefix('base_model.model.')}.{getattr(module, 'parameter_name', 'weight')}"]
            for adapter in module.scaling:
                module.scaling[adapter] *= ratio


def _dtype(folder: Path) -> torch.dtype:
    """float32 where two thirds of the free memory hold the model in it, bfloat16 otherwise."""
    import psutil
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    needed = 4 * sum(weight.numel() for weight in model.parameters())
    return torch.float32 if needed < psutil.virtual_memory().available * 2 / 3 else torch.bfloat16


def _rms(difference: Tensor) -> float:
    return float(difference.double().square().mean().sqrt())
