"""Looks at a run directory at any moment of its life: while it is written, and after any end."""

from lite_c2f.following.curves import Point, Sample, downsample
from lite_c2f.following.stages import StageState
from lite_c2f.following.starts import Started
from lite_c2f.following.state import RunState, follow, names

__all__ = ["Point", "RunState", "Sample", "StageState", "Started", "downsample", "follow", "names"]
