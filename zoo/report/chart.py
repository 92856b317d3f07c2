"""Line charts as inline SVG, coloured by the page's style sheet."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from zoo.report.page import Html, element

WIDTH, HEIGHT = 360, 220  # as wide as a phone, so that its text is not made smaller there
TOP, RIGHT, BOTTOM, LETTER = 8, 14, 30, 6.2  # margins; the width of a digit
COLOURS = 8
POINTS = 400  # more are thinned
FEW = 24  # points that are marked each


@dataclass(frozen=True)
class Line:
    """Points, x ascending, and the name that the legend tells; `style` numbers its colour and dashes."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: int


def chart(title: str, lines: Sequence[Line], x: str = "step", bent: bool = True, legend: bool = True) -> Html:
    """A figure: what is drawn, the curves, and the last value of each.

    Args:
        bent: whether the y axis is logarithmic where positive values span a factor of 20.
        legend: whether the lines are named below; else a table on the page does it.
    """
    across = Axis([value for line in lines for value in line.xs], WIDTH)
    values = [value for line in lines for value in line.ys]
    logarithmic = bent and min(values) > 0 and max(values) / min(values) > 20
    up = Axis(values, HEIGHT, logarithmic)
    left = 12 + LETTER * max(len(text) for _, text in up.ticks)
    across.place(left, WIDTH - RIGHT)
    up.place(HEIGHT - BOTTOM, TOP)
    drawing = [*_frame(across, up, left, x), *(_curve(line, across, up) for line in lines)]
    said = "; ".join(f"{line.label} from {number(line.ys[0])} to {number(line.ys[-1])}" for line in lines)
    about = f"{title} against {x}{', logarithmic' if logarithmic else ''}: {said}"
    names = element("ul", *(_legend(line) for line in lines), class_="legend") if legend else Html()
    caption = element("figcaption", title, element("small", " log scale") if logarithmic else "")
    return element("figure", caption, element("svg", *drawing, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=about), names)


class Axis:
    """Where values lie on the page, and which of them are told."""

    def __init__(self, values: Iterable[float], length: int, logarithmic: bool = False):
        self.scale = math.log10 if logarithmic else float
        least, most = min(values := [self.scale(value) for value in values]), max(values)
        if most - least <= 1e-9 * max(abs(least), abs(most)):
            least, most = least - (abs(least) or 1) / 10, most + (abs(most) or 1) / 10
        room = (most - least) / 40
        self.least, self.most = least - room, most + room
        chosen = _decades(least, most) if logarithmic else _round(least, most, 6 if length > 300 else 5)
        self.ticks = list(zip(chosen, short(chosen)))

    def place(self, start: float, end: float) -> None:
        self.start, self.factor = start, (end - start) / (self.most - self.least)

    def __call__(self, value: float) -> float:
        return round(self.start + self.factor * (self.scale(value) - self.least), 1)


def _frame(across: Axis, up: Axis, left: float, x: str) -> Iterable[Html]:
    for value, text in up.ticks:
        yield element("path", d=f"M{left:.1f} {up(value)}H{WIDTH - RIGHT}", class_="grid")
        yield element("text", text, x=round(left - 5, 1), y=round(up(value) + 4, 1), text_anchor="end")
    for value, text in across.ticks:
        yield element("path", d=f"M{across(value)} {HEIGHT - BOTTOM}v4", class_="tick")
        yield element("text", text, x=across(value), y=HEIGHT - BOTTOM + 15, text_anchor="middle")
    yield element("path", d=f"M{left:.1f} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}", class_="tick")
    yield element("text", x, x=round((left + WIDTH - RIGHT) / 2, 1), y=HEIGHT - 2, text_anchor="middle")


def _curve(line: Line, across: Axis, up: Axis) -> Html:
    points = [(across(x), up(y)) for x, y in thinned(list(zip(line.xs, line.ys)))]
    drawn = [element("path", d="M" + "L".join(f"{x} {y}" for x, y in points))] if len(points) > 1 else []
    if len(points) <= FEW:
        told = (element("title", f"{line.label}: {number(y)} at {number(x)}") for x, y in zip(line.xs, line.ys))
        drawn += [element("circle", title, cx=x, cy=y, r=2.5 if len(points) > 1 else 4) for (x, y), title in zip(points, told)]
    return element("g", *drawn, class_=style(line.style))


def _legend(line: Line) -> Html:
    return element("li", swatch(line.style), line.label, " ", element("b", number(line.ys[-1])))


def swatch(number: int) -> Html:
    stroke = element("g", element("path", d="M0 5H20"), class_=style(number))
    return element("svg", stroke, viewBox="0 0 20 10", class_="swatch", aria_hidden="true")


def style(number: int) -> str:
    return f"c{number % COLOURS} d{number // COLOURS % 3}"


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS of them: the least and the greatest of each stretch, so that no spike is lost."""
    if len(points) <= POINTS:
        return points
    stretch = math.ceil(2 * len(points) / POINTS)
    parts = [range(begin, min(begin + stretch, len(points))) for begin in range(0, len(points), stretch)]
    kept = [{min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])} for part in parts]
    return [points[i] for part in kept for i in sorted(part)]


def _round(least: float, most: float, wanted: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (most - least) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [float(f"{i * step:.12g}") for i in range(math.ceil(least / step - 1e-9), math.floor(most / step + 1e-9) + 1)]


def _decades(least: float, most: float) -> list[float]:
    """Powers of ten from 10^least to 10^most, with their double and fivefold where there are few."""
    powers = range(math.floor(least), math.ceil(most) + 1)
    every = math.ceil(len(powers) / 6)
    factors = (1, 2, 5) if most - least < 2.5 else (1,)
    return [value for p in powers if p % every == 0 for f in factors if least <= math.log10(value := float(f"{f}e{p}")) <= most]


def short(values: Sequence[float]) -> list[str]:
    """As few letters as an axis needs: 12k, 0.05, 1e-5."""
    largest = max(map(abs, values), default=0)
    unit, letter = next(((unit, letter) for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if 10 * unit <= largest < 1e5 * unit), (1, ""))
    return [f"{value / unit:g}{letter if value else ''}".replace("e-0", "e-").replace("e+0", "e") for value in values]


def number(value: float) -> str:
    """Four digits; thousands in full."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"
