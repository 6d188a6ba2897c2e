"""Export benchmark: seconds and peak memory of `lite-c2f export` for a rank-16 adapter of a 7B-shaped model.

The adapter has a LoRA on every linear layer of Mistral-7B's shape (float32, 160 MiB); of the model there is only
config.json and a tokenizer, no weights are read. Time is that of the whole command, imports included, until the file is
on the disk. `rss_mib` is the command's peak resident set.

    python benchmarks/gguf_export.py --out benchmarks/results/gguf_export.json
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# No torch up here: a child's peak resident set starts from that of the process it is started by.
SHAPE = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
RANK = 16


def make(folder: Path) -> None:
    """The adapter and the model's configuration; in a process of its own."""
    import torch
    from models import save_tokenizer
    from safetensors.torch import save_file

    from lite_c2f.gguf.families import linear_layers

    for name in ("model", "adapter"):
        (folder / name).mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(SHAPE))
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK}
    save_tokenizer(folder / "model", SHAPE["vocab_size"])
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {}
    for name, layer in linear_layers(SHAPE, "7B").items():
        stem = "base_model.model." + name.removesuffix(".weight")
        rows, columns = layer.shape
        tensors[f"{stem}.lora_A.weight"] = torch.randn(RANK, columns)
        tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, RANK)
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})


def export(folder: Path, dtype: str) -> dict[str, float]:
    """One export, after which its files are removed."""
    out = folder / "out"
    options = {"--adapter": folder / "adapter", "--model": folder / "model", "--gguf-adapter": out / "r.gguf"}
    command = [sys.executable, "-m", "lite_c2f", "export", "--dtype", dtype]
    command += [str(word) for pair in options.items() for word in pair]
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - began
    assert status == 0
    mib = (out / "r.gguf").stat().st_size / 2**20
    shutil.rmtree(out)
    return {"seconds": round(seconds, 2), "rss_mib": usage.ru_maxrss // 1024, "file_mib": round(mib, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lite-c2f-export-") as name:
        folder = Path(name)
        subprocess.run([sys.executable, __file__, "--make", str(folder)], check=True)
        runs = {dtype: export(folder, dtype) for dtype in ("float32", "float16")}
    from models import machine, report

    report({"benchmark": "gguf_export", "rank": RANK, **runs, "machine": machine()}, options.out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make(Path(sys.argv[2]))
    else:
        main()
