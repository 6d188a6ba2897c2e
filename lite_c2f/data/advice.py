"""Advice on columns: for rows without the usual column names, a guess of the `columns` setting that reads them."""

import re
from collections.abc import Iterable
from typing import Any

import yaml

from lite_c2f.data.columns import PROMPT_COLUMNS, as_list, spellings, value_at
from lite_c2f.data.sources import SourceSettings
from lite_c2f.data.turns import UnusableError, describe, is_empty

LAYOUTS: tuple[dict[str, Any], ...] = (  # of well-known data sets; docs/data.md lists them
    {"prompt": "prompt", "answers": ["response_0", "response_1"], "best": "better_response_id"},  # PKU-SafeRLHF
    {"prompt": "history", "answers": ["human_ref_B", "human_ref_A"], "best": "labels"},  # SHP: 1 means A
    {"prompt": "prompt", "answers": "answers.answer", "rank": "answers.rank"},  # Nectar
    {"prompt": "info.post", "answers": "summaries.text", "best": "choice"},  # OpenAI, summarize_from_feedback
    {
        "prompt": "context",
        "answers": ["response1", "response2"],
        "best": "overall_preference",
        "values": [[-3, -2, -1], [1, 2, 3]],
    },  # HelpSteer3
    {
        "prompt": "prompt",
        "answers": ["response_1", "response_2"],
        "best": "preference_strength",
        "values": [[-3, -2, -1], [1, 2, 3]],
    },  # HelpSteer2
    {"prompt": "instruction", "answers": "completions.response", "score": "completions.overall_score"},  # UltraFeedback
    {"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"},  # Argilla
    {"prompt": "input.messages", "chosen": "preferred_output", "rejected": "non_preferred_output"},  # OpenAI, DPO
    {"answers": ["conversation_a", "conversation_b"], "best": "winner", "values": ["model_a", "model_b"]},  # Arena
)
_REJECTED_NAMES = re.compile(r"reject|worse|worst|los(?:e|er|ing)|\bbad|negative|non_?pref|dispref", re.IGNORECASE)
_CHOSEN_NAMES = re.compile(r"chosen|better|best|win|good|positive|pref|accept", re.IGNORECASE)
_PROMPT_NAMES = re.compile(r"prompt|quer|question|user|instruction|history|context|post|input|text", re.IGNORECASE)


def describe_columns(row: dict[str, Any], max_columns: int = 12) -> str:
    """The columns of a row with the kind of each cell, for a message."""
    texts = [f"{' '.join(str(column).split())} ({describe(cell)})" for column, cell in list(row.items())[:max_columns]]
    return ", ".join([*texts, *([f"{len(row) - max_columns} more"] if len(row) > max_columns else [])]) or "none"


def columns_advice(row: dict[str, Any], source: SourceSettings, *, pairs: bool) -> str | None:
    """The data setting with the `columns` that would read a row like this one; None if no columns can be guessed."""
    if (columns := _known_layout(row) or _guessed_layout(row, pairs)) is None:
        return None
    if not pairs:
        columns = {"prompt": columns["prompt"]} if "prompt" in columns else columns
    item = {key: getattr(source, key, None) for key in ("path", "weight", "split", "revision", "data_dir")}
    item = {key: value for key, value in item.items() if value is not None and (key, value) != ("weight", 1.0)}
    text = yaml.safe_dump(item | {"columns": columns}, default_flow_style=True, sort_keys=False, width=2**31)
    return f"data.{'preferences' if pairs else 'prompts'}=[{text.strip()}]"


def _known_layout(row: dict[str, Any]) -> dict[str, Any] | None:
    names = spellings(tuple(row))
    for layout in LAYOUTS:
        paths = [path for key in layout if key != "values" for path in as_list(layout[key])]
        try:
            for path in paths:
                value_at(row, names, path, set())
        except UnusableError:
            continue
        return layout
    return None


def _guessed_layout(row: dict[str, Any], pairs: bool) -> dict[str, Any] | None:
    texts = [str(column) for column, cell in row.items() if isinstance(cell, str | list | dict) and not is_empty(cell)]
    rejected = [column for column in texts if _REJECTED_NAMES.search(column)]
    chosen = [column for column in texts if _CHOSEN_NAMES.search(column) and column not in rejected]
    rest = [column for column in texts if column not in rejected + chosen]
    has_usual_prompt = any(name in spellings(tuple(row)) for name in PROMPT_COLUMNS)
    questions = [column for column in rest if _PROMPT_NAMES.search(column)]
    prompt = {"prompt": questions[0]} if questions and not (has_usual_prompt and pairs) else {}
    if not pairs:
        return prompt or None
    if len(rejected) != 1 or len(chosen) != 1:
        return None
    sides = {"chosen": chosen[0], "rejected": rejected[0]}
    return {**prompt, **{side: column for side, column in sides.items() if column.strip().lower() != side}} or None


def unused_note(path: str, columns: Iterable[str], keys: Iterable[str]) -> str | None:
    """A message that lists the columns and message keys that have values and are not read; None if there are none."""
    parts = [
        f"columns {_first_names(columns)}" if columns else "",
        f"keys of messages {_first_names(keys)}" if keys else "",
    ]
    text = "; ".join(part for part in parts if part)
    return f"{path}: not used: {text}" if text else None


def _first_names(names: Iterable[str], max_names: int = 12) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:max_names]) + (
        f" and {len(ordered) - max_names} more" if len(ordered) > max_names else ""
    )
