"""The Knowledge Residue Merger: W_fine = W_instruct + ratio * dW, shard by shard."""

import hashlib
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml

from lite_c2f.errors import ConfigError, ModelError, RunError
from lite_c2f.fine import shards
from lite_c2f.fine.delta import WEIGHTS, Adapter, LowRank, read_adapter
from lite_c2f.fine.pair import check_configs, check_pair, read_config
from lite_c2f.runs import publish_folder, write_json

Progress = Callable[[int, int], None]  # (bytes done, bytes in all), weights only
LayerRatios = str | Path | Sequence[tuple[str, float]]

CODES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")
REPORT = "merge.json"
# Elements worked on at once: the float32 temporaries of a chunk (4 MiB each) stay in the processor's cache.
CHUNK_ELEMENTS = 2**20


@dataclass
class Change:
    """Sums over the elements of one or more tensors, in float64; what the report is made of."""

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


@dataclass(frozen=True)
class MergeReport:
    """What was merged and what came of it; merge.json holds the same fields.

    tensors and totals: `relative_change` |ratio * dW| / |W| (Frobenius norms, before rounding), `unchanged_share` the
    share of elements that rounding left as they were, `projection` <realised, intended> / <intended, intended>: 1.0
    when the rounded weights carry the whole residue, 0.0 when none of it.
    """

    ratio: float
    layer_ratios: list[list[Any]]  # [pattern, ratio], first match wins
    dtype: str  # "unchanged", or the dtype that was asked for
    adapter: dict[str, str]  # folder name and sha256 of its weights
    base: str | None  # folder names only: full paths do not belong into a published model
    instruct: str
    shards: dict[str, str]  # file name -> sha256
    tensors: dict[str, dict[str, Any]]
    totals: dict[str, Any]
    schema: int = field(default=1)


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


def check_ratio(key: str, ratio: Any, allow_negative: bool) -> None:
    """Raise ConfigError, naming the key, unless the ratio is a finite number, and not negative unless allowed."""
    number = isinstance(ratio, int | float) and not isinstance(ratio, bool) and math.isfinite(ratio)
    if not number or (ratio < 0 and not allow_negative):
        expected = "a finite number" if allow_negative else "a finite number from 0 up"
        remedy = "allow negative ratios to subtract the residue" if number else "write it like 0.75"
        raise ConfigError.because(f"'{key}' is {ratio!r}", expected, remedy)


def read_layer_ratios(layer_ratios: LayerRatios | None, allow_negative: bool) -> list[tuple[str, float]]:
    """(pattern, ratio) pairs from pairs or from a YAML file: a mapping pattern -> ratio, or a list of pairs.

    Raises ConfigError naming the file or the pattern.
    """
    if layer_ratios is None:
        return []
    where, content = "layer_ratios", layer_ratios
    if isinstance(layer_ratios, str | Path):
        where = str(layer_ratios)
        try:
            content = yaml.safe_load(Path(layer_ratios).read_text(encoding="utf-8"))
        except OSError as error:
            got = f"cannot read '{where}': {error.strerror}"
            raise ConfigError.because(got, "a YAML file of ratios", "check the path") from None
        except (yaml.YAMLError, UnicodeDecodeError):
            raise ConfigError.because(f"'{where}' is not YAML", "pattern: ratio lines", "correct the file") from None
    pairs = list(content.items()) if isinstance(content, dict) else content
    if not isinstance(pairs, list | tuple) or not pairs:
        raise ConfigError.because(f"'{where}' holds no ratios", "pattern: ratio lines", "write some or leave it out")
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ConfigError.because(f"'{where}' holds {pair!r}", "a pattern and a ratio", "write '*.mlp.*: 0.5'")
        check_ratio(f"{where}: {pair[0]}", pair[1], allow_negative)
    return [(pattern, float(value)) for pattern, value in pairs]


def choose_ratios(residue: Adapter, ratio: float, patterns: list[tuple[str, float]]) -> dict[str, float]:
    """The ratio of every weight the adapter changes. Raises ConfigError for a pattern that fits none of them."""
    for pattern, _ in patterns:
        if not any(fnmatchcase(name, pattern) for name in residue.deltas):
            raise ConfigError.because(
                f"'layer_ratios' pattern '{pattern}' fits no weight of the adapter",
                f"a pattern for names like '{next(iter(residue.deltas))}'",
                "correct or remove it",
            )
    return {
        name: next((value for pattern, value in patterns if fnmatchcase(name, pattern)), float(ratio))
        for name in residue.deltas
    }


def check_out(out: Path, inputs: list[Path]) -> None:
    """Raise RunError when the resolved `out` holds something, is no folder, or lies in a folder that is read."""
    for folder in inputs:
        if out.is_relative_to(folder.resolve()):
            got = f"the output '{out}' lies in '{folder}', which is read"
            raise RunError.because(got, "a folder of its own", "choose another output folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError.because(f"'{out}' exists", "a new or an empty folder", "choose another name or remove it")


def check_origin(residue: Adapter, base: Path) -> None:
    """Raise ModelError when the base that the adapter recorded is at hand and is another model than `base`."""
    name = residue.base_model_name
    if not name or not (Path(name) / "config.json").is_file() or Path(name).resolve() == base.resolve():
        return  # a hub name or a folder that is gone says nothing that could be checked
    try:
        check_configs(Path(name), base)
    except ModelError as error:
        raise ModelError.because(
            f"'base_model_name_or_path' of the adapter is '{name}', which is not like '{base}' ({error})",
            "the base that the adapter was trained on",
            "give that base, and the instruct model tuned from it",
        ) from None


def check_fit(residue: Adapter, config: dict[str, Any], instruct: Path, entries: dict[str, shards.TensorEntry]) -> None:
    """Raise ModelError, naming the weight, unless every delta has its weight in the instruct model and can be added."""
    for name in ("quantization_config", "adapter_config.json"):
        if config.get(name) or (instruct / name).exists():
            got = f"'{instruct}' has '{name}'"
            raise ModelError.because(got, "a plain full-precision model", "take the model before it was changed")
    tied = config.get("tie_word_embeddings") is True or "lm_head.weight" not in entries
    for name, low_rank in residue.deltas.items():
        if tied and name.endswith(EMBEDDINGS):
            got = f"the adapter changes '{name}', which '{instruct}' ties to another weight (tie_word_embeddings)"
            raise ModelError.because(got, "a delta for one weight", "train without embed_tokens and lm_head")
        if name not in entries:
            got = f"the adapter changes '{name}', which '{instruct}' does not have"
            raise ModelError.because(got, "a weight for every delta", "take the instruct model of the same base")
        if low_rank.shape != entries[name].shape:
            got = f"the delta of '{name}' is {low_rank.shape}, its weight in '{instruct}' {entries[name].shape}"
            raise ModelError.because(got, "the same shape", "take the instruct model of the same base")
        if entries[name].dtype not in DTYPES:
            got = f"'{name}' of '{instruct}' is {entries[name].dtype}"
            raise ModelError.because(got, "BF16, F16 or F32", "take the model before it was quantised")


def check_disk(out: Path, needed: int) -> None:
    """Raise RunError when the disk under `out` has no room for `needed` bytes."""
    parent = next(folder for folder in out.parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < needed + 2**20:
        got = f"{free / 2**30:.2f} GiB free under '{parent}'"
        raise RunError.because(got, f"{needed / 2**30:.2f} GiB", "free some space or choose another disk")


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
    realised = merged.float() - before
    return Change(
        elements=weight.numel(),
        unchanged=weight.numel() - int(torch.count_nonzero(realised)),
        weight_square=_dot(weight.float(), weight.float()),
        intended_square=_dot(intended, intended),
        realised_intended=_dot(realised, intended),
    )


def _dot(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left * right).sum(dtype=torch.float64))


def _bytes(tensor: torch.Tensor, entry: shards.TensorEntry) -> memoryview:
    if not torch.isfinite(tensor).all():
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
