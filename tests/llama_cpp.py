"""A real llama.cpp for tests: node-llama-cpp's prebuilt one, which `make` puts into .venv/llama-cpp.

LITE_C2F_LLAMA_CPP may name another node_modules folder that holds node-llama-cpp.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
MODULES = Path(os.environ.get("LITE_C2F_LLAMA_CPP", ROOT / ".venv" / "llama-cpp" / "node_modules"))
PACKAGE = MODULES / "node-llama-cpp"
needs_llama_cpp = pytest.mark.skipif(
    shutil.which("node") is None or not (PACKAGE / "package.json").is_file(),
    reason=f"no node, or no node-llama-cpp in {MODULES}: `make .venv/.llama-cpp` (npm, Linux on x86_64, Node 20)",
)


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
