"""Charts as SVG, inside a page, whose colours apply to them, light or dark, or as files of their own. Nothing is loaded from anywhere."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 14, 44  # margins
#: Colours that people who see few of them can tell apart (Okabe and Ito 2008), and dashes and shapes for when there are more methods.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
DASHES = ("", "6 3", "2 3")
SHAPES = ("circle", "square", "diamond")
TICKS = 5
KEYS = 3  # names in a line below a chart


@dataclass(frozen=True)
class Line:
    """One method's curve.

    Attributes:
        name: of the method.
        runs: points ``(x, y)`` of each seed, in order.
        number: what decides its colour and dash, so that a method looks alike in all charts; by default its place in the chart.
    """

    name: str
    runs: Sequence[Sequence[tuple[float, float]]]
    number: int | None = None

    @property
    def mean(self) -> list[tuple[float, float]]:
        """The mean over the seeds where all have a point."""
        values = [dict(run) for run in self.runs]
        shared = sorted(set.intersection(*(set(v) for v in values))) if values else []
        return [(x, sum(v[x] for v in values) / len(values)) for x in shared]


@dataclass(frozen=True)
class Mark:
    """One method's point, with intervals where it has some; ``number`` as in `Line`."""

    name: str
    x: float
    y: float
    across: tuple[float, float] | None = None
    up: tuple[float, float] | None = None
    bound: bool = False
    number: int | None = None


@dataclass
class Axes:
    """The frame of a chart, and where its points lie."""

    x: tuple[float, float]
    y: tuple[float, float]
    names: tuple[str, str]
    parts: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        across, up = ((value - low) / ((high - low) or 1) for value, (low, high) in ((x, self.x), (y, self.y)))
        return round(LEFT + across * (WIDTH - LEFT - RIGHT), 1), round(
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1
        )

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
        return (
            "".join(parts) + f"<text x='13' y='{middle}' class='middle' transform='rotate(-90 13 {middle})'>{up}</text>"
        )

    def svg(self, title: str) -> str:
        about = f"viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{html.escape(title, quote=True)}'"
        return f"<svg class='chart' {about}>{self.frame()}{''.join(self.parts)}</svg>"


STYLE = """
.chart { max-width: 560px; width: 100%; font: 12px system-ui, sans-serif; } .chart text { fill: currentColor; }
.chart .right { text-anchor: end; } .chart .middle { text-anchor: middle; } .chart .rule { stroke: currentColor; opacity: .15; }
.chart .seed { fill: none; opacity: .35; } .chart .line { fill: none; stroke-width: 2.2; } .chart .span { stroke-width: 1.2; opacity: .6; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 28rem), 1fr)); gap: 1.5rem; } .charts figure { margin: 0; }
figcaption { font-size: 13px; } .key { margin-right: 1rem; white-space: nowrap; } .key svg { vertical-align: middle; }
@media (max-width: 40rem) { .chart { font-size: 16px; } }
"""


@dataclass(frozen=True)
class Key:
    """A line of a chart's legend.

    Attributes:
        number: of the method's colour.
        hollow: whether it is a bound.
        line: whether the chart has it as a curve.
    """

    name: str
    number: int
    hollow: bool = False
    line: bool = False

    def swatch(self) -> str:
        mark = (
            f"<line x1='0' x2='18' y1='5' y2='5' stroke-width='2.2' {stroke(self.number)}/>"
            if self.line
            else shape(9, 5, self.number, self.hollow, 4)
        )
        return f"<svg width='18' height='10' aria-hidden='true'>{mark}</svg>"


@dataclass(frozen=True)
class Figure:
    """A chart with a title and the names of what is in it."""

    title: str
    svg: str
    keys: Sequence[Key]

    def html(self) -> str:
        keys = "".join(f"<span class='key'>{key.swatch()} {html.escape(key.name)}</span>" for key in self.keys)
        return f"<figure><figcaption><b>{html.escape(self.title)}</b></figcaption>{self.svg}<figcaption>{keys}</figcaption></figure>"

    def file(self) -> str:
        """A picture of its own, on white, with title and names inside."""
        rows = -(-len(self.keys) // KEYS)
        parts = [
            f"<text x='{LEFT}' y='16' font-weight='bold'>{html.escape(self.title)}</text>",
            f"<g transform='translate(0 18)'>{self.svg}</g>",
        ]
        for i, key in enumerate(self.keys):
            x, y = LEFT + i % KEYS * (WIDTH - LEFT) // KEYS, HEIGHT + 34 + 18 * (i // KEYS)
            mark = key.swatch().replace("<svg ", f"<svg x='{x - 4}' y='{y - 9}' ")
            parts.append(f"{mark}<text x='{x + 18}' y='{y}'>{html.escape(key.name)}</text>")
        size = f"width='{WIDTH}' height='{HEIGHT + 26 + 18 * rows}'"
        style = f"<style>svg {{ color: #222; font: 12px sans-serif; }} {STYLE}</style><rect {size} fill='#fff'/>"
        nested = "".join(parts).replace("<svg class='chart'", f"<svg class='chart' width='{WIDTH}' height='{HEIGHT}'")
        return f"<svg xmlns='http://www.w3.org/2000/svg' {size}>{style}{nested}</svg>\n"


def lines(title: str, drawn: Sequence[Line], names: tuple[str, str]) -> Figure | None:
    """A curve per method: thin for a seed, thick for the mean of several; None without points."""
    points = [point for line in drawn for run in line.runs for point in run]
    if not points:
        return None
    axes, keys = Axes(span([x for x, _ in points]), span([y for _, y in points]), names), []
    for i, line in enumerate(drawn):
        number, several = i if line.number is None else line.number, len(line.runs) > 1
        axes.parts += [path(axes, run, number, "seed" if several else "line") for run in line.runs]
        axes.parts += [path(axes, line.mean, number, "line")] if several else []
        keys.append(Key(line.name, number, line=True))
    return Figure(title, axes.svg(title), keys)


def marks(title: str, drawn: Sequence[Mark], names: tuple[str, str]) -> Figure | None:
    """A point per method and its intervals, reference rows hollow; None without points."""
    known = [m for m in drawn if math.isfinite(m.x) and math.isfinite(m.y)]
    if not known:
        return None
    ranges = [
        [v for m in known for v in (m.x, *(m.across or ())) if math.isfinite(v)],
        [v for m in known for v in (m.y, *(m.up or ())) if math.isfinite(v)],
    ]
    axes, keys = Axes(span(ranges[0]), span(ranges[1]), names), []
    for i, m in enumerate(known):
        number, (x, y) = i if m.number is None else m.number, axes.at(m.x, m.y)
        spans = [
            [axes.at(v, m.y) for v in m.across or () if math.isfinite(v)],
            [axes.at(m.x, v) for v in m.up or () if math.isfinite(v)],
        ]
        for (x1, y1), (x2, y2) in (ends for ends in spans if len(ends) == 2):
            axes.parts.append(f"<line class='span' stroke='{colour(number)}' x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}'/>")
        axes.parts.append(
            f"<g>{shape(x, y, number, m.bound)}<title>{html.escape(m.name)}: {m.x:.4g}, {m.y:.4g}</title></g>"
        )
        keys.append(Key(m.name, number, m.bound))
    return Figure(title, axes.svg(title), keys)


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def stroke(number: int) -> str:
    """Colour and dash of a curve."""
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    return f"stroke='{colour(number)}'" + (f" stroke-dasharray='{dash}'" if dash else "")


def shape(x: float, y: float, number: int, hollow: bool, radius: float = 5) -> str:
    """A method's mark; the shape changes where the colours begin again."""
    look = f"stroke='{colour(number)}' stroke-width='2' fill='{'none' if hollow else colour(number)}'"
    kind = SHAPES[number // len(COLOURS) % len(SHAPES)]
    if kind == "circle":
        return f"<circle cx='{x:g}' cy='{y:g}' r='{radius:g}' {look}/>"
    turned = f" transform='rotate(45 {x:g} {y:g})'" if kind == "diamond" else ""
    return (
        f"<rect x='{x - radius:g}' y='{y - radius:g}' width='{2 * radius:g}' height='{2 * radius:g}' {look}{turned}/>"
    )


def path(axes: Axes, run: Sequence[tuple[float, float]], number: int, kind: str) -> str:
    if len(run) == 1:
        x, y = axes.at(*run[0])
        return f"<circle cx='{x:g}' cy='{y:g}' r='3' fill='{colour(number)}'/>"
    points = " ".join(",".join(map(str, axes.at(*point))) for point in run)
    return f"<polyline class='{kind}' {stroke(number)} points='{points}'/>"


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
