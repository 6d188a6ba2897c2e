"""Files of an adapter folder: safetensors (one file or several) or pickles; and errors for other folders."""

import contextlib
import re
import tempfile
from pathlib import Path
from typing import Any

from lite_c2f.errors import ModelError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
STEM = "adapter_model"
NEARBY_PATTERNS = ("coarse/adapter", "adapter", "*", "*/*")  # where an adapter may be below a folder, in this order
GATHER_REMEDY = (
    "from a checkpoint with a global_step folder: `python zero_to_fp32.py CHECKPOINT OUT --safe_serialization "
    f"--exclude_frozen_parameters`, and OUT/model.safetensors beside {CONFIG} as {WEIGHTS}; else train again with "
    "stage3_gather_16bit_weights_on_model_save: true"
)


def adapter_weights(folder: Path) -> list[Path]:
    """The weight files of an adapter folder: safetensors if there are any, else pickles.

    One file, or all of `adapter_model-00001-of-00002.safetensors`. Raises ModelError naming what is missing.
    """
    for suffix in (".safetensors", ".bin"):
        if (file := folder / f"{STEM}{suffix}").is_file():
            return [file]
        parts = sorted(folder.glob(f"{STEM}-*-of-*{suffix}"))
        if not parts:
            continue
        pattern = re.compile(rf"{STEM}-(\d+)-of-(\d+){re.escape(suffix)}")
        numbers = [match for part in parts if (match := pattern.fullmatch(part.name))]
        count = max((int(match[2]) for match in numbers), default=0)
        names = {match[0] for match in numbers}
        for number in range(1, count + 1):
            width = len(numbers[0][1])
            if (name := f"{STEM}-{number:0{width}}-of-{count:0{width}}{suffix}") not in names:
                raise ModelError.because(f"no '{folder / name}'", "every part of the adapter", "copy it there")
        return [folder / name for name in sorted(names)]
    remedy = "copy them there, or check the path"
    if any(folder.glob("global_step*")):
        remedy = f"this is a checkpoint of DeepSpeed's: {GATHER_REMEDY}"
    elif fsdp := next(folder.glob("pytorch_model_fsdp_*"), None):
        remedy = (
            f"this is a checkpoint of FSDP's: `accelerate merge-weights {fsdp} OUT`, and OUT/model.safetensors beside "
            f"{CONFIG} as {WEIGHTS}"
        )
    raise ModelError.because(f"no '{folder / WEIGHTS}'", f"the weights beside '{CONFIG}'", remedy)


def as_safetensors(pickles: list[Path], stack: contextlib.ExitStack) -> list[Path]:
    """The tensors of pickles as safetensors files, which are removed when the stack is closed.

    They are unpickled with `weights_only`, which runs no code. Raises ModelError for pickles that hold anything but
    plain tensors by name.
    """
    import torch
    from safetensors.torch import save_file

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lite-c2f-adapter-")))
    files = []
    for source in pickles:
        try:
            tensors = torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:  # various classes for a damaged file, and one for a pickle that would run code
            reason = str(error).split("\n")[0][:120]
            raise _pickle_error(source, f"cannot be read without running code, or is damaged ({reason})") from None
        if not isinstance(tensors, dict) or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in tensors.items()
        ):
            raise _pickle_error(source, "holds more than tensors by name")
        for name, value in tensors.items():
            if problem := _not_plain(value):
                raise _pickle_error(source, f"has '{name}', which is {problem}")
        files.append(folder / f"{source.stem}.safetensors")
        save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, files[-1])
    return files


def _not_plain(tensor: Any) -> str | None:
    """Why a tensor cannot be copied; None for a dense floating-point tensor with storage for all its values."""
    import torch

    if tensor.is_nested or tensor.is_quantized:
        return "a nested tensor" if tensor.is_nested else "quantised by PyTorch"
    if tensor.layout != torch.strided:
        return f"a sparse tensor ({tensor.layout})"
    if tensor.device.type != "cpu":
        return f"on the device '{tensor.device.type}', without values"
    if tensor.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"{tensor.dtype}, and not bfloat16, float16 or float32"
    # A view may repeat its storage any number of times: a file of 1 kB could need terabytes.
    if tensor.numel() > (stored := tensor.untyped_storage().nbytes() // tensor.element_size()):
        return f"{tensor.numel()} values repeated from {stored}"
    return None


def no_adapter_error(folder: Path) -> ModelError:
    """The error for a folder without adapter_config.json, by what it contains."""
    expected = "an adapter folder saved by PEFT"
    if folder.suffix.lower() == ".gguf" or any(folder.glob("*.gguf")):
        return ModelError.because(f"'{folder}' is of llama.cpp", expected, "give the folder that it was converted from")
    if folder.is_file():
        remedy = f"did you mean '{folder.parent}'?" if (folder.parent / CONFIG).is_file() else "give its folder"
        return ModelError.because(f"'{folder}' is a file", expected, remedy)
    if near := _nearby_adapter(folder):
        return ModelError.because(f"no '{folder / CONFIG}'", expected, f"did you mean '{near}'?")
    if (folder / "config.json").is_file() and not list(folder.glob(f"{STEM}*")):
        got = f"'{folder}' holds a whole model and no '{CONFIG}'"
        return ModelError.because(got, expected, "give the folder of the LoRA adapter, before it was merged")
    if list(folder.glob(f"{STEM}*")):
        got = f"no '{CONFIG}' beside the weights in '{folder}'"
        return ModelError.because(got, "both, as PEFT saved them", "copy it there: without it rank and alpha are lost")
    remedy = "check the path (a folder on this machine, no hub name)"
    return ModelError.because(f"no '{folder / CONFIG}'", expected, remedy)


def _nearby_adapter(folder: Path) -> Path | None:
    """An adapter in a folder below; of a trainer's checkpoints the one with the most steps."""
    for place in NEARBY_PATTERNS:
        with contextlib.suppress(OSError):
            if near := [file.parent for file in folder.glob(f"{place}/{CONFIG}") if file.is_file()]:
                return max(near, key=_steps_of)
    return None


def _steps_of(folder: Path) -> tuple[int, str]:
    match = re.search(r"-(\d+)$", folder.name)
    return int(match[1]) if match else -1, str(folder)


def _pickle_error(file: Path, what: str) -> ModelError:
    remedy = "load the adapter with PEFT where it comes from and save it again: save_pretrained writes safetensors"
    return ModelError.because(f"the pickle '{file}' {what}", "an adapter's tensors", remedy)
