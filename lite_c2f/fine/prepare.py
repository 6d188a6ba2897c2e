"""Merge request and its preparation: every check of a merge, before anything is written."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f import __version__
from lite_c2f.backbone.pair import check_configs, read_config
from lite_c2f.backbone.weights import INDEX
from lite_c2f.errors import ConfigError
from lite_c2f.fine import checks, shards
from lite_c2f.fine.adapter import Adapter, read_adapter
from lite_c2f.fine.adapter_files import CONFIG
from lite_c2f.fine.ratios import Gradient, LayerRatios, check_ratio, choose_ratios, read_layer_ratios
from lite_c2f.fine.report import CARD, REPORT
from lite_c2f.fine.shards import sha256_of
from lite_c2f.fine.sparsify import Treatment
from lite_c2f.fine.staging import leftover_bytes, staging_path
from lite_c2f.fine.stream import CODES, ChunkJob, stored_as, stored_size
from lite_c2f.fine.tied import resolve_tied
from lite_c2f.fine.vocabulary import check_copies, check_rows, check_tokens

AUTO = "auto"


class MergeRequest(NamedTuple):
    """Inputs and settings of a merge. The fields are the parameters of `lite_c2f.merge`."""

    adapter: Path
    base: Path | None
    instruct: Path
    out: Path
    report: Path
    ratio: float
    layer_ratios: LayerRatios | None
    allow_negative: bool
    dtype: str | None
    treatment: Treatment
    resume: bool
    end_token: int | str | None
    verify: str | None  # a prompt

    @property
    def inputs(self) -> list[Path]:
        """The folders that are read."""
        return [folder for folder in (self.adapter, self.base, self.instruct) if folder is not None]


class PreparedMerge(NamedTuple):
    """A merge that has passed every check and is ready to be written."""

    request: MergeRequest
    patterns: list[tuple[str, float | Gradient]]  # of layer_ratios
    residue: Adapter
    job: ChunkJob
    other_files: list[Path]  # of the instruct model, relative to it: all but weights

    def identity(self) -> dict[str, Any]:
        """Inputs and settings that have to be equal for a merge to resume with another one's shards."""

        def stamps(files: Iterable[Path]) -> dict[str, list[int]]:
            return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}

        request, job = self.request, self.job
        return {
            "lite_c2f": __version__,
            "adapter": [*map(sha256_of, self.residue.files), sha256_of(request.adapter / CONFIG)],
            "instruct": [str(request.instruct), stamps(job.files)],
            "base": [str(request.base), stamps(job.base_files)],
            "ratio": job.ratios,
            "dtype": job.dtype,
            "treatment": job.treatment.describe(),
        }


def prepare(request: MergeRequest, stack: contextlib.ExitStack) -> PreparedMerge:
    """Check settings, adapter, models, output folder and disk space. stack: closes the adapter's files.

    Raises ConfigError for settings, ModelError for an adapter or models that do not fit together, RunError for folders.
    """
    # 1. settings, before any file is read
    check_ratio("ratio", request.ratio, request.allow_negative)
    patterns = read_layer_ratios(request.layer_ratios, request.allow_negative)
    dtype, end_token = request.dtype, request.end_token
    if dtype is not None and dtype not in CODES:
        raise ConfigError.because(f"'dtype' is {dtype!r}", f"one of {', '.join(CODES)}", "choose one or leave it out")
    if isinstance(end_token, str) and end_token != AUTO:
        raise ConfigError.because(
            f"'end_token' is {end_token!r}", f"the number of a token, {AUTO!r} or None", "correct it"
        )
    request.treatment.check([] if dtype is None else [CODES[dtype]])
    checks.check_out(request.out, request.inputs)

    # 2. adapter, base and instruct model fit together
    residue = read_adapter(request.adapter, stack)
    job = _make_job(request, residue, patterns)

    # 3. the output: no conflicting files, and space on the disk
    others = [name for name in shards.other_files(request.instruct) if name != Path(REPORT)]
    written = [*(file.name for file in job.files), INDEX, CARD, *map(str, others)]
    checks.check_report(request.report, request.out, written, request.inputs)
    hidden = staging_path(request.out)
    checks.check_out(hidden, request.inputs, hidden=True)
    copied = sum((request.instruct / name).stat().st_size for name in others)
    checks.check_disk(request.out, job.total + copied - leftover_bytes(hidden))
    return PreparedMerge(request, patterns, residue, job, others)


def _make_job(request: MergeRequest, residue: Adapter, patterns: list[tuple[str, float | Gradient]]) -> ChunkJob:
    """Check the models against the adapter, and choose a ratio for each weight."""
    base, instruct, dtype, treatment = request.base, request.instruct, request.dtype, request.treatment
    notes: list[str | None] = list(residue.notes)
    if base is not None:
        check_configs(base, instruct, leave_out=["vocab_size"])
        notes.append(checks.check_origin(residue, base, instruct))
        notes.append(check_tokens(base, instruct, list(residue.deltas)))
    config = read_config(instruct)
    files = shards.read_model(instruct)
    entries = {entry.name: entry for group in files.values() for entry in group}
    check_rows(config, entries, instruct)
    deltas, aliases, tied = resolve_tied(residue, config, entries, instruct)
    base_files = shards.read_model(base) if base is not None else {}
    of_base = {entry.name: entry for group in base_files.values() for entry in group}
    checks.check_fit(residue, deltas, config, instruct, entries, of_base)
    checks.check_base(residue, deltas, entries, of_base, base, treatment)
    notes += check_copies(residue.copies, of_base, base) if base is not None else []
    treatment.check([stored_as(entries[name], dtype) for name in deltas])
    ratios = choose_ratios([name for name in deltas if name not in aliases], request.ratio, patterns)
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
