"""The planner: what a run takes, before it starts. `sizes.py` counts bytes, `stages.py` adds up each stage, `plan.py`
chooses batches and refuses what cannot fit, `text.py` says it. No weights are loaded, and torch is not imported."""

from lite_c2f.memory.plan import Plan, check, make_plan, settle
from lite_c2f.memory.text import as_json, explain

__all__ = ["Plan", "as_json", "check", "explain", "make_plan", "settle"]
