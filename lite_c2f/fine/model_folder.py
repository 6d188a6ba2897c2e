"""Model folder of a merge: index, model card, configuration and tokenizer beside the merged weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lite_c2f.backbone.weights import SINGLE
from lite_c2f.fine import shards
from lite_c2f.fine.prepare import AUTO, PreparedMerge
from lite_c2f.fine.report import CARD, MergeReport, model_card
from lite_c2f.fine.tokenizer import check_tokenizer, load_own_tokenizer, turn_end_to_add
from lite_c2f.storage.files import read_json, write_json, write_text


def write_other_files(folder: Path, prepared: PreparedMerge, report: MergeReport) -> int | None:
    """Everything but the weights; the end token that was added. config.json comes last: without it nothing loads.

    Raises ModelError when the folder's tokenizer does not do what the instruct model's does.
    """
    request, job = prepared.request, prepared.job
    instruct, end_token = request.instruct, request.end_token
    if list(job.files) != [instruct / SINGLE]:
        weight_map = {entry.name: file.name for file, entries in job.files.items() for entry in entries}
        shards.write_index(folder, weight_map, job.total)
    last = Path("config.json")
    shards.copy_files(instruct, folder, [name for name in prepared.other_files if name not in (last, Path(CARD))])
    write_text(folder / CARD, model_card(report, instruct, request.base, prepared.residue.base_model_name))
    changed = with_dtype(job.config, job.dtype)
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
        write_json(file, with_end_token(generation, job.config, int(token)))
        return int(token)
    return None


def with_dtype(config: Mapping[str, Any], dtype: str | None) -> dict[str, Any] | None:
    """config.json with a new dtype under the key that is there; None where nothing changes.

    `dtype`; before Transformers 5 `torch_dtype`.
    """
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    if dtype is None or all(config.get(key) == dtype for key in keys):
        return None
    return {**config, **dict.fromkeys(keys, dtype)}


def with_end_token(generation: Mapping[str, Any] | None, config: Mapping[str, Any], token: int) -> dict[str, Any]:
    """generation_config.json with one more end token. generation: the file's content; None if there is no file.

    What stock libraries would then have read from config.json comes along.
    """
    if generation is None:
        generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
    listed = generation.get("eos_token_id")
    ends = listed if isinstance(listed, list) else [] if listed is None else [listed]
    return {**generation, "eos_token_id": [*ends, token]}
