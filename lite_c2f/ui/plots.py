"""Small line charts as inline SVG, in the page's own ink: no script, no picture to fetch, and fast to make."""

import html
import math
from collections.abc import Mapping, Sequence

from lite_c2f.ui.runs import Point

WIDTH, HEIGHT = 320, 150
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 22  # room around the plot, in the same units
COLORS = ("var(--line-1)", "var(--line-2)")  # of the page: text in them is read on white and on near-black


def chart(title: str, unit: str, curves: Mapping[str, Sequence[Point]], below: str) -> str:
    """A figure with one or two curves; "" where no curve has a finite point.

    curves: (step, value) by name, which is told where there are two; below: what the steps are.
    """
    shown = {name: finite for name, points in curves.items() if (finite := _finite(points))}
    if not shown:
        return ""
    every = [point for points in shown.values() for point in points]
    across, up = [x for x, _ in every], [y for _, y in every]
    columns = ticks(min(across), max(across), 6, whole=True)
    rows = ticks(min(up), max(up), 3)
    x_low, x_high = _widened(min(across), max(across))
    low, high = min(rows[0], min(up)), max(rows[-1], max(up))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM),
        )

    parts = []
    for value in rows:
        _, y = place(x_low, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{number(value)}</text>')
    for value in columns:
        x, _ = place(value, low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 7}" text-anchor="middle">{number(value)}</text>')
    for color, points in zip(COLORS, shown.values(), strict=False):
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline points="{line}" stroke="{color}"/>')
        x, y = place(*points[-1])
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>')
    told = _legend(shown)
    label = html.escape(f"{title}, {unit}: {told[1]} at {below} {number(across[-1])}")
    return (
        f'<figure class="plot"><figcaption><b>{html.escape(title)}</b> <span>{html.escape(unit)}</span> {told[0]}'
        f'</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
        "</figure>"
    )


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Round numbers that reach over a range, about so many; whole: only those inside it, and whole ones.

    >>> ticks(0.0, 1.0, 3)
    [0.0, 0.5, 1.0]
    """
    low, high = _widened(low, high)
    rough = (high - low) / max(count - 1, 1)
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next((scale * times for times in (1, 2, 5) if scale * times >= rough * 0.999), scale * 10)
    if whole:
        step = max(1.0, step)
        first, last = math.ceil(low / step), math.floor(high / step)
    else:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def number(value: float) -> str:
    """A number in few signs: 0.25, 12, 3.4k, 2e-05."""
    size = abs(value)
    if size >= 10_000:
        return (
            next(
                f"{value / unit:.3g}{sign}"
                for unit, sign in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
                if size >= unit
            )
            if size < 1e15
            else f"{value:.1e}"
        )
    return f"{value:.0f}" if size >= 1000 else f"{value:.3g}"


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range that is none, such as that of one point, with room around it."""
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    room = max(abs(low) * 0.1, 0.5)
    return low - room, high + room


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and abs(y) < 1e300]


def _legend(shown: Mapping[str, Sequence[Point]]) -> tuple[str, str]:
    """The newest value of each curve: as HTML, and as a text."""
    parts, texts = [], []
    for color, (name, points) in zip(COLORS, shown.items(), strict=False):
        value = number(points[-1][1])
        label = f"{name} {value}" if len(shown) > 1 else value
        texts.append(label)
        parts.append(f'<em style="color:{color}">{html.escape(label)}</em>')
    return " ".join(parts), ", ".join(texts)
