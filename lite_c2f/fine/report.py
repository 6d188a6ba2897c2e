"""Report of a merge: merge.json, and the model card."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lite_c2f.fine.sparsify import Treatment

REPORT = "merge.json"
CARD = "README.md"
# Above this share of |W_base| the instruct model is called far from its base. Our own: a light tuning moves weights by
# a few hundredths, two models that were trained apart differ by about the square root of two.
FAR_DRIFT = 0.3
LARGE_RATIO, LARGE_CHANGE = 3.0, 0.5  # our own, too
MIN_PROJECTION = 0.5  # of the change, after rounding


@dataclass
class TensorChange:
    """Sums over the elements of one or more tensors; what the report is made of. W: W_instruct, T: W - W_base."""

    elements: int = 0
    touched: int = 0  # above 0 if any element changed, counted or not
    counted: int = 0  # elements that the sums below are over: all, or a regular sample of the chunks of a large weight
    kept: int = 0  # elements of the change that are not zero; all of them without a treatment that makes zeros
    unchanged: int = 0  # of those, elements that rounding left equal to the instruct model's in the output's dtype
    weight_square: float = 0.0  # <W, W>
    intended_square: float = 0.0  # <change, change>, change = ratio * dW as treated
    realised_intended: float = 0.0  # <W_fine - W, change>, after rounding
    compared: int = 0  # elements of which the base's values are known; 0 without a base
    base_square: float = 0.0  # <W_base, W_base>
    task_square: float = 0.0  # <T, T>
    task_intended: float = 0.0  # <T, change>

    def add(self, other: "TensorChange") -> None:
        """Add the sums of another part."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def figures(self) -> dict[str, float | int | None]:
        """The figures; null where the divisor is zero, or where there was no base to compare with."""
        change, task = math.sqrt(self.intended_square), math.sqrt(self.task_square)
        return {
            "elements": self.elements,
            "counted_share": _quotient(self.counted, self.elements),
            "relative_change": _quotient(change, math.sqrt(self.weight_square)),
            "kept_share": _quotient(self.kept, self.counted),
            "unchanged_share": _quotient(self.unchanged, self.kept),
            "projection": _quotient(self.realised_intended, self.intended_square),
            "drift": _quotient(task, math.sqrt(self.base_square)) if self.compared else None,
            "cosine": _quotient(self.task_intended, change * task) if self.compared else None,
        }


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """Inputs, settings and figures of a merge; merge.json has the same fields.

    tensors and totals: `relative_change` |change| / |W_instruct| (Frobenius norms, before rounding; change is ratio *
    dW as treated), `kept_share` the share of its elements that are not zero, `unchanged_share` the share of those that
    rounding left unchanged, `projection` <realised, change> / <change, change>: 1.0 when the rounded weights
    carry the whole residue, 0.0 when none of it, `drift` |W_instruct - W_base| / |W_base| and `cosine` that of the
    change with W_instruct - W_base (null without a base). Of a large weight these are taken from every eighth chunk of
    rows, a million elements or more; `counted_share` says of how many. tensors also: ratio, dtype, and `cap`, what
    norm_cap multiplied the change by.
    """

    schema: int = 1
    ratio: float
    layer_ratios: list[list[Any]]  # [pattern, ratio or gradient], first match wins
    treatment: dict[str, Any]  # sparsify, density, seed, norm_cap, rounding
    dtype: str  # "unchanged", or the requested dtype
    adapter: dict[str, str]  # folder name and sha256 of its weights
    base: str | None  # folder names only: full paths do not belong into a published model
    instruct: str
    inputs: dict[str, dict[str, str]]  # "instruct", "base": weight file -> XXH3 (128 bits)
    shards: dict[str, str]  # file name of the output -> sha256
    tied: str | None  # what was done about tied embeddings, where the adapter changes one
    tensors: dict[str, dict[str, Any]]
    totals: dict[str, Any]
    warnings: list[str]
    notes: list[str] = field(default_factory=list)  # harmless findings, such as settings that were ignored
    end_token: int | None = None  # that was added to the end tokens of generation_config.json
    verified: dict[str, Any] | None = None


def warnings_of(totals: Mapping[str, Any], largest_ratio: float) -> list[str]:
    """Warnings about a merge that is valid and probably not intended."""
    messages = []
    drift, change = totals["drift"], totals["relative_change"]
    if drift is not None and drift > FAR_DRIFT:
        messages.append(
            f"the instruct model is {drift:.2f} of |W_base| away from the base: the residue may not fit it; is "
            "it tuned from this base?"
        )
    if drift == 0:
        messages.append("base and instruct hold the same weights: the residue was merged into its own base")
    carried = totals["projection"]
    if carried is not None and carried < MIN_PROJECTION:
        messages.append(
            f"only {carried:.0%} of the change survived rounding: it is smaller than the steps of the weights' type; "
            "train longer, or merge with a finer type (fine.dtype or --dtype float32)"
        )
    if largest_ratio > LARGE_RATIO or (change is not None and change > LARGE_CHANGE):
        size = "" if change is None else f" and the change {change:.2f} of |W_instruct|"
        messages.append(f"the ratio is {largest_ratio:g}{size}; is that intended? 1 adds the whole residue")
    return messages


def hub_name(name: str | None) -> str | None:
    """owner/name of a hub model, from such a name or from the path of its snapshot in the cache; None for others.

    >>> hub_name("/cache/models--mistralai--Mistral-7B-v0.1/snapshots/27d6")
    'mistralai/Mistral-7B-v0.1'
    """
    if name is None:
        return None
    if match := re.search(r"models--([^/]+?)--([^/]+)/snapshots/", f"{name}/"):
        return f"{match[1]}/{match[2]}"
    plain = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name)
    return name if plain and not Path(name).exists() else None


def model_card(report: MergeReport, instruct: Path, base: Path | None, trained_on: str | None) -> str:
    """The README.md of a merged model, in the hub's form: metadata in YAML, then what was done and the figures.

    trained_on: the base that the adapter recorded. The licence is that of the instruct model's own card, where it has
    one.
    """
    names = {
        "instruct": hub_name(str(instruct.resolve())),
        "base": hub_name(str(base.resolve())) if base else hub_name(trained_on),
    }
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lite_c2f", "mistral-c2f", "merge"],
    }
    if licence := card_metadata(instruct / CARD).get("license"):
        metadata["license"] = licence
    if names["instruct"]:
        metadata |= {"base_model": [name for name in names.values() if name], "base_model_relation": "merge"}
    totals, treatment = report.totals, report.treatment
    treated = {key: value for key, value in treatment.items() if value not in (None, "none", "nearest", 0, 0.0)}
    if Treatment(**treatment).is_random:
        treated["seed"] = treatment["seed"]
    else:
        treated.pop("seed", None)
    shares = sorted({row["ratio"] for row in report.tensors.values()})
    caps = [row["cap"] for row in report.tensors.values() if "cap" in row]
    rows = {
        "instruct model": names["instruct"] or report.instruct,
        "base of the adapter": names["base"] or report.base or "not given",
        "adapter": f"{report.adapter['name']} (sha256 {report.adapter['sha256'][:12]})",
        "ratio": f"{shares[0]:g}" if len(shares) == 1 else f"{shares[0]:g} to {shares[-1]:g} by weight, see {REPORT}",
        "treatment": ", ".join(f"{key} {value}" for key, value in treated.items()) or "none",
        "weights changed": f"{totals['tensors']} tensors, {totals['elements']:,} elements",
        "type of their values": ", ".join(sorted({row["dtype"] for row in report.tensors.values()})),
        "relative change": _formatted(totals["relative_change"]),
        **(
            {"elements kept by the treatment": _formatted(totals["kept_share"])}
            if treatment["sparsify"] != "none"
            else {}
        ),
        **({"scaled down by the norm cap": f"{sum(cap < 1 for cap in caps)} of {len(caps)} weights"} if caps else {}),
        "changes lost to rounding": _formatted(totals["unchanged_share"]),
        "change carried after rounding": _formatted(totals["projection"]),
        "instruct away from base": _formatted(totals["drift"]),
        "cosine of change and instruct tuning": _formatted(totals["cosine"]),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    warned = "".join(f"\n> **Warning:** {text}\n" for text in report.warnings)
    return (
        f"---\n{yaml.safe_dump(metadata, sort_keys=True)}---\n\n# {report.instruct} with a merged residue\n\n"
        "A Fine Actor in the sense of Mistral-C2F (arXiv 2406.08657): the weight change that a LoRA adapter learned on "
        "the base model, added to the instruct model tuned from that base,\n\n"
        "    W_fine = W_instruct + ratio * dW\n\n"
        f"with dW = scaling * B @ A{', treated as listed below' if treated else ''}, rounded once. Made with lite_c2f. "
        "Loads with Transformers; the chat template is the instruct "
        f"model's.\n{warned}\n| | |\n|---|---|\n{table}\n\nEvery figure, also tensor by tensor, and the hashes of what "
        f"went in and came out are in `{REPORT}`.\n"
    )


def card_metadata(file: Path) -> dict[str, Any]:
    """The YAML block at the head of a model card; {} if there is none."""
    try:
        match = re.match(r"---\n(.*?)\n---", file.read_text(encoding="utf-8"), re.DOTALL)
        metadata = yaml.safe_load(match[1]) if match else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        metadata = None
    return metadata if isinstance(metadata, dict) else {}


def _quotient(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _formatted(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4f}"
