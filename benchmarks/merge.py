"""The merger against `cp`, PEFT's merge_and_unload and mergekit 0.1.5: time, peak memory, and exactness.

Equal on all sides: a Mistral-7B-shaped pair and a LoRA adapter of every linear layer (alpha = 2 r, float32), made here
from random weights; bfloat16 in and out, about as many shards; inputs read once before each round, so that they lie in
the page cache where they fit; a process of its own for each run, in turn, after a round that is not counted. The time
is that of the work, imports left out, until every output file is on the disk. `cp` copies the instruct folder: how fast
the disk is decides how far from it a merge can be. PEFT merges the adapter into the instruct model, which is our ratio
1. mergekit merges in two ways: `lora`, instruct+adapter passed through (the same arithmetic), and `task_arithmetic`,
base+adapter and instruct on the base with weight 1 each (the usual recipe for a pair). `--variant rslora` is an adapter
with alpha / sqrt(r) and ranks and alphas of its own for some layers; `tied` a pair whose head is its embedding.

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
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from merge_check import check
from merge_models import VARIANTS, make

# No torch up here: a child's peak resident set starts from that of the process it is started by.

MERGEKIT = "0.1.5"
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
    configuration = MergeConfiguration.model_validate(recipe | {"dtype": "bfloat16"})
    merge_options = MergeOptions(lora_merge_cache=cache, out_shard_size=shard_bytes, lazy_unpickle=True, quiet=True)
    return timed(lambda: run_merge(configuration, out, merge_options), out) | {
        "versions": {name: version(name) for name in ("mergekit", "torch", "transformers", "peft")}
    }


def run(command: list[str]) -> tuple[str, dict[str, float]]:
    """Run a process: the last line it printed, its seconds and its peak resident set."""
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


def child(task: str, python: Path | str = sys.executable, **arguments: Any) -> dict[str, Any]:
    """One of the functions above in a process of its own."""
    line, measured = run([str(python), __file__, "--child", json.dumps([task, arguments])])
    return measured | json.loads(line)


def run_child(text: str) -> None:
    task, arguments = json.loads(text)
    if task.startswith("mergekit_"):
        result = mergekit(task.removeprefix("mergekit_"), **arguments)
    else:
        result = {"make": make, "ours": ours, "peft": peft, "check": check}[task](**arguments)
    print("\n" + json.dumps(result))


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
    """One path, once; after waiting for writes from before."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    folders = {name: str(models / name) for name in ("base", "instruct", "adapter")}
    if path == "cp":
        began = time.perf_counter()
        _, measured = run(["cp", "-r", folders["instruct"], str(out)])
        flush(out)
        return measured | {"seconds": time.perf_counter() - began}
    if path == "command":
        flags = [word for name, folder in folders.items() for word in (f"--{name}", folder)]
        return run([sys.executable, "-m", "lite_c2f", "merge", *flags, "--out", str(out), "--ratio", "1"])[1]
    if not path.startswith("mergekit"):
        return child(path, **folders, out=str(out), shard_bytes=shard_bytes)
    with tempfile.TemporaryDirectory(dir=out.parent) as cache:
        return child(path, python, **folders, out=str(out), shard_bytes=shard_bytes, cache=cache)


def measure_all(
    options: argparse.Namespace, models: Path, scratch: Path, made: dict[str, Any], python: Path | None
) -> dict:
    """Every path `repeats` times after a round that is not counted, then the check of the last outputs."""
    shard_bytes = made["bytes"] * 21 // (20 * options.shards)
    runs: dict[str, list[dict]] = {path: [] for path, side in PATHS.items() if side in options.only}
    failed: dict[str, str] = {}
    for repeat in range(options.repeats + 1):
        warm([models / name for name in ("base", "adapter", "instruct")])
        for path in list(runs):
            try:
                figures = once(path, models, scratch / path, shard_bytes, python or sys.executable)
                runs[path] += [figures] if repeat else []
            except RuntimeError as error:
                if PATHS[path] in ("ours", "cp"):
                    raise
                failed[path] = str(error).splitlines()[-1]
                del runs[path]
            if repeat < options.repeats or path in ("command", "cp") or path in failed:
                shutil.rmtree(scratch / path, ignore_errors=True)
    checked = {}
    if "ours" in runs:
        outs = {path: str(scratch / path) for path in runs if path not in ("command", "cp")}
        checked = child("check", instruct=str(models / "instruct"), adapter=str(models / "adapter"), outs=outs)
    return {"runs": runs, "failed": failed, "checked": checked}


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    """The ratios, and each path's medians and ranges."""
    runs, paths, ratios = measured["runs"], {}, {}
    for path, of_path in runs.items():
        seconds = [each["seconds"] for each in of_path]
        paths[path] = {
            "seconds": round(statistics.median(seconds), 3),
            "range": [round(min(seconds), 3), round(max(seconds), 3)],
            "rss_mib": round(max(each["rss_mib"] for each in of_path)),
        }
    for side in SIDES[1:] if "ours" in runs else ():
        of_side = [path for path in runs if PATHS[path] == side]
        if of_side:
            fastest = min(of_side, key=lambda path: paths[path]["seconds"])
            pairs = zip(runs["ours"], runs[fastest], strict=True)
            each = [ours["seconds"] / peer["seconds"] for ours, peer in pairs]
            ratios[f"{side}_ratio"] = round(paths["ours"]["seconds"] / paths[fastest]["seconds"], 3)
            ratios[f"{side}_ratio_range"] = [round(min(each), 3), round(max(each), 3)]
    return {**ratios, "paths": paths, "failed": measured["failed"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=1.7)
    parser.add_argument("--shards", type=int, default=5)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--variant", choices=VARIANTS, default="plain", help="of the adapter or the pair")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(SIDES), help=",".join(SIDES))
    parser.add_argument("--mergekit", type=Path, help=f"environment with mergekit {MERGEKIT}, made if it is not there")
    parser.add_argument("--keep", type=Path, help="folder for the models, used again if they are there")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return run_child(options.child)
    if unknown := set(options.only) - set(SIDES):
        parser.error(f"--only {','.join(sorted(unknown))}: expected some of {','.join(SIDES)}")

    wanted = {name: getattr(options, name) for name in ("gib", "shards", "rank", "vocabulary", "variant")}
    with tempfile.TemporaryDirectory() as temporary:
        models = (options.keep or Path(temporary) / "models").resolve()
        note = models / "made.json"
        made = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
        if made.get("wanted") != wanted:
            if models.is_dir() and any(models.iterdir()):
                parser.error(f"--keep {models} holds other files than these models ({wanted})")
            made = child("make", folder=str(models), **wanted) | {"wanted": wanted}
            note.write_text(json.dumps(made), encoding="utf-8")
        python = (
            install((options.mergekit or Path(temporary) / "mergekit").resolve())
            if "mergekit" in options.only
            else None
        )
        # Beside the models: the same disk for what is read and what is written.
        with tempfile.TemporaryDirectory(dir=models) as scratch:
            measured = measure_all(options, models, Path(scratch), made, python)

    versions = [
        each["versions"] for path, runs in measured["runs"].items() for each in runs if PATHS[path] == "mergekit"
    ]
    figures = summary(measured)
    rounding = measured["checked"].get("rounding", {})
    result = {
        "benchmark": "merge",
        "unit": "ours / theirs, median seconds of a merge until it is on the disk; max_error in bfloat16 spacings",
        **figures,
        "rss_mib": figures["paths"].get("command", {}).get("rss_mib"),
        "different_from_peft": measured["checked"].get("different_from_peft"),
        **rounding.get("ours", {}),
        "rounding": rounding,
        "gib": round(made["bytes"] / 2**30, 2),
        **{name: made[name] for name in ("layers", "shards")},
        **{name: getattr(options, name) for name in ("variant", "rank", "vocabulary", "repeats")},
        "mergekit": versions[0] if versions else None,
        "command": shlex.join(["python", *sys.argv]),
    }
    from models import machine, report

    return report(result | machine(), options.out)


if __name__ == "__main__":
    main()
