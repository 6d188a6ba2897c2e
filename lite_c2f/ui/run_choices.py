"""What a visitor chooses to see of a run: other runs in its charts, their x axis, smoothing and zoom; its log."""

from typing import Any, NamedTuple

import gradio as gr

from lite_c2f.ui.plots import COLORS
from lite_c2f.ui.runs.axes import AXES, ChartView

Input = gr.Dropdown | gr.Textbox | gr.Checkbox
SMOOTHING = {"off": 1, "5 updates": 5, "15 updates": 15}
PARTS = {"the whole run": 1.0, "its last half": 0.5, "its last fifth": 0.2}
OTHERS = len(COLORS) - 1  # runs beside the one that is followed
SEARCHED = 200  # characters of a search


class Choices(NamedTuple):
    """Choices that are known. runs: names as they came, of which the view takes those that are in its list."""

    runs: tuple[str, ...] = ()
    view: ChartView = ChartView()
    search: str = ""  # text that lines of the log must have
    whole_log: bool = False


def choice_inputs() -> list[Input]:
    """The inputs above the charts, as `known_choices` has them; the view gives the first its choices."""
    with gr.Row():
        others = gr.Dropdown(
            [],
            value=[],
            multiselect=True,
            max_choices=OTHERS,
            label=f"Beside it, in the same charts (up to {OTHERS})",
            min_width=200,
            allow_custom_value=True,  # a name that is no longer in the list draws nothing
        )
        axis = gr.Dropdown(list(AXES), value=AXES[0], label="X axis", min_width=120)
        smoothing = gr.Dropdown(list(SMOOTHING), value="off", label="Smoothing", min_width=120)
        part = gr.Dropdown(list(PARTS), value="the whole run", label="Shown", min_width=120)
    return [others, axis, smoothing, part]


def log_inputs() -> list[Input]:
    """The inputs above the log."""
    with gr.Row():
        search = gr.Textbox(label="Search the log", max_lines=1, max_length=SEARCHED, min_width=200)
        whole = gr.Checkbox(label="All lines, not the last ones alone", min_width=200)
    return [search, whole]


def known_choices(
    others: Any = None,
    axis: Any = None,
    smoothing: Any = None,
    part: Any = None,
    search: Any = None,
    whole_log: Any = None,
) -> Choices:
    """What a page sent, with the default in place of what is unknown."""
    runs = [name for name in others if isinstance(name, str)][:OTHERS] if isinstance(others, list) else []
    view = ChartView(
        axis if axis in AXES else AXES[0],
        SMOOTHING.get(smoothing, 1) if isinstance(smoothing, str) else 1,
        PARTS.get(part, 1.0) if isinstance(part, str) else 1.0,
    )
    wanted = search.strip()[:SEARCHED] if isinstance(search, str) else ""
    return Choices(tuple(dict.fromkeys(runs)), view, wanted, whole_log is True)
