"""The Knowledge Residue Merger: W_fine = W_instruct + ratio * dW, shard by shard."""

import hashlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lite_c2f.backbone.pair import check_pair, read_config
from lite_c2f.errors import ConfigError, ModelError
from lite_c2f.fine import shards
from lite_c2f.fine.checks import (
    DTYPES,
    LayerRatios,
    check_disk,
    check_fit,
    check_origin,
    check_out,
    check_ratio,
    choose_ratios,
    read_layer_ratios,
)
from lite_c2f.fine.delta import WEIGHTS, Adapter, LowRank, read_adapter
from lite_c2f.runs import publish_folder, write_json

Progress = Callable[[int, int], None]  # (bytes done, bytes in all), weights only

CODES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
REPORT = "merge.json"
# Elements worked on at once: the float32 temporaries (1 MiB each) stay in the processor's cache. 2**16 and 2**22 were
# slower on 2 cores, and peak memory rises with it: 268 MiB of which 222 are torch itself, against 617 MiB at 2**22.
CHUNK_ELEMENTS = 2**18


@dataclass
class Change:
    """Sums over the elements of one or more tensors; what the report is made of."""

    elements: int = 0
    unchanged: int = 0  # elements equal to the instruct model's, in the output's dtype
    weight_square: float = 0.0  # <W, W>
    intended_square: float = 0.0  # <ratio * dW, ratio * dW>
    realised_intended: float = 0.0  # <W_fine - W, ratio * dW>, after rounding

    def add(self, other: "Change") -> None:
        """Take over the sums of another part."""
        self.elements += other.elements
        self.unchanged += other.unchanged
        self.weight_square += other.weight_square
        self.intended_square += other.intended_square
        self.realised_intended += other.realised_intended

    def figures(self) -> dict[str, float | int | None]:
        """The three figures; null where the divisor is zero."""
        return {
            "elements": self.elements,
            "relative_change": _ratio(math.sqrt(self.intended_square), math.sqrt(self.weight_square)),
            "unchanged_share": _ratio(self.unchanged, self.elements),
            "projection": _ratio(self.realised_intended, self.intended_square),
        }


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What was merged and what came of it; merge.json holds the same fields.

    tensors and totals: `relative_change` |ratio * dW| / |W| (Frobenius norms, before rounding), `unchanged_share` the
    share of elements that rounding left as they were, `projection` <realised, intended> / <intended, intended>: 1.0
    when the rounded weights carry the whole residue, 0.0 when none of it.
    """

    schema: int = 1
    ratio: float
    layer_ratios: list[list[Any]]  # [pattern, ratio], first match wins
    dtype: str  # "unchanged", or the dtype that was asked for
    adapter: dict[str, str]  # folder name and sha256 of its weights
    base: str | None  # folder names only: full paths do not belong into a published model
    instruct: str
    shards: dict[str, str]  # file name -> sha256
    tensors: dict[str, dict[str, Any]]
    totals: dict[str, Any]


def merge(
    adapter: str | Path,
    base: str | Path | None,
    instruct: str | Path,
    out: str | Path,
    ratio: float = 1.0,
    layer_ratios: LayerRatios | None = None,
    dtype: str | None = None,
    allow_negative: bool = False,
    progress: Progress | None = None,
    report: str | Path | None = None,
) -> MergeReport:
    """Merge the residue of an adapter into an instruct model and publish the result as a Transformers folder.

        W_fine = W_instruct + ratio * dW,    dW = scaling * B @ A

    in float32, rounded once to the dtype of each tensor (or to `dtype`). Our own: the paper publishes neither residue
    definition nor ratios for its Knowledge Residue Merger. Memory: the adapter in float32 plus a few chunks of rows.

    adapter: folder of a LoRA adapter of the base; base: folder of the model it was trained on, None to skip the
    comparison with it; instruct: folder of the full-precision model to merge into. layer_ratios: (pattern, ratio)
    pairs, or a YAML file of them, fnmatch on the weight's name, first match wins, `ratio` for the rest. dtype:
    "bfloat16", "float16", "float32" or None. progress: called with (bytes done, bytes in all) of the output's weights.
    report: where the report goes, `out`/merge.json by default.

    Nothing appears at `out` unless everything does. Raises ConfigError for ratios and dtypes, ModelError for an
    adapter or models that do not fit together, RunError when `out` is in the way or the disk is too small.

    >>> report = merge("runs/a/coarse/adapter", "Mistral-7B-v0.1", "Mistral-7B-Instruct-v0.1", "fine", ratio=0.75)
    >>> report.totals["projection"]
    """
    adapter, instruct, out = Path(adapter), Path(instruct), Path(out).resolve()
    base = None if base is None else Path(base)
    report = out / REPORT if report is None else Path(report).resolve()

    # 1. settings, before any file is read
    check_ratio("ratio", ratio, allow_negative)
    patterns = read_layer_ratios(layer_ratios, allow_negative)
    if dtype is not None and dtype not in CODES:
        raise ConfigError.because(f"'dtype' is {dtype!r}", f"one of {', '.join(CODES)}", "choose one or leave it out")
    check_out(out, [folder for folder in (adapter, base, instruct) if folder is not None])

    # 2. do the three belong together?
    residue = read_adapter(adapter)
    if base is not None:
        check_pair(base, instruct)
        check_origin(residue, base)
    config = read_config(instruct)
    files = shards.read_model(instruct)
    check_fit(residue, config, instruct, {entry.name: entry for entries in files.values() for entry in entries})
    ratios = choose_ratios(residue, ratio, patterns)

    # 3. room for it?
    others = [name for name in shards.other_files(instruct) if name != Path(REPORT)]
    total = sum(_size(entry, dtype) for entries in files.values() for entry in entries)
    check_disk(out, total + sum((instruct / name).stat().st_size for name in others))

    # 4. write beside `out`, then rename
    if out.exists():
        out.rmdir()
    with publish_folder(out) as unfinished:
        shards.copy_files(instruct, unfinished, others)
        if dtype is not None:
            set_dtype(unfinished, config, dtype)
        work = _Work(residue, ratios, dtype, total, progress)
        hashes = {file.name: work.write(unfinished / file.name, entries) for file, entries in files.items()}
        if list(hashes) != [shards.SINGLE]:
            weight_map = {entry.name: file.name for file, entries in files.items() for entry in entries}
            shards.write_index(unfinished, weight_map, total)
        result = MergeReport(
            ratio=float(ratio),
            layer_ratios=[list(pair) for pair in patterns],
            dtype=dtype or "unchanged",
            adapter={"name": adapter.resolve().name, "sha256": _sha256(adapter / WEIGHTS)},
            base=None if base is None else base.resolve().name,
            instruct=instruct.resolve().name,
            shards=hashes,
            tensors={name: {"ratio": ratios[name], **change.figures()} for name, change in work.changes.items()},
            totals=work.totals(),
        )
        # Before the rename: a published model always has its report.
        write_json(unfinished / report.relative_to(out) if report.is_relative_to(out) else report, asdict(result))
    return result


def print_progress(done_bytes: int, total_bytes: int) -> None:
    """A ready `progress` callback: one line on stderr, rewritten in place, ended when all is done."""
    end = "\n" if done_bytes >= total_bytes else ""
    share = 100 * done_bytes // max(total_bytes, 1)
    sys.stderr.write(f"\rmerged {done_bytes / 2**30:.2f} of {total_bytes / 2**30:.2f} GiB ({share}%){end}")
    sys.stderr.flush()


def set_dtype(folder: Path, config: dict[str, Any], dtype: str) -> None:
    """Write the new dtype into config.json under the key that is there (`dtype`, before Transformers 5 torch_dtype)."""
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    if any(config.get(key) != dtype for key in keys):
        write_json(folder / "config.json", {**config, **dict.fromkeys(keys, dtype)})


class _Work:
    """The state of one merge while its shards are written: bytes done, and the sums behind the report."""

    def __init__(
        self, residue: Adapter, ratios: dict[str, float], dtype: str | None, total: int, progress: Progress | None
    ) -> None:
        self.residue, self.ratios, self.dtype = residue, ratios, dtype
        self.total, self.done, self.progress = total, 0, progress
        self.changes: dict[str, Change] = {}

    def write(self, file: Path, entries: list[shards.TensorEntry]) -> str:
        """Write one shard and return its sha256."""
        layout = [(entry.name, _code(entry, self.dtype), entry.shape) for entry in entries]
        # The widest first keeps every tensor aligned, whatever the new dtype.
        order = sorted(range(len(layout)), key=lambda index: -shards.ITEM_BYTES[layout[index][1]])
        chunks = self._chunks([entries[index] for index in order])
        return shards.write_shard(file, [layout[index] for index in order], chunks)

    def totals(self) -> dict[str, Any]:
        """Figures over all weights the adapter changes. Raises ModelError when not one element changed."""
        total = Change()
        for change in self.changes.values():
            total.add(change)
        if total.unchanged == total.elements:
            raise ModelError.because(
                "the merged weights are the instruct model's, all of them",
                "a residue that survives rounding",
                "raise the ratio, merge into float32, or train the adapter (an untrained one is zero)",
            )
        return {"tensors": len(self.changes), **total.figures(), "bytes": self.total}

    def _chunks(self, entries: list[shards.TensorEntry]) -> Iterator[shards.Chunk]:
        for entry in entries:
            with entry.file.open("rb") as source:
                low_rank = self.residue.deltas.get(entry.name)
                parts: Iterator[shards.Chunk]
                if low_rank is not None:
                    parts = self._merged(source, entry, low_rank)
                elif _code(entry, self.dtype) != entry.dtype:
                    parts = self._cast(source, entry)
                else:
                    parts = shards.read_chunks(source, entry, 4 * CHUNK_ELEMENTS)
                for part in parts:
                    self.done += len(part)
                    yield part
                    if self.progress is not None:
                        self.progress(self.done, self.total)

    def _merged(self, source: BinaryIO, entry: shards.TensorEntry, low_rank: LowRank) -> Iterator[memoryview]:
        rows, columns = entry.shape
        step = max(1, CHUNK_ELEMENTS // max(columns, 1))
        ratio, code = self.ratios[entry.name], _code(entry, self.dtype)
        change = self.changes.setdefault(entry.name, Change())
        chunk_bytes = step * columns * shards.ITEM_BYTES[entry.dtype]
        for start, chunk in zip(range(0, rows, step), shards.read_chunks(source, entry, chunk_bytes), strict=True):
            weight = torch.frombuffer(chunk, dtype=DTYPES[entry.dtype]).view(-1, columns)
            intended = low_rank.delta(slice(start, start + step)).mul_(ratio)
            merged = (weight.float() + intended).to(DTYPES[code])
            change.add(measure(weight, intended, merged))
            yield _bytes(merged, entry)

    def _cast(self, source: BinaryIO, entry: shards.TensorEntry) -> Iterator[memoryview]:
        chunk_bytes = CHUNK_ELEMENTS * shards.ITEM_BYTES[entry.dtype]
        for chunk in shards.read_chunks(source, entry, chunk_bytes):
            weight = torch.frombuffer(chunk, dtype=DTYPES[entry.dtype])
            yield _bytes(weight.to(DTYPES[_code(entry, self.dtype)]), entry)


def measure(weight: torch.Tensor, intended: torch.Tensor, merged: torch.Tensor) -> Change:
    """Compare merged rows with the instruct model's own in the same dtype: the dtype's change is not the residue's.

    weight (rows, in) as stored; intended (rows, in) float32, ratio * dW; merged (rows, in) in the output's dtype.
    """
    before = weight.to(merged.dtype).float()
    realised = merged.float() - before  # not in place: .float() of float32 is the weight itself
    stored = before if weight.dtype == merged.dtype else weight.float()
    return Change(
        elements=weight.numel(),
        unchanged=weight.numel() - int(torch.count_nonzero(realised)),
        weight_square=_dot(stored, stored),
        intended_square=_dot(intended, intended),
        realised_intended=_dot(realised, intended),
    )


def _dot(left: torch.Tensor, right: torch.Tensor) -> float:
    # A chunk in float32 is right to about 3e-6 and 15 times as fast as a float64 sum; it may overflow, though.
    value = float(torch.dot(left.view(-1), right.view(-1)))
    return value if math.isfinite(value) else float(torch.dot(left.double().view(-1), right.double().view(-1)))


def _bytes(tensor: torch.Tensor, entry: shards.TensorEntry) -> memoryview:
    smallest, largest = tensor.aminmax()  # both NaN if one is; 17 times as fast as isfinite().all()
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        raise ModelError.because(
            f"'{entry.name}' holds NaN or infinity after the merge",
            f"finite weights in {str(tensor.dtype).removeprefix('torch.')}",
            f"check '{entry.file}', lower the ratio, or choose bfloat16 instead of float16",
        )
    return tensor.view(-1).view(torch.uint8).numpy().data


def _code(entry: shards.TensorEntry, dtype: str | None) -> str:
    return CODES[dtype] if dtype is not None and entry.dtype in DTYPES else entry.dtype


def _size(entry: shards.TensorEntry, dtype: str | None) -> int:
    return math.prod(entry.shape) * shards.ITEM_BYTES[_code(entry, dtype)]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _sha256(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
