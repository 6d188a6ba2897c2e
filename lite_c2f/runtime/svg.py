"""SVG charts: lines with points, error bars or bands, in panels beside each other, in the text color of the page.

Used by the report, the app, the files of a sweep and the benchmarks. Text and axes are `currentColor`, so that a chart
in a page is readable in light and dark; `document` makes a file, which follows the reader's color scheme.
"""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

Point = tuple[float, float]
PALETTE = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#14b8a6")  # readable on white and on near-black
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 22  # margins around the plot of a bare panel, in units of the viewBox
LABEL = 15  # more margin for a title, and for the label of an axis
TICK = 45  # between ticks, about
LETTER = 6.2  # width of a letter of 11 px, on average
SCHEMES = (
    "svg{color:#1f2328;background:#fff;font-family:system-ui,sans-serif}"
    "@media(prefers-color-scheme:dark){svg{color:#e6edf3;background:#0d1117}}"
)


class Series(NamedTuple):
    """A line of a panel. Points that are not finite are left out, with their errors."""

    name: str  # in the legend; lines of the same name in other panels share its entry
    points: Sequence[Point]
    errors: Sequence[float] = ()  # half the height of the error bar at each point; () for none
    band: bool = False  # errors are a band around the line
    dots: bool = False  # mark each point, not the last one alone
    end: bool = True  # mark the last point
    color: str = ""  # default: by its place in the panel
    dash: str = ""  # lengths of its dashes and the gaps between, in units of the viewBox; "": a whole line


class Panel(NamedTuple):
    """One pair of axes."""

    series: Sequence[Series]
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    whole: bool = False  # ticks of x are whole numbers
    marked: float | None = None  # x of a dashed vertical line


def figure(
    panels: Sequence[Panel], columns: int = 1, width: int = 320, height: int = 150, label: str = "", legend: bool = True
) -> str:
    """Panels as one <svg>, row by row; a legend below them if there is more than one name.

    width, height: of a panel, in units of the viewBox, in which text is 11 high. label: for readers who cannot see it.
    """
    rows = math.ceil(len(panels) / columns)
    parts = []
    for index, panel in enumerate(panels):
        x, y = index % columns * width, index // columns * height
        parts.append(f'<g transform="translate({x} {y})">{_panel(panel, width, height)}</g>')
    entries, below = _legend(panels, columns * width) if legend else ("", 0)
    if entries:
        parts.append(f'<g transform="translate(0 {rows * height})">{entries}</g>')
    about = f' aria-label="{html.escape(label)}"' if label else ""
    box = f"0 0 {columns * width} {rows * height + below}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" role="img"{about} font-size="11">'
    return f"{head}{''.join(parts)}</svg>"


def document(svg: str) -> str:
    """A `figure` as a file of its own, light or dark as the reader's system is."""
    start = svg.index(">") + 1
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg[:start]}<style>{SCHEMES}</style>{svg[start:]}\n'


def histogram(values: Sequence[float], low: float, high: float, bins: int = 30) -> list[Point]:
    """The outline of a histogram: points of a line that begins and ends at 0, over equal bins from low to high.

    >>> histogram([0.0, 1.0, 1.9, 2.0], 0.0, 2.0, bins=2)
    [(0.0, 0), (0.0, 1), (1.0, 1), (1.0, 3), (2.0, 3), (2.0, 0)]
    """
    size = (high - low or 1.0) / bins
    counts = [0] * bins
    for value in values:
        counts[min(int((value - low) / size), bins - 1)] += 1
    edges = [low + size * edge for edge in range(bins + 1)]
    outline = [(edges[start + side], count) for start, count in enumerate(counts) for side in (0, 1)]
    return [(edges[0], 0), *outline, (edges[-1], 0)]


def ticks(low: float, high: float, count: int, *, whole: bool = False, inside: bool = False) -> list[float]:
    """About `count` round numbers that cover a range; inside: only those within it; whole: whole ones within it.

    >>> ticks(0.0, 1.0, 3)
    [0.0, 0.5, 1.0]
    """
    low, high = _widened(low, high)
    rough = (high - low) / max(count - 1, 1)
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next((scale * times for times in (1, 2, 5) if scale * times >= rough * 0.999), scale * 10)
    step = max(1.0, step) if whole else step
    if whole or inside:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    else:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def number(value: float) -> str:
    """A number in few characters: 0.25, 12, 3.4k, 2e-05."""
    size = abs(value)
    if size >= 1e15:
        return f"{value:.1e}"
    if size >= 10_000:
        unit, sign = next(pair for pair in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")) if size >= pair[0])
        return f"{value / unit:.3g}{sign}"
    return f"{value:.0f}" if size >= 1000 else f"{value:.3g}"


def finite(points: Sequence[Point]) -> list[Point]:
    """The points that can be drawn."""
    return [(x, y) for x, y in points if _drawable(x, y)]


def _drawable(x: float, y: float) -> bool:
    return math.isfinite(x) and math.isfinite(y) and abs(y) < 1e300


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range of no width, such as that of one point, with room around it."""
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    room = max(abs(low) * 0.1, 0.5)
    return low - room, high + room


class _Axes(NamedTuple):
    """From values to units of the viewBox."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: float
    right: float
    top: float
    bottom: float

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)


def _panel(panel: Panel, width: int, height: int) -> str:
    top, bottom = TOP + LABEL * bool(panel.title), height - BOTTOM - LABEL * bool(panel.x_label)
    left, right = LEFT + LABEL * bool(panel.y_label), width - RIGHT
    middle = (left + right) / 2
    parts = [_text(middle, 14, panel.title, "middle")] if panel.title else []
    parts += [_text(middle, height - 7, panel.x_label, "middle")] if panel.x_label else []
    if panel.y_label:
        turned = f' transform="rotate(-90 12 {(top + bottom) / 2:.1f})"'
        parts.append(_text(12, (top + bottom) / 2, panel.y_label, "middle", turned))
    lines = [_finite_series(series) for series in panel.series]
    xs = [x for series in lines for x, _ in series.points]
    if not xs:
        return "".join([*parts, _text(middle, (top + bottom) / 2, "no values", "middle")])
    xs += [panel.marked] if panel.marked is not None else []
    ys = [y for series in lines for interval in _intervals(series) for y in interval]
    rows = ticks(min(ys), max(ys), max(3, round((bottom - top) / TICK)))
    left += max(0, math.ceil(6.4 * max(len(number(value)) for value in rows)) + 5 - LEFT)  # -0.0005 lost its sign
    x_range = _widened(min(xs), max(xs))
    axes = _Axes(x_range, (min(rows[0], *ys), max(rows[-1], *ys)), left, right, top, bottom)
    for value in rows:
        y = axes.y(value)
        parts.append(
            f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" '
            'stroke-opacity=".25"/>'
        )
        parts.append(_text(left - 5, y + 3.5, number(value), "end"))
    for value in ticks(min(xs), max(xs), round((right - left) / TICK), whole=panel.whole, inside=True):
        parts.append(_text(axes.x(value), bottom + 15, number(value), "middle"))
    if panel.marked is not None:
        x = axes.x(panel.marked)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="{PALETTE[1]}" stroke-dasharray="4 3"/>'
        )
    parts += [
        _line(series, series.color or PALETTE[index % len(PALETTE)], axes)
        for index, series in enumerate(lines)
        if series.points
    ]
    return "".join(parts)


def _line(series: Series, color: str, axes: _Axes) -> str:
    places = [(axes.x(x), axes.y(y)) for x, y in series.points]
    parts = []
    if series.errors and series.band:
        ends = [(x, axes.y(low), axes.y(high)) for (x, _), (low, high) in zip(places, _intervals(series), strict=True)]
        outline = _coordinates([(x, high) for x, _, high in ends] + [(x, low) for x, low, _ in reversed(ends)])
        parts.append(f'<polygon points="{outline}" fill="{color}" fill-opacity=".15"/>')
    elif series.errors:
        for (x, _), (low, high) in zip(places, _intervals(series), strict=True):
            bar = f'x1="{x:.1f}" x2="{x:.1f}" y1="{axes.y(low):.1f}" y2="{axes.y(high):.1f}"'
            parts.append(f'<line {bar} stroke="{color}"/>')
    dash = f' stroke-dasharray="{series.dash}"' if series.dash else ""
    parts.append(
        f'<polyline points="{_coordinates(places)}" fill="none" stroke="{color}" stroke-width="1.6" '
        f'stroke-linejoin="round"{dash}/>'
    )
    dots = places if series.dots else places[-1:] if series.end else []
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y in dots]
    return "".join(parts)


def _finite_series(series: Series) -> Series:
    if not series.errors:
        return series._replace(points=finite(series.points))
    pairs = [
        (point, error if math.isfinite(error) else 0.0)
        for point, error in zip(series.points, series.errors, strict=True)
        if _drawable(*point)
    ]
    return series._replace(points=[point for point, _ in pairs], errors=[error for _, error in pairs])


def _intervals(series: Series) -> list[tuple[float, float]]:
    """Lower and upper end of what is drawn at each point."""
    errors = series.errors or [0.0] * len(series.points)
    return [(y - error, y + error) for (_, y), error in zip(series.points, errors, strict=True)]


def _legend(panels: Sequence[Panel], width: int) -> tuple[str, int]:
    """A stroke and a name for each series, in as many rows as they need; and their height."""
    colors: dict[str, str] = {}
    for panel in panels:
        for index, series in enumerate(panel.series):
            colors.setdefault(series.name, series.color or PALETTE[index % len(PALETTE)])
    if len(colors) < 2:
        return "", 0
    parts, x, y = [], float(LEFT), 12
    for name, color in colors.items():
        shown = name if len(name) <= 40 else f"{name[:39]}…"
        room = 22 + LETTER * len(shown) + 16
        if x + room > width and x > LEFT:
            x, y = float(LEFT), y + 16
        key = f'x1="{x:.1f}" x2="{x + 16:.1f}" y1="{y - 4}" y2="{y - 4}"'
        parts.append(f'<line {key} stroke="{color}" stroke-width="2"/>')
        parts.append(_text(x + 22, y, shown, "start"))
        x += room
    return "".join(parts), y + 8


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor"{more}>{html.escape(text)}</text>'


def _coordinates(places: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
