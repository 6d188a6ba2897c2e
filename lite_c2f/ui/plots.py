"""Line charts of the Run view: an SVG with its title, its unit and the newest values above it, and its values to read.

Not Gradio's LinePlot: it draws on a canvas that no keyboard and no screen reader gets a value from, and loads 1.3 MB.
"""

import json
from collections.abc import Mapping, Sequence

from lite_c2f.runtime.svg import Panel, Point, Series, figure, finite, number
from lite_c2f.ui.escaping import fill

COLORS = tuple(f"var(--line-{place})" for place in (1, 2, 3, 4))  # of the page: readable on white and on near-black
DASHES = ("", "7 3", "2 3", "9 3 2 3")  # lines differ without their colours


def chart(title: str, unit: str, curves: Mapping[str, Sequence[Point]], x_name: str) -> str:
    """A <figure> with up to four curves; "" where no curve has a finite point.

    curves: (step, value) by name, which is shown where there are several; x_name: what the steps are. charts.js reads
    out the values at the pointer, and by the arrow keys.
    """
    shown = {name: points for name, every in list(curves.items())[: len(COLORS)] if (points := finite(every))}
    if not shown:
        return ""
    places = {name: place for place, name in enumerate(curves) if name in shown}  # a run keeps its color in all charts
    newest = {name: number(points[-1][1]) for name, points in shown.items()}
    values = [f"{name} {value}" for name, value in newest.items()] if len(curves) > 1 else list(newest.values())
    series = [
        Series(name, points, color=COLORS[places[name]], dash=DASHES[places[name]]) for name, points in shown.items()
    ]
    xs = sorted({x for points in shown.values() for x, _ in points})
    label = f"{title}, {unit}: {', '.join(values)} at {x_name} {number(xs[-1])}"
    return fill(
        "plot.html",
        title=title,
        unit=unit,
        values=[(COLORS[place], DASHES[place], value) for place, value in zip(places.values(), values, strict=True)],
        newest=f"{x_name} {number(xs[-1])}: {', '.join(values)}",
        last=len(xs) - 1,
        x_name=x_name,
        lines=json.dumps([_line_data(name if len(curves) > 1 else "", points) for name, points in shown.items()]),
        svg=figure([Panel(series, whole=x_name != "minute")], label=label, legend=False),
    )


def _line_data(name: str, points: Sequence[Point]) -> list[object]:
    """A line's name, and its x and y to six digits."""
    return [name, *([float(f"{value:.6g}") for value in values] for values in zip(*points, strict=True))]
