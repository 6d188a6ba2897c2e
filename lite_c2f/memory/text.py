"""The plan as text and as JSON."""

from typing import Any

from lite_c2f.memory.plan import Plan, usable
from lite_c2f.memory.sizes import GIBIBYTE


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan for scripts; sizes in GiB."""
    return {
        "shape": {**plan.shape._asdict(), "from": plan.source},
        "vram_gib": plan.vram_gib,
        "usable_gib": None if plan.vram_gib is None else _gib(usable(plan.vram_gib)),
        "compute": plan.compute._asdict(),
        "fits": plan.fits,
        "refusals": [refusal.line for refusal in plan.refusals],
        "warnings": plan.warnings,
        "shape_assumed": plan.assumed,
        "batches": plan.batches._asdict(),
        "limit": plan.growth[-1][0],
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


def explain(plan: Plan) -> str:
    """The plan as a few readable lines."""
    limit = plan.growth[-1][0]
    place = "card" if plan.compute.on_gpu else "CPU"
    lines = [
        f"memory of each stage on the {place}, in GiB, in {plan.compute.dtype}, at a response limit of {limit} tokens; "
        f"from {plan.source}"
    ]
    for need in plan.needs:
        inner = ", ".join(f"{part} {size / GIBIBYTE:.2f}" for part, size in need.parts.items() if size)
        lines.append(
            f"  {need.stage.replace('_', ' '):<16}{_gib(need.total):>7.2f}  {need.setting}={need.batch}  ({inner})"
        )
    lines.append("as the response limit grows")
    for limit, sampling, update in plan.growth:
        lines.append(f"  {limit:>6} tokens  sampling {_gib(sampling.total):>6.2f}  update {_gib(update.total):>6.2f}")
    inner = ", ".join(f"{part} {size / GIBIBYTE:.2f}" for part, size in plan.disk.items() if size)
    lines.append(f"disk  {sum(plan.disk.values()) / GIBIBYTE:.2f} GiB  ({inner})")
    lines += [f"note  {warning}" for warning in plan.warnings]
    if plan.vram_gib is None:
        lines.append("no card named: --vram GIB says what fits")
        return "\n".join(lines)
    verdict = "fits" if plan.fits else "does not fit"
    guess = ", if the model has that shape" if plan.assumed else ""
    lines.append(f"a card of {plan.vram_gib:g} GiB ({_gib(usable(plan.vram_gib)):.2f} usable): {verdict}{guess}")
    if plan.largest_limit:
        lines.append(f"with these batches the coarse stage fits up to a limit of {plan.largest_limit} tokens")
    lines += [f"  {refusal.line}" for refusal in plan.refusals]
    return "\n".join(lines)


def _key(part: str) -> str:
    return part.lower().replace(" ", "_").replace("-", "_")


def _gib(size: float) -> float:
    return round(size / GIBIBYTE, 3)
