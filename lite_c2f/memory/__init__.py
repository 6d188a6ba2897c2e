"""Planner: memory and disk of a run, before it starts. Loads no weights.

`sizes.py` counts bytes, `stages.py` adds up each stage, `plan.py` chooses batches, `remedies.py` explains what does not
fit, `text.py` formats the plan, `compute.py` chooses the dtype.
"""

from lite_c2f.memory.plan import Plan, check, make_plan, resolve
from lite_c2f.memory.text import as_json, explain

__all__ = ["Plan", "as_json", "check", "explain", "make_plan", "resolve"]
