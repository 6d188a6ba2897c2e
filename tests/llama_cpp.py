"""A real llama.cpp for tests: node-llama-cpp's prebuilt one, which `make` puts into .venv/llama-cpp.

LITE_C2F_LLAMA_CPP may name another node_modules folder that holds node-llama-cpp.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
MODULES = Path(os.environ.get("LITE_C2F_LLAMA_CPP", ROOT / ".venv" / "llama-cpp" / "node_modules"))
PACKAGE = MODULES / "node-llama-cpp"
SOURCE, PYTHON = MODULES.parent / "source", MODULES.parent / "python"  # llama.cpp's converters, and what they import


def _missing() -> str | None:
    """What is not there to run it; None if all is."""
    node = shutil.which("node")
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout if node else ""
    if not version or int(version.strip("v\n").split(".")[0]) < 20:
        return f"Node 20 or newer ({version.strip() or 'no node'} here)"
    return None if (PACKAGE / "package.json").is_file() else f"no node-llama-cpp in {MODULES}: `make .venv/.llama-cpp`"


MISSING = _missing()
needs_llama_cpp = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")


def llama_cpp(model: Path, adapter: Path | None, scales: list[float], **job: Any) -> list[dict[str, Any]]:
    """What llama.cpp says of token ids at each scale of an adapter; see llama_cpp.mjs for the job and the result."""
    content = {"package": str(PACKAGE), "model": str(model), "adapter": adapter and str(adapter), "scales": scales}
    done = subprocess.run(
        ["node", str(Path(__file__).with_name("llama_cpp.mjs"))],
        input=json.dumps(content | job),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    return json.loads(done.stdout.splitlines()[-1])["scales"]


def converter(script: str, *arguments: Any) -> None:
    """Run a converter of llama.cpp's, of the same release."""
    environment = os.environ | {"PYTHONPATH": str(PYTHON), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(SOURCE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def float32_copy(source: Path, target: Path) -> None:
    """A GGUF file with the same metadata and float32 tensors, of the values that bfloat16 has for them.

    These are the weights of the folder that `gguf_folder` makes of the file.
    """
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = 0 if name == "general.file_type" else field.contents()
        array = field.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(name, value, field.types[0], field.types[-1] if array else None)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, torch.from_numpy(values).bfloat16().float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def set_scale(adapted: Any, scale: float) -> None:
    """A multiple of a PEFT model's adapter, as llama.cpp's scale."""
    for module in adapted.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", scale)


@torch.no_grad()
def log_probabilities(adapted: Any, scale: float, ids: list[int]) -> torch.Tensor:
    """(T, vocabulary) of Transformers at a multiple of the adapter."""
    set_scale(adapted, scale)
    return adapted(torch.tensor([ids])).logits[0].log_softmax(-1)


@torch.no_grad()
def greedy(adapted: Any, scale: float, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Each prompt with the `count` tokens that Transformers finds likeliest, past any end token."""
    set_scale(adapted, scale)
    width = max(map(len, prompts))
    rows = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"do_sample": False, "max_new_tokens": count, "eos_token_id": None, "pad_token_id": 0}
    texts = adapted.generate(input_ids=rows, attention_mask=mask, **options)
    return [prompt + text[width:].tolist() for prompt, text in zip(prompts, texts, strict=True)]


def changed_tokens(steps: list[dict[str, Any]], tokens: list[int]) -> list[dict[str, float]]:
    """Places where llama.cpp's likeliest token is another one, with how much likelier it finds it, in nats."""
    return [
        {"place": place, "margin": step["bestLogp"] - step["nextLogp"]}
        for place, (step, token) in enumerate(zip(steps, tokens, strict=True))
        if step["best"] != token
    ]
