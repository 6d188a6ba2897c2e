"""Planner: what a run takes, before it starts. `sizes.py` counts bytes, `stages.py` adds up each stage, `plan.py`
chooses batches, `remedies.py` refuses what cannot fit, `text.py` prints it, `compute.py` decides on the
arithmetic. No weights
are loaded, and torch is imported only for models that have to be counted."""

from lite_c2f.memory.plan import Plan, check, make_plan, resolve
from lite_c2f.memory.text import as_json, explain

__all__ = ["Plan", "as_json", "check", "explain", "make_plan", "resolve"]
