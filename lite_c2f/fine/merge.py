"""The Knowledge Residue Merger: W_fine = W_instruct + ratio * dW, shard by shard."""

import contextlib
import errno
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lite_c2f import __version__
from lite_c2f.backbone.pair import check_configs, read_config
from lite_c2f.backbone.weights import INDEX, SINGLE
from lite_c2f.errors import ConfigError, ModelError, RunError
from lite_c2f.fine import checks, shards
from lite_c2f.fine.adapter import Adapter, read_adapter
from lite_c2f.fine.adapter_files import CONFIG
from lite_c2f.fine.ratios import LayerRatios, check_ratio, choose_ratios, read_layer_ratios
from lite_c2f.fine.report import CARD, REPORT, MergeReport, TensorChange, model_card, warnings_of
from lite_c2f.fine.shards import hash_of, sha256_of
from lite_c2f.fine.sparsify import Treatment, is_number
from lite_c2f.fine.staging import size_of, unfinished, unfinished_folder
from lite_c2f.fine.stream import CODES, ChunkJob, Progress, stored_as, stored_size, write_shards
from lite_c2f.fine.tokenizer import check_tokenizer, load_own_tokenizer, turn_end_to_add
from lite_c2f.fine.vocabulary import check_copies, check_rows, check_tokens
from lite_c2f.storage.files import read_json, write_json, write_text

AUTO = "auto"


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
    comparison with it; instruct: folder of the full-precision model to merge into. layer_ratios: (pattern, ratio)
    pairs, or a YAML file of them, fnmatch on the weight's name, first match wins, `ratio` for the rest; a list of
    numbers in place of a ratio is a gradient over the layers. dtype: "bfloat16", "float16", "float32" or None.
    progress: called with (bytes done, bytes in all) of the output's weights. report: where the report goes,
    `out`/merge.json by default. treatment: a `lite_c2f.Treatment`, such as Treatment(sparsify="dare", density=0.5).
    resume: keep the finished shards of an interrupted merge of the same inputs and settings. end_token: a token that
    ends answers too, to be added to generation_config.json, which is copied as it is otherwise; "auto" is the one that
    ends a turn of the instruct model's chat template, where its files do not list it. verify: a prompt on
    which the merged model's logits are compared with those of the unmerged adapter on the instruct model, before
    anything is published. notice: called with sentences a person should read.

    Nothing appears at `out` unless everything does, and its tokenizer reads text as the instruct model's. Raises
    ConfigError for settings, ModelError for an adapter or models that do not fit together, RunError when `out` is in
    the way or the disk is too small.

    >>> report = merge("runs/a/coarse/adapter", "Mistral-7B-v0.1", "Mistral-7B-Instruct-v0.1", "fine", ratio=0.75)
    >>> report.totals["projection"]
    """
    say = notice or (lambda text: None)
    adapter, instruct, out = (checks.resolved(folder) for folder in (adapter, instruct, out))
    base = None if base is None else checks.resolved(base)
    report = out / REPORT if report is None else checks.resolved(report)

    # 1. settings, before any file is read
    check_ratio("ratio", ratio, allow_negative)
    patterns = read_layer_ratios(layer_ratios, allow_negative)
    if dtype is not None and dtype not in CODES:
        raise ConfigError.because(f"'dtype' is {dtype!r}", f"one of {', '.join(CODES)}", "choose one or leave it out")
    if isinstance(end_token, str) and end_token != AUTO:
        raise ConfigError.because(
            f"'end_token' is {end_token!r}", f"the number of a token, {AUTO!r} or None", "correct it"
        )
    treatment.check([] if dtype is None else [CODES[dtype]])
    checks.check_out(out, [folder for folder in (adapter, base, instruct) if folder is not None])

    with contextlib.ExitStack() as stack:
        # 2. do the three belong together?
        residue = read_adapter(adapter, stack)
        job = _plan(residue, base, instruct, dtype, treatment, ratio, patterns)
        for note in job.notes:
            say(f"note: {note}")

        # 3. room for it?
        others = [name for name in shards.other_files(instruct) if name != Path(REPORT)]
        inputs = [folder for folder in (adapter, base, instruct) if folder is not None]
        written = [*(file.name for file in job.files), INDEX, CARD, *map(str, others)]
        checks.check_report(report, out, written, inputs)
        checks.check_out(unfinished_folder(out), inputs, hidden=True)
        copied = sum((instruct / name).stat().st_size for name in others)
        checks.check_disk(out, job.total + copied - size_of(unfinished_folder(out)))

        # 4. write beside `out`, then rename
        try:
            with unfinished(out, _identity(job, residue, adapter, instruct, base)) as work:
                if resume:
                    say(work.take_over(lambda name, record: _is_right(job, instruct, name, record)))
                elif size_of(work.place):
                    say("an interrupted merge was there: started afresh; --resume would have kept its finished shards")
                work.clean()
                records, base_hashes = write_shards(job, work, progress)
                result = _report(job, records, base_hashes, residue, adapter, base, instruct, ratio, patterns)
                for warning in result.warnings:
                    say(f"warning: {warning}")
                end_token = _write_others(work.folder, result, residue, job, instruct, base, others, end_token)
                result = replace(result, end_token=end_token)
                if verify is not None:
                    result = _verified(result, job, work.folder, instruct, adapter, residue, verify)
                # Before the rename: a published model always has its report.
                place = work.folder / report.relative_to(out) if report.is_relative_to(out) else report
                write_json(place, asdict(result))
        except OSError as error:
            where = f" '{error.filename}'" if error.filename else ""
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise RunError.because(
                f"the merge into '{out}' stopped: {error.strerror or error}{where}",
                "a disk that takes the whole model" if full else "folders that can be read and written",
                "mend that and merge again; --resume keeps the shards that were finished",
            ) from error
    return result


def _write_others(
    folder: Path,
    report: MergeReport,
    residue: Adapter,
    job: ChunkJob,
    instruct: Path,
    base: Path | None,
    others: list[Path],
    end_token: int | str | None,
) -> int | None:
    """Everything but the weights; the end token that was added. config.json comes last: without it nothing loads.

    Raises ModelError when the folder's tokenizer does not do what the instruct model's does.
    """
    if list(job.files) != [instruct / SINGLE]:
        weight_map = {entry.name: file.name for file, entries in job.files.items() for entry in entries}
        shards.write_index(folder, weight_map, job.total)
    last = Path("config.json")
    shards.copy_files(instruct, folder, [name for name in others if name not in (last, Path(CARD))])
    write_text(folder / CARD, model_card(report, instruct, base, residue.base_model_name))
    changed = checks.with_dtype(job.config, job.dtype)
    shards.copy_files(instruct, folder, [last])
    if changed is not None:
        write_text(folder / last, json.dumps(changed, indent=2) + "\n")  # may hold Infinity
    tokenizer = load_own_tokenizer(instruct)
    if tokenizer is not None:
        check_tokenizer(tokenizer, folder, instruct)
    token = turn_end_to_add(tokenizer, instruct) if end_token == AUTO else end_token
    if token is not None:
        file = folder / "generation_config.json"
        generation = read_json(file) if file.is_file() else None
        write_json(file, checks.with_end_token(generation, job.config, int(token)))
        return int(token)
    return None


def to_sink(sink: Any, name: str = "merge") -> Progress:
    """A `progress` callback that drives a sink (stage and step, see `runtime.progress.ProgressSink`), in MiB."""
    started: list[bool] = []

    def show(done_bytes: int, total_bytes: int) -> None:
        if not started:
            sink.on_stage(name, total_bytes >> 20, "MiB")
            started.append(True)
        sink.on_step(done_bytes >> 20, {})

    return show


def print_progress(done_bytes: int, total_bytes: int) -> None:
    """A ready `progress` callback: one line on stderr, rewritten in place, ended when all is done."""
    end = "\n" if done_bytes >= total_bytes else ""
    share = 100 * done_bytes // max(total_bytes, 1)
    sys.stderr.write(f"\rmerged {done_bytes / 2**30:.2f} of {total_bytes / 2**30:.2f} GiB ({share}%){end}")
    sys.stderr.flush()


def _plan(
    residue: Adapter,
    base: Path | None,
    instruct: Path,
    dtype: str | None,
    treatment: Treatment,
    ratio: float,
    patterns: list[tuple[str, Any]],
) -> ChunkJob:
    notes: list[str | None] = list(residue.notes)
    if base is not None:
        check_configs(base, instruct, leave_out=["vocab_size"])
        notes.append(checks.check_origin(residue, base, instruct))
        notes.append(check_tokens(base, instruct, list(residue.deltas)))
    config = read_config(instruct)
    files = shards.read_model(instruct)
    entries = {entry.name: entry for found in files.values() for entry in found}
    check_rows(config, entries, instruct)
    deltas, aliases, tied = checks.settle(residue, config, entries, instruct)
    base_files = shards.read_model(base) if base is not None else {}
    of_base = {entry.name: entry for found in base_files.values() for entry in found}
    checks.check_fit(residue, deltas, config, instruct, entries, of_base)
    checks.check_base(residue, deltas, entries, of_base, base, treatment)
    notes += check_copies(residue.copies, of_base, base) if base is not None else []
    treatment.check([stored_as(entries[name], dtype) for name in deltas])
    ratios = choose_ratios([name for name in deltas if name not in aliases], ratio, patterns)
    return ChunkJob(
        config=config,
        files=files,
        deltas=deltas,
        base=of_base,
        ratios=ratios | {copy: ratios[weight] for copy, weight in aliases.items()},
        dtype=dtype,
        treatment=treatment,
        tied=tied,
        aliases=aliases,
        total=sum(stored_size(entry, dtype) for entry in entries.values()),
        base_files=tuple(base_files),
        notes=tuple(note for note in notes if note),
    )


def _identity(job: ChunkJob, residue: Adapter, adapter: Path, instruct: Path, base: Path | None) -> dict[str, Any]:
    """What two merges have to share for one to go on with the other's shards."""

    def stamps(files: Iterable[Path]) -> dict[str, list[int]]:
        return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}

    return {
        "lite_c2f": __version__,
        "adapter": [*map(sha256_of, residue.files), sha256_of(adapter / CONFIG)],
        "instruct": [str(instruct), stamps(job.files)],
        "base": [str(base), stamps(job.base_files)],
        "ratio": job.ratios,
        "dtype": job.dtype,
        "treatment": job.treatment.describe(),
    }


def _is_right(job: ChunkJob, instruct: Path, name: str, record: Any) -> bool:
    """Does a finished shard's record hold what this merge would write, made from the input as it is now?"""
    entries = next((found for file, found in job.files.items() if file.name == name), [])
    expected = {entry.name for entry in entries if entry.name in job.deltas and entry.size}
    changes, caps = record["changes"], record["caps"]
    fields = vars(TensorChange())
    whole = all(sums.keys() == fields.keys() and all(map(is_number, sums.values())) for sums in changes.values())
    capped = expected if job.treatment.norm_cap is not None else set()
    return (
        whole and changes.keys() == expected and caps.keys() == capped and hash_of(instruct / name) == record["input"]
    )


def _report(
    job: ChunkJob,
    records: dict[str, dict[str, Any]],
    base_hashes: dict[str, str],
    residue: Adapter,
    adapter: Path,
    base: Path | None,
    instruct: Path,
    ratio: float,
    patterns: list[tuple[str, Any]],
) -> MergeReport:
    """The report of what was written. Raises ModelError when not one element changed."""
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
            "the merged weights are the instruct model's, all of them",
            "a residue that survives rounding",
            "raise the ratio, round stochastically, merge into float32, or train the adapter: an untrained one is zero",
        )
    totals = {"tensors": len(tensors), **total.figures(), "bytes": job.total}
    warnings = warnings_of(totals, max(abs(value) for value in job.ratios.values()))
    return MergeReport(
        ratio=float(ratio),
        layer_ratios=[list(pair) for pair in patterns],
        treatment=job.treatment.describe(),
        dtype=job.dtype or "unchanged",
        adapter={"name": adapter.name, "sha256": _hash_of_all(residue.files)},
        base=None if base is None else base.name,
        instruct=instruct.name,
        inputs={"instruct": {name: record["input"] for name, record in records.items()}, "base": base_hashes},
        shards={name: record["sha256"] for name, record in records.items()},
        tied=job.tied,
        tensors=tensors,
        totals=totals,
        warnings=warnings,
        notes=list(job.notes),
    )


def _hash_of_all(files: Sequence[Path]) -> str:
    """The sha256 of a file; of several, that of their hashes in hex, one behind the other."""
    hashes = [sha256_of(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _verified(
    report: MergeReport, job: ChunkJob, merged: Path, instruct: Path, adapter: Path, residue: Adapter, prompt: str
) -> MergeReport:
    from lite_c2f.fine.verify import compare_logits

    found = compare_logits(merged, instruct, adapter, residue.tensors, job.deltas, job.ratios, job.treatment, prompt)
    return replace(report, verified=found)
