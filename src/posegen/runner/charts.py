"""Charts as SVG, inside a page, whose colours apply to them, light or dark, or as files of their own. Nothing is loaded from anywhere."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 14, 44  # margins
#: Colours that people who see few of them can tell apart (Okabe and Ito 2008), and dashes for when there are more methods.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
DASHES = ("", "6 3", "2 3")
TICKS = 5
KEYS = 3  # names in a line below a chart


@dataclass(frozen=True)
class Line:
    """One method's curve.

    Attributes:
        name: of the method.
        runs: points ``(x, y)`` of each seed, in order.
    """

    name: str
    runs: Sequence[Sequence[tuple[float, float]]]

    @property
    def mean(self) -> list[tuple[float, float]]:
        """The mean over the seeds where all have a point."""
        values = [dict(run) for run in self.runs]
        shared = sorted(set.intersection(*(set(v) for v in values))) if values else []
        return [(x, sum(v[x] for v in values) / len(values)) for x in shared]


@dataclass(frozen=True)
class Mark:
    """One method's point, with intervals where it has some."""

    name: str
    x: float
    y: float
    across: tuple[float, float] | None = None
    up: tuple[float, float] | None = None
    bound: bool = False


@dataclass
class Axes:
    """The frame of a chart, and where its points lie."""

    x: tuple[float, float]
    y: tuple[float, float]
    names: tuple[str, str]
    parts: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        across, up = ((value - low) / ((high - low) or 1) for value, (low, high) in ((x, self.x), (y, self.y)))
        return round(LEFT + across * (WIDTH - LEFT - RIGHT), 1), round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1)

    def frame(self) -> str:
        parts = []
        for value in ticks(*self.y):
            _, y = self.at(self.x[0], value)
            parts.append(
                f"<line class='rule' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y}' y2='{y}'/><text x='{LEFT - 6}' y='{y + 4}' class='right'>{value:g}</text>"
            )
        for value in ticks(*self.x):
            x, _ = self.at(value, self.y[0])
            parts.append(f"<text x='{x}' y='{HEIGHT - BOTTOM + 16}' class='middle'>{value:g}</text>")
        across, up = map(html.escape, self.names)
        parts.append(f"<text x='{(LEFT + WIDTH - RIGHT) / 2}' y='{HEIGHT - 8}' class='middle'>{across}</text>")
        middle = (TOP + HEIGHT - BOTTOM) / 2
        return "".join(parts) + f"<text x='13' y='{middle}' class='middle' transform='rotate(-90 13 {middle})'>{up}</text>"

    def svg(self, title: str) -> str:
        about = f"viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{html.escape(title, quote=True)}'"
        return f"<svg class='chart' {about}>{self.frame()}{''.join(self.parts)}</svg>"


STYLE = """
.chart { max-width: 560px; width: 100%; font: 12px system-ui, sans-serif; } .chart text { fill: currentColor; }
.chart .right { text-anchor: end; } .chart .middle { text-anchor: middle; } .chart .rule { stroke: currentColor; opacity: .15; }
.chart .seed { fill: none; opacity: .35; } .chart .line { fill: none; stroke-width: 2.2; } .chart .span { stroke-width: 1.2; opacity: .6; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem; } .charts figure { margin: 0; flex: 1 1 24rem; max-width: 36rem; } figcaption { font-size: 13px; }
.key { margin-right: 1rem; white-space: nowrap; } .key svg { vertical-align: middle; }
"""


@dataclass(frozen=True)
class Figure:
    """A chart with a title and the names of what is in it.

    Attributes:
        svg: the chart.
        names: of the methods, in the order of the colours.
        hollow: those that are bounds.
    """

    title: str
    svg: str
    names: Sequence[str]
    hollow: frozenset[str] = frozenset()

    def html(self) -> str:
        keys = "".join(f"<span class='key'>{swatch(i, name in self.hollow)} {html.escape(name)}</span>" for i, name in enumerate(self.names))
        return f"<figure>{self.svg}<figcaption><b>{html.escape(self.title)}</b><br>{keys}</figcaption></figure>"

    def file(self) -> str:
        """A picture of its own, on white, with title and names inside."""
        rows = -(-len(self.names) // KEYS)
        parts = [f"<text x='{LEFT}' y='16' font-weight='bold'>{html.escape(self.title)}</text>", f"<g transform='translate(0 18)'>{self.svg}</g>"]
        for i, name in enumerate(self.names):
            x, y = LEFT + i % KEYS * (WIDTH - LEFT) // KEYS, HEIGHT + 34 + 18 * (i // KEYS)
            mark = swatch(i, name in self.hollow).replace("<svg ", f"<svg x='{x - 4}' y='{y - 9}' ")
            parts.append(f"{mark}<text x='{x + 14}' y='{y}'>{html.escape(name)}</text>")
        size = f"width='{WIDTH}' height='{HEIGHT + 26 + 18 * rows}'"
        style = f"<style>svg {{ color: #222; font: 12px sans-serif; }} {STYLE}</style><rect {size} fill='#fff'/>"
        nested = "".join(parts).replace("<svg class='chart'", f"<svg class='chart' width='{WIDTH}' height='{HEIGHT}'")
        return f"<svg xmlns='http://www.w3.org/2000/svg' {size}>{style}{nested}</svg>\n"


def lines(title: str, drawn: Sequence[Line], names: tuple[str, str]) -> Figure | None:
    """A curve per method: thin for a seed, thick for the mean of several; None without points."""
    points = [point for line in drawn for run in line.runs for point in run]
    if not points:
        return None
    axes = Axes(span([x for x, _ in points]), span([y for _, y in points]), names)
    for i, line in enumerate(drawn):
        several = len(line.runs) > 1
        axes.parts += [path(axes, run, i, "seed" if several else "line") for run in line.runs]
        axes.parts += [path(axes, line.mean, i, "line")] if several else []
    return Figure(title, axes.svg(title), [line.name for line in drawn])


def marks(title: str, drawn: Sequence[Mark], names: tuple[str, str]) -> Figure | None:
    """A point per method and its intervals, reference rows hollow; None without points."""
    known = [m for m in drawn if math.isfinite(m.x) and math.isfinite(m.y)]
    if not known:
        return None
    ranges = [[v for m in known for v in (m.x, *(m.across or ())) if math.isfinite(v)], [v for m in known for v in (m.y, *(m.up or ())) if math.isfinite(v)]]
    axes = Axes(span(ranges[0]), span(ranges[1]), names)
    for i, m in enumerate(known):
        colour, (x, y) = COLOURS[i % len(COLOURS)], axes.at(m.x, m.y)
        spans = [[axes.at(v, m.y) for v in m.across or ()], [axes.at(m.x, v) for v in m.up or ()]]
        for (x1, y1), (x2, y2) in filter(None, spans):
            axes.parts.append(f"<line class='span' stroke='{colour}' x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}'/>")
        told = f"<title>{html.escape(m.name)}: {m.x:.4g}, {m.y:.4g}</title>"
        axes.parts.append(f"<circle cx='{x}' cy='{y}' r='5' stroke='{colour}' stroke-width='2' fill='{'none' if m.bound else colour}'>{told}</circle>")
    return Figure(title, axes.svg(title), [m.name for m in known], frozenset(m.name for m in known if m.bound))


def swatch(number: int, hollow: bool) -> str:
    colour = COLOURS[number % len(COLOURS)]
    return f"<svg width='14' height='10'><circle cx='7' cy='5' r='4' stroke='{colour}' stroke-width='2' fill='{'none' if hollow else colour}'/></svg>"


def path(axes: Axes, run: Sequence[tuple[float, float]], number: int, kind: str) -> str:
    points = " ".join(",".join(map(str, axes.at(*point))) for point in run)
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    return (
        f"<polyline class='{kind}' stroke='{COLOURS[number % len(COLOURS)]}'{f' stroke-dasharray={chr(39)}{dash}{chr(39)}' if dash else ''} points='{points}'/>"
    )


def span(values: Sequence[float]) -> tuple[float, float]:
    """The range of an axis: that of the values, with some air."""
    low, high = min(values), max(values)
    air = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (low - air if low < 0 or low > air else 0.0), high + air


def ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range, about `TICKS` of them."""
    step = 0.75 * (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(step))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]
