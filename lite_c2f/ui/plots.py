"""Line charts of the Run view: an SVG with its title, its unit and the newest values above it."""

from collections.abc import Mapping, Sequence

from lite_c2f.runtime.svg import Panel, Point, Series, figure, finite, number
from lite_c2f.ui.escaping import fill

COLORS = ("var(--line-1)", "var(--line-2)")  # of the page: text in them is readable on white and on near-black


def chart(title: str, unit: str, curves: Mapping[str, Sequence[Point]], x_name: str) -> str:
    """A <figure> with one or two curves; "" where no curve has a finite point.

    curves: (step, value) by name, which is shown where there are two; x_name: what the steps are.
    """
    shown = {name: points for name, every in curves.items() if (points := finite(every))}
    if not shown:
        return ""
    newest = {name: number(points[-1][1]) for name, points in shown.items()}
    values = [f"{name} {value}" for name, value in newest.items()] if len(newest) > 1 else list(newest.values())
    series = [Series(name, points, color=color) for color, (name, points) in zip(COLORS, shown.items(), strict=False)]
    last = max(x for points in shown.values() for x, _ in points)
    label = f"{title}, {unit}: {', '.join(values)} at {x_name} {number(last)}"
    svg = figure([Panel(series, whole=True)], label=label, legend=False)
    return fill("plot.html", title=title, unit=unit, values=list(zip(COLORS, values, strict=False)), svg=svg)
