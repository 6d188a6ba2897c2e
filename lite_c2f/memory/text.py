"""Plan as text and as JSON."""

import textwrap
from collections.abc import Mapping
from typing import Any

from lite_c2f.memory.plan import Plan, usable_bytes
from lite_c2f.memory.sizes import GIBIBYTE


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan for scripts; sizes in GiB."""
    return {
        "shape": {**plan.shape._asdict(), "from": plan.source},
        "vram_gib": plan.vram_gib,
        "usable_gib": None if plan.vram_gib is None else _gib(usable_bytes(plan.vram_gib)),
        "compute": plan.compute._asdict(),
        "fits": plan.fits,
        "refusals": [refusal.message for refusal in plan.refusals],
        "warnings": plan.warnings,
        "shape_assumed": plan.assumed,
        "batches": {name: size for name, size in plan.batches._asdict().items() if size is not None},
        "limit": plan.growth[-1][0] if plan.growth else None,
        "largest_limit": plan.largest_limit,
        "growth": [
            {"limit": limit, "sampling_gib": _gib(sampling.total), "update_gib": _gib(update.total)}
            for limit, sampling, update in plan.growth
        ],
        "stages": {
            need.stage: {**{_key(part): _gib(size) for part, size in need.parts.items()}, "total": _gib(need.total)}
            for need in plan.needs
        },
        "disk_gib": {
            **{_key(part): _gib(size) for part, size in plan.disk.items()},
            "total": _gib(sum(plan.disk.values())),
        },
    }


WIDTH = 80  # columns of the text


def explain(plan: Plan) -> str:
    """The plan as a few readable lines of at most 80 columns, the verdict first."""
    paragraphs = [_verdict(plan)]
    paragraphs += [refusal.message for refusal in plan.refusals]
    paragraphs += [f"note: {warning}" for warning in plan.warnings]
    place = "card" if plan.compute.on_gpu else "CPU"
    at_limit = f", at a response limit of {plan.growth[-1][0]} tokens" if plan.growth else ""  # DPO has none
    stages = [f"GiB on the {place}, in {plan.compute.dtype}{at_limit}:"]
    for need in plan.needs:
        stages.append(f"  {need.stage.replace('_', ' '):<16}{_gib(need.total):>7.2f}  {need.setting}={need.batch}")
        stages += _wrapped(_parts(need.parts), "    ")
    growth = ["GiB as the response limit grows:"] if plan.growth else []
    for limit, sampling, update in plan.growth:
        growth.append(f"  {limit:>6} tokens  sampling {_gib(sampling.total):>6.2f}  update {_gib(update.total):>6.2f}")
    disk = [f"disk: {sum(plan.disk.values()) / GIBIBYTE:.2f} GiB", *_wrapped(_parts(plan.disk), "    ")]
    lines = [line for paragraph in paragraphs for line in _wrapped(paragraph, "", "  ")]
    return "\n".join(
        [
            *lines,
            *_wrapped(f"model: {plan.source}", "", "  "),
            "",
            *stages,
            "",
            *growth,
            *([""] if growth else []),
            *disk,
        ]
    )


def _verdict(plan: Plan) -> str:
    if plan.vram_gib is None:
        return "no card given: --vram GIB shows what fits"
    guess = ", if the model has that shape" if plan.assumed else ""
    verdict = "fits" if plan.fits else "does not fit"
    text = f"a card of {plan.vram_gib:g} GiB ({_gib(usable_bytes(plan.vram_gib)):.2f} usable): {verdict}{guess}"
    if plan.largest_limit:
        text += f"; with these batches up to a response limit of {plan.largest_limit} tokens"
    return text


def _parts(sizes: Mapping[str, float]) -> str:
    return ", ".join(f"{part} {size / GIBIBYTE:.2f}" for part, size in sizes.items() if size)


def _wrapped(text: str, first: str, subsequent: str | None = None) -> list[str]:
    """Lines of at most `WIDTH` columns; a path or a setting is never broken."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=first if subsequent is None else subsequent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _key(part: str) -> str:
    return part.lower().replace(" ", "_").replace("-", "_")


def _gib(size: float) -> float:
    return round(size / GIBIBYTE, 3)
