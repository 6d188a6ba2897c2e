"""State of run directories as the Runs view shows it; starting and stopping of runs."""

from lite_c2f.ui.runs.curves import Point, Sample, downsample
from lite_c2f.ui.runs.stages import StageState
from lite_c2f.ui.runs.starts import Started
from lite_c2f.ui.runs.state import RunState, follow, names

__all__ = ["Point", "RunState", "Sample", "StageState", "Started", "downsample", "follow", "names"]
