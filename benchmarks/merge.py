"""The merger against `cp`, PEFT's merge_and_unload and mergekit 0.1.5: time, peak memory, and how exact the result is.

Equal on all sides: a Mistral-7B-shaped pair and a LoRA adapter of every linear layer (alpha = 2 r, float32), made here
from random weights; bfloat16 in and out, about as many shards; inputs read once before each round, so that they lie in
the page cache where they fit; a process of its own for each run, in turn, after a round that is not counted. The time
is that of the work, imports left out, until every output file is on the disk. `cp` copies the instruct folder: how fast
the disk is decides how far from it a merge can be. PEFT merges the adapter into the instruct model, which is our ratio
1. mergekit merges in two ways: `lora`, instruct+adapter passed through (the same arithmetic), and `task_arithmetic`,
base+adapter and instruct on the base with weight 1 each (the usual recipe for a pair).

Each `..._ratio` is ours / theirs (for mergekit: its faster way). `rss_mib` is the peak resident set of the whole
`lite-c2f merge` command; pages of mapped files count on all sides. `different_from_peft` counts elements with other
bits than PEFT's. `max_error` is the largest |written - exact| in bfloat16 spacings at the exact value, W + scaling * B
@ A in float64; where W and dW cancel, that is far below the float32 rounding of either, so `max_error_of_weight` takes
the spacing at W where it is wider. `misrounded` is the share of elements that are not the bfloat16 nearest to exact.

mergekit gets an environment with this one's torch: PIP_EXTRA_INDEX_URL where pip's own index lacks that build. The
whole 7B is --gib 13.5: 41 GiB of disk with --only ours,cp, else 95 and 16 GiB of memory or more. Prints one JSON line
last.

    python benchmarks/merge.py [--gib 1.7] [--only ours,cp,peft,mergekit] [--mergekit FOLDER] [--out FILE]
"""

import argparse
import json
import math
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

# No torch up here: a child's peak resident set starts from that of the process it is started by.

MERGEKIT = "0.1.5"
SPREAD, TUNED = 0.02, 0.01  # standard deviation of weights; of what tuning added, relative to it
BLOCK = 2**21  # elements made at once
SIDES = ("ours", "cp", "peft", "mergekit")
# In this order, and each output removed when it is no longer needed, there is one copy on the disk beside the models.
PATHS = {
    "command": "ours",
    "cp": "cp",
    "ours": "ours",
    "peft": "peft",
    "mergekit_lora": "mergekit",
    "mergekit_task_arithmetic": "mergekit",
}


# Models


def make(folder: str, gib: float, shards: int, rank: int, vocabulary: int) -> dict[str, Any]:
    """`base`, `instruct` and `adapter` below the folder, written block by block."""
    import torch
    from models import EOS, save_tokenizer
    from safetensors.torch import save_file
    from transformers import MistralConfig, MistralForCausalLM

    def empty(layers: int) -> MistralForCausalLM:
        """Of the default sizes, which are those of the 7B."""
        given = {"architectures": ["MistralForCausalLM"], "dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": EOS}
        with torch.device("meta"):
            return MistralForCausalLM(MistralConfig(vocab_size=vocabulary, num_hidden_layers=layers, **given))

    least = empty(1)
    layer = sum(weight.numel() for weight in least.model.layers[0].parameters())
    layers = 1 + round((gib * 2**29 - least.num_parameters()) / layer)
    model = empty(min(max(layers, 1), 32))
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    draw, root = torch.Generator().manual_seed(0), Path(folder)
    pair = [root / "base", root / "instruct"]
    for each in pair:
        model.config.save_pretrained(each)
        save_tokenizer(each, vocabulary)

    # 1. base and instruct, the second a little away from the first
    parts, done = defaultdict(list), 0
    for name, shape in shapes.items():  # by where the middle of each weight falls
        parts[(done + math.prod(shape) // 2) * shards // model.num_parameters()].append((name, shape))
        done += math.prod(shape)
    listed = {}
    for number, part in enumerate(parts.values(), 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in part:
            listed[name], start, end = file, end, end + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (pair[0] / file).open("wb") as base, (pair[1] / file).open("wb") as instruct:
            for target in (base, instruct):
                target.write(len(text).to_bytes(8, "little") + text)
            for _, shape in part:
                for first in range(0, math.prod(shape), BLOCK):
                    count = min(BLOCK, math.prod(shape) - first)
                    block = torch.randn(count, generator=draw).mul_(SPREAD).add_(float(len(shape) == 1))  # norms: 1
                    base.write(block.bfloat16().view(torch.uint8).numpy())
                    block.add_(torch.randn(count, generator=draw), alpha=SPREAD * TUNED)
                    instruct.write(block.bfloat16().view(torch.uint8).numpy())
    for each in pair:
        index = {"metadata": {"total_size": 2 * done}, "weight_map": listed}
        (each / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")

    # 2. the adapter, as PEFT saves it
    factors, modules = {}, set()
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if module.endswith("_proj"):
            factors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, shape[1], generator=draw) * 0.01
            factors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(shape[0], rank, generator=draw) * 0.005
            modules.add(module.rpartition(".")[2])
    (root / "adapter").mkdir(exist_ok=True)
    save_file(factors, root / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    settings |= {"base_model_name_or_path": str(pair[0]), "target_modules": sorted(modules), "inference_mode": True}
    (root / "adapter" / "adapter_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return {"bytes": 2 * done, "shards": len(parts), "layers": model.config.num_hidden_layers}


# The paths


def flush(folder: Path) -> None:
    """Every file of a folder, and the folder, onto the disk."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def timed(work: Callable[[], Any], out: str) -> dict[str, Any]:
    began = time.perf_counter()
    work()
    flush(Path(out))
    return {"seconds": time.perf_counter() - began}


def ours(base: str, instruct: str, adapter: str, out: str, **_: Any) -> dict[str, Any]:
    from lite_c2f.fine.merge import merge

    return timed(lambda: merge(adapter, base, instruct, out), out)


def peft(instruct: str, adapter: str, out: str, shard_bytes: int, **_: Any) -> dict[str, Any]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, MistralForCausalLM  # noqa: F401, imported lazily

    def work() -> None:
        model = AutoModelForCausalLM.from_pretrained(instruct, dtype=torch.bfloat16)
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        merged.save_pretrained(out, max_shard_size=shard_bytes)
        AutoTokenizer.from_pretrained(instruct).save_pretrained(out)

    return timed(work, out)


def mergekit(way: str, base: str, instruct: str, adapter: str, out: str, shard_bytes: int, cache: str) -> dict:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge
    from peft import PeftModel  # noqa: F401, imported lazily
    from transformers import MistralForCausalLM  # noqa: F401

    if way == "task_arithmetic":
        whole = {"parameters": {"weight": 1.0}}
        recipe = {"merge_method": way, "base_model": base}
        recipe["models"] = [{"model": f"{base}+{adapter}", **whole}, {"model": instruct, **whole}]
    else:
        recipe = {"merge_method": "passthrough", "models": [{"model": f"{instruct}+{adapter}"}]}
    found = MergeConfiguration.model_validate(recipe | {"dtype": "bfloat16"})
    options = MergeOptions(lora_merge_cache=cache, out_shard_size=shard_bytes, lazy_unpickle=True, quiet=True)
    return timed(lambda: run_merge(found, out, options), out) | {
        "versions": {name: version(name) for name in ("mergekit", "torch", "transformers", "peft")}
    }


# Is it right?


def weights_in(folder: str) -> dict[str, Any]:
    """Every weight of a safetensors folder, to be read row by row."""
    from safetensors import safe_open

    files = [safe_open(path, framework="pt") for path in sorted(Path(folder).glob("*.safetensors"))]
    return {name: file.get_slice(name) for file in files for name in file.keys()}  # noqa: SIM118, no mapping


def check(instruct: str, adapter: str, outs: dict[str, str]) -> dict[str, Any]:
    """How far each output is from the exact sum, and how many of our elements have other bits than PEFT's."""
    import torch

    config = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    scaling = config["lora_alpha"] / config["r"]
    before, factors = weights_in(instruct), weights_in(adapter)
    merged = {name: weights_in(folder) for name, folder in outs.items()}
    for name, weights in merged.items():
        if weights.keys() != before.keys():
            raise SystemExit(f"the weights of {name} are not those of instruct: {weights.keys() ^ before.keys()}")
    worst = {name: [0.0, 0.0] for name in merged}  # in spacings at the exact value; at the weight where wider
    misrounded, different, elements = dict.fromkeys(merged, 0), 0, 0
    for name, weight in before.items():
        shape, module = weight.get_shape(), f"base_model.model.{name.removesuffix('.weight')}"
        down = factors.get(f"{module}.lora_A.weight")
        down = None if down is None else down[:].double()
        step = max(1, BLOCK * len(shape) // (2 * shape[-1]))
        for first in range(0, shape[0], step):
            rows = slice(first, first + step)
            stored = weight[rows].double()
            found = {side: weights[name][rows] for side, weights in merged.items()}
            exact = stored
            if down is not None:
                exact = stored + scaling * (factors[f"{module}.lora_B.weight"][rows].double() @ down)
            elements += exact.numel()
            at_sum, at_weight = spacing(exact), spacing(stored)
            for side, values in found.items():
                if values.dtype != torch.bfloat16 or not values.isfinite().all():
                    raise SystemExit(f"'{name}' of {side} is {values.dtype}: finite bfloat16 was asked for")
                error = (values.double() - exact).abs_()
                misrounded[side] += int((error > at_sum / 2).sum())
                largest = (error / at_sum).max(), (error / torch.maximum(at_sum, at_weight)).max()
                worst[side] = [max(old, float(new)) for old, new in zip(worst[side], largest, strict=True)]
            if "peft" in found:
                different += int((found["ours"].view(torch.int16) != found["peft"].view(torch.int16)).sum())
    rounding = {
        side: {
            "max_error": float(f"{at_sum:.4g}"),
            "max_error_of_weight": float(f"{at_weight:.4g}"),
            "misrounded": float(f"{misrounded[side] / elements:.3g}"),
        }
        for side, (at_sum, at_weight) in worst.items()
    }
    return {"rounding": rounding, "different_from_peft": different if "peft" in merged else None}


def spacing(values: Any) -> Any:
    """The distance of bfloat16 numbers (8 bits) around each value, float64; 2^-133 around 0."""
    import torch

    exponent = values.abs().clamp_(min=2.0**-126).frexp().exponent  # of a fraction in [1/2, 1)
    return torch.ldexp(torch.ones_like(values), exponent - 8)


# In turn


def run(command: list[str]) -> tuple[str, dict[str, float]]:
    """A process of its own: what it printed last, its seconds and its peak resident set."""
    settings = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "GOMP_SPINCOUNT": "10000"}
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    settings["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=errors, env=os.environ | settings)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, errors):
            file.seek(0)
        if process.returncode:
            raise RuntimeError(errors.read().strip()[-3000:] or f"{command[0]} ended with {process.returncode}")
        lines = out.read().splitlines() or [""]
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return lines[-1], {"seconds": seconds, "rss_mib": usage.ru_maxrss / scale}


def child(task: str, python: Path | str = sys.executable, **given: Any) -> dict[str, Any]:
    """One of the functions above in a process of its own."""
    said, measured = run([str(python), __file__, "--child", json.dumps([task, given])])
    return measured | json.loads(said)


def run_child(text: str) -> None:
    task, given = json.loads(text)
    if task.startswith("mergekit_"):
        found = mergekit(task.removeprefix("mergekit_"), **given)
    else:
        found = {"make": make, "ours": ours, "peft": peft, "check": check}[task](**given)
    print("\n" + json.dumps(found))


def install(folder: Path) -> Path:
    """mergekit in an environment of its own, with the torch of this one (another may be gigabytes of CUDA)."""
    python = folder / "bin" / "python"
    if not python.is_file():
        torch = f"torch=={version('torch')}"
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        limits = folder / "constraints.txt"
        limits.write_text(f"{torch}\n", encoding="utf-8")
        for wanted in (torch, f"mergekit=={MERGEKIT}"):
            command = [str(python), "-m", "pip", "install", "-q", "-c", str(limits), wanted]
            subprocess.run(command, check=True, stdout=sys.stderr)
    return python


def warm(folders: list[Path]) -> None:
    """Read every file once; the last folder is the last to leave the page cache."""
    buffer = bytearray(2**22)
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        with path.open("rb", buffering=0) as source:
            while source.readinto(buffer):
                pass


def once(path: str, models: Path, out: Path, shard_bytes: int, python: Path | str) -> dict[str, Any]:
    """One path, once; whatever the disk has left to do from before is waited for first."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    folders = {name: str(models / name) for name in ("base", "instruct", "adapter")}
    if path == "cp":
        began = time.perf_counter()
        _, measured = run(["cp", "-r", folders["instruct"], str(out)])
        flush(out)
        return measured | {"seconds": time.perf_counter() - began}
    if path == "command":
        options = [word for name, folder in folders.items() for word in (f"--{name}", folder)]
        return run([sys.executable, "-m", "lite_c2f", "merge", *options, "--out", str(out), "--ratio", "1"])[1]
    if not path.startswith("mergekit"):
        return child(path, **folders, out=str(out), shard_bytes=shard_bytes)
    with tempfile.TemporaryDirectory(dir=out.parent) as cache:
        return child(path, python, **folders, out=str(out), shard_bytes=shard_bytes, cache=cache)


def measure(given: argparse.Namespace, models: Path, scratch: Path, made: dict[str, Any], python: Path | None) -> dict:
    """Every path `repeats` times after a round that is not counted, then the check of what was written last."""
    shard_bytes = made["bytes"] * 21 // (20 * given.shards)
    runs: dict[str, list[dict]] = {path: [] for path, side in PATHS.items() if side in given.only}
    failed: dict[str, str] = {}
    for repeat in range(given.repeats + 1):
        warm([models / name for name in ("base", "adapter", "instruct")])
        for path in list(runs):
            try:
                found = once(path, models, scratch / path, shard_bytes, python or sys.executable)
                runs[path] += [found] if repeat else []
            except RuntimeError as error:
                if PATHS[path] in ("ours", "cp"):
                    raise
                failed[path] = str(error).splitlines()[-1]
                del runs[path]
            if repeat < given.repeats or path in ("command", "cp") or path in failed:
                shutil.rmtree(scratch / path, ignore_errors=True)
    checked = {}
    if "ours" in runs:
        outs = {path: str(scratch / path) for path in runs if path not in ("command", "cp")}
        checked = child("check", instruct=str(models / "instruct"), adapter=str(models / "adapter"), outs=outs)
    return {"runs": runs, "failed": failed, "checked": checked}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The ratios, and each path's medians and ranges."""
    runs, paths, ratios = found["runs"], {}, {}
    for path, of_path in runs.items():
        seconds = [each["seconds"] for each in of_path]
        paths[path] = {
            "seconds": round(statistics.median(seconds), 3),
            "range": [round(min(seconds), 3), round(max(seconds), 3)],
            "rss_mib": round(max(each["rss_mib"] for each in of_path)),
        }
    for side in SIDES[1:] if "ours" in runs else ():
        measured = [path for path in runs if PATHS[path] == side]
        if measured:
            fastest = min(measured, key=lambda path: paths[path]["seconds"])
            pairs = zip(runs["ours"], runs[fastest], strict=True)
            each = [mine["seconds"] / theirs["seconds"] for mine, theirs in pairs]
            ratios[f"{side}_ratio"] = round(paths["ours"]["seconds"] / paths[fastest]["seconds"], 3)
            ratios[f"{side}_ratio_range"] = [round(min(each), 3), round(max(each), 3)]
    return {**ratios, "paths": paths, "failed": found["failed"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=1.7)
    parser.add_argument("--shards", type=int, default=5)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(SIDES), help=",".join(SIDES))
    parser.add_argument("--mergekit", type=Path, help=f"environment with mergekit {MERGEKIT}, made if it is not there")
    parser.add_argument("--keep", type=Path, help="folder for the models, used again if they are there")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return run_child(given.child)
    if unknown := set(given.only) - set(SIDES):
        parser.error(f"--only {','.join(sorted(unknown))}: it knows {','.join(SIDES)}")

    wanted = {name: getattr(given, name) for name in ("gib", "shards", "rank", "vocabulary")}
    with tempfile.TemporaryDirectory() as temporary:
        models = (given.keep or Path(temporary) / "models").resolve()
        note = models / "made.json"
        made = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
        if made.get("wanted") != wanted:
            if models.is_dir() and any(models.iterdir()):
                parser.error(f"--keep {models} holds something else than these models ({wanted})")
            made = child("make", folder=str(models), **wanted) | {"wanted": wanted}
            note.write_text(json.dumps(made), encoding="utf-8")
        python = (
            install((given.mergekit or Path(temporary) / "mergekit").resolve()) if "mergekit" in given.only else None
        )
        # Beside the models: the same disk for what is read and what is written.
        with tempfile.TemporaryDirectory(dir=models) as scratch:
            found = measure(given, models, Path(scratch), made, python)

    theirs = [each["versions"] for path, runs in found["runs"].items() for each in runs if PATHS[path] == "mergekit"]
    figures = summary(found)
    rounding = found["checked"].get("rounding", {})
    result = {
        "benchmark": "merge",
        "unit": "ours / theirs, median seconds of a merge until it is on the disk; max_error in bfloat16 spacings",
        **figures,
        "rss_mib": figures["paths"].get("command", {}).get("rss_mib"),
        "different_from_peft": found["checked"].get("different_from_peft"),
        **rounding.get("ours", {}),
        "rounding": rounding,
        "gib": round(made["bytes"] / 2**30, 2),
        **{name: made[name] for name in ("layers", "shards")},
        **{name: getattr(given, name) for name in ("rank", "vocabulary", "repeats")},
        "mergekit": theirs[0] if theirs else None,
        "command": shlex.join(["python", *sys.argv]),
    }
    from models import machine, report

    return report(result | machine(), given.out)


if __name__ == "__main__":
    main()
