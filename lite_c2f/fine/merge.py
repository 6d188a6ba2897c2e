"""Knowledge Residue Merger: W_fine = W_instruct + ratio * dW, shard by shard."""

import contextlib
import errno
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.errors import ModelError, RunError
from lite_c2f.fine.checks import model_folder, resolved_path
from lite_c2f.fine.model_folder import write_other_files
from lite_c2f.fine.prepare import AUTO, MergeRequest, PreparedMerge, prepare
from lite_c2f.fine.ratios import LayerRatios, is_number
from lite_c2f.fine.report import REPORT, MergeReport, TensorChange, warnings_of
from lite_c2f.fine.shards import hash_of, sha256_of
from lite_c2f.fine.sparsify import Treatment
from lite_c2f.fine.staging import StagingFolder, leftover_bytes, staging_folder
from lite_c2f.fine.stream import Progress, stored_as, write_shards
from lite_c2f.storage.files import write_json


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
    *,
    treatment: Treatment = Treatment(),
    resume: bool = False,
    end_token: int | str | None = AUTO,
    verify: str | None = None,
    notice: Callable[[str], None] | None = None,
) -> MergeReport:
    """Merge the residue of an adapter into an instruct model and publish the result as a Transformers folder.

        W_fine = W_instruct + ratio * dW,    dW = scaling * B @ A

    in float32, rounded once to the dtype of each tensor (or to `dtype`). Our own: the paper publishes neither residue
    definition nor ratios for its Knowledge Residue Merger. Values of the adapter that replace the base's instead of
    adding to them (modules_to_save, biases, trained tokens) count as their difference from the base's. Memory: one
    weight's factors and a few chunks of rows, whatever the size of the models.

    adapter: folder of a LoRA adapter of the base; base: folder of the model it was trained on, None to skip the
    comparison with it; instruct: folder of the full-precision model to merge into; both may be .gguf files, which are
    unpacked into the cache. layer_ratios: (pattern, ratio)
    pairs, or a YAML file of them, fnmatch on the weight's name, first match wins, `ratio` for the rest; a list of
    numbers in place of a ratio is a gradient over the layers. dtype: "bfloat16", "float16", "float32" or None.
    progress: called with (bytes done, bytes in all) of the output's weights. report: where the report goes,
    `out`/merge.json by default. treatment: a `lite_c2f.Treatment`, such as Treatment(sparsify="dare", density=0.5).
    resume: keep the finished shards of an interrupted merge of the same inputs and settings. end_token: a token that
    ends answers too, to be added to generation_config.json, which is copied as it is otherwise; "auto" is the one that
    ends a turn of the instruct model's chat template, where its files do not list it. verify: a prompt on
    which the merged model's logits are compared with those of the unmerged adapter on the instruct model, before
    anything is published. notice: called with messages for the user.

    `out` appears complete or not at all, with a tokenizer that encodes as the instruct model's. Raises
    ConfigError for settings, ModelError for an adapter or models that do not fit together, RunError when `out`
    exists or the disk is too small.

    >>> report = merge("runs/a/coarse/adapter", "Mistral-7B-v0.1", "Mistral-7B-Instruct-v0.1", "fine", ratio=0.75)
    >>> report.totals["projection"]
    """
    report = Path(out) / REPORT if report is None else report
    base = None if base is None else model_folder(base, notice)
    folders = (resolved_path(adapter), base, model_folder(instruct, notice), resolved_path(out), resolved_path(report))
    request = MergeRequest(*folders, ratio, layer_ratios, allow_negative, dtype, treatment, resume, end_token, verify)
    on_message = notice or (lambda text: None)
    with contextlib.ExitStack() as stack:
        prepared = prepare(request, stack)
        for note in prepared.job.notes:
            on_message(f"note: {note}")
        with _disk_errors(request.out), staging_folder(request.out, prepared.identity()) as staging:  # renamed to `out`
            written = _write_weights(prepared, staging, progress, on_message)
            return _finish_folder(prepared, staging, written, on_message)


class WrittenWeights(NamedTuple):
    """Records of the output's weights and of their inputs."""

    records: dict[str, dict[str, Any]]  # file name -> hashes, changes and caps of a shard
    base_hashes: dict[str, str]  # weight file of the base -> hash


def _write_weights(
    prepared: PreparedMerge, staging: StagingFolder, progress: Progress | None, on_message: Callable[[str], None]
) -> WrittenWeights:
    """Write the weights, without the shards that an interrupted merge has finished."""
    if prepared.request.resume:
        on_message(staging.resume(lambda name, record: _shard_matches(prepared, name, record)))
    elif leftover_bytes(staging.root):
        on_message("an interrupted merge was discarded; --resume would have kept its finished shards")
    staging.clean()
    return WrittenWeights(*write_shards(prepared.job, staging, progress))


def _finish_folder(
    prepared: PreparedMerge, staging: StagingFolder, written: WrittenWeights, on_message: Callable[[str], None]
) -> MergeReport:
    """Write the other files of the model folder, verify it if requested, and write the report."""
    request, job = prepared.request, prepared.job
    result = _make_report(prepared, written)
    for warning in result.warnings:
        on_message(f"warning: {warning}")
    result = replace(result, end_token=write_other_files(staging.folder, prepared, result))
    if request.verify is not None:
        from lite_c2f.fine.verify import compare_logits

        residue = prepared.residue.tensors
        settings = (residue, job.deltas, job.ratios, job.treatment, request.verify)
        result = replace(result, verified=compare_logits(staging.folder, request.instruct, request.adapter, *settings))
    # Before the folder is published, so that a model always has its report.
    inside = request.report.is_relative_to(request.out)
    write_json(staging.folder / request.report.relative_to(request.out) if inside else request.report, asdict(result))
    return result


@contextlib.contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """In the block, an OSError becomes a RunError that names the file and the remedy."""
    try:
        yield
    except OSError as error:
        where = f" '{error.filename}'" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise RunError.because(
            f"the merge into '{out}' stopped: {error.strerror or error}{where}",
            "a disk that takes the whole model" if full else "folders that can be read and written",
            "correct that and merge again; --resume keeps the shards that were finished",
        ) from error


def _shard_matches(prepared: PreparedMerge, name: str, record: Any) -> bool:
    """Whether a finished shard's record is of what this merge would write, from the current input file."""
    job = prepared.job
    entries = next((group for file, group in job.files.items() if file.name == name), [])
    expected = {entry.name for entry in entries if entry.name in job.deltas and entry.size}
    capped = expected if job.treatment.norm_cap is not None else set()
    changes, fields = record["changes"], vars(TensorChange()).keys()
    return (
        all(sums.keys() == fields and all(map(is_number, sums.values())) for sums in changes.values())
        and changes.keys() == expected
        and record["caps"].keys() == capped
        and hash_of(prepared.request.instruct / name) == record["input"]
    )


def _make_report(prepared: PreparedMerge, written: WrittenWeights) -> MergeReport:
    """The report of what was written. Raises ModelError if no element changed."""
    request, job = prepared.request, prepared.job
    records, base_hashes = written
    codes = {entry.name: stored_as(entry, job.dtype) for entries in job.files.values() for entry in entries}
    tensors, total = {}, TensorChange()
    for record in records.values():
        for name, sums in record["changes"].items():
            change = TensorChange(**sums)
            total.add(change)
            cap = {"cap": record["caps"][name]} if name in record["caps"] else {}
            tensors[name] = {"ratio": job.ratios[name], "dtype": codes[name], **cap, **change.figures()}
    if not total.touched:
        raise ModelError.because(
            "the merged weights are all equal to the instruct model's",
            "a residue that survives rounding",
            "raise the ratio, round stochastically, merge into float32, or train the adapter: an untrained one is zero",
        )
    totals = {"tensors": len(tensors), **total.figures(), "bytes": job.total}
    warnings = warnings_of(totals, max(abs(value) for value in job.ratios.values()))
    return MergeReport(
        ratio=float(request.ratio),
        layer_ratios=[list(pair) for pair in prepared.patterns],
        treatment=job.treatment.describe(),
        dtype=job.dtype or "unchanged",
        adapter={"name": request.adapter.name, "sha256": _hash_of_all(prepared.residue.files)},
        base=None if request.base is None else request.base.name,
        instruct=request.instruct.name,
        inputs={"instruct": {name: record["input"] for name, record in records.items()}, "base": base_hashes},
        shards={name: record["sha256"] for name, record in records.items()},
        tied=job.tied,
        tensors=tensors,
        totals=totals,
        warnings=warnings,
        notes=list(job.notes),
    )


def _hash_of_all(files: Sequence[Path]) -> str:
    """The sha256 of a file; for several, the sha256 of their concatenated hex hashes."""
    hashes = [sha256_of(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def to_sink(sink: Any, name: str = "merge") -> Progress:
    """A `progress` callback that drives a sink (stage and step, see `runtime.progress.ProgressSink`), in MiB."""
    started: list[bool] = []

    def show(done_bytes: int, total_bytes: int) -> None:
        if not started:
            sink.on_stage(name, total_bytes >> 20, "MiB")
            started.append(True)
        sink.on_step(done_bytes >> 20, {})

    return show
