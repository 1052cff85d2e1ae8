"""Curves as SVG, for a page without scripts."""

import math
from html import escape

Points = list[tuple[float, float]]
WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 10, 10, 26
"""Room beside the curves for what is written at the axes."""
TICKS = 4


def drawn(title: str, lines: dict[str, Points]) -> str:
    """A figure of ``lines``, each with a point at least, over the same steps."""
    xs, ys = ([point[n] for points in lines.values() for point in points] for n in (0, 1))
    first, last = min(xs), max(xs)
    ticks = _ticks(min(ys), max(ys))
    low, high = min(ticks[0], min(ys)), max(ticks[-1], max(ys))

    def place(x: float, y: float) -> str:
        across = (x - first) / ((last - first) or 1)
        up = (y - low) / ((high - low) or 1)
        return f"{LEFT + across * (WIDTH - LEFT - RIGHT):.1f},{HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM):.1f}"

    parts = [_grid(value, float(place(first, value).split(",")[1])) for value in ticks]
    parts += [
        f"<text class='tick' x='{LEFT}' y='{HEIGHT - 8}'>{first:g}</text>",
        f"<text class='tick end' x='{WIDTH - RIGHT}' y='{HEIGHT - 8}'>step {last:g}</text>",
    ]
    for n, points in enumerate(lines.values()):
        path = " ".join(place(*point) for point in points)
        parts.append(f"<polyline class='line c{n}' points='{path}'/>")
        if len(points) <= 24:
            dots = (place(*point).split(",") for point in points)
            parts += [f"<circle class='dot c{n}' cx='{x}' cy='{y}' r='2.5'/>" for x, y in dots]
    told = "; ".join(f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points in lines.items())
    legend = "".join(
        f"<li class='c{n}'>{escape(name)} <b>{points[-1][1]:.4g}</b></li>"
        for n, (name, points) in enumerate(lines.items())
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(f'{title}: {told}', quote=True)}'>"
        f"{''.join(parts)}</svg><ul class='legend'>{legend}</ul></figure>"
    )


def _grid(value: float, y: float) -> str:
    return (
        f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>"
        f"<text class='tick end' x='{LEFT - 6}' y='{y + 4:.1f}'>{value:.4g}</text>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from ``low``, or beneath it, to ``high``, or above it."""
    span = (high - low) or abs(high) or 1.0
    rough = span / TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [n * step for n in range(first, max(last, first + 1) + 1)]
