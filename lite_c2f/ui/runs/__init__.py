"""Looks at a run directory at any moment of its life: while it is written, and after any end."""

from lite_c2f.ui.runs.curves import Point, Sample, downsample
from lite_c2f.ui.runs.stages import StageState
from lite_c2f.ui.runs.starts import Started
from lite_c2f.ui.runs.state import RunState, follow, names

__all__ = ["Point", "RunState", "Sample", "StageState", "Started", "downsample", "follow", "names"]
