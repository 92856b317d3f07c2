"""How the figures of the claims look: one size, one palette, a white ground, lines named where they end.

A claim test hands `claim` a function that draws what it measured; it is called where ZOO_RECORD is set, and no test depends on it:

    def draw():
        figure, (left, right) = panels("A deeper plain net trains worse", 2)
        curves(left, {"20 layers": (epochs, losses), "56 layers": (epochs, others)}, xlabel="epoch", ylabel="training loss (nats)")
        ...
        return figure
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"  # Okabe and Ito: for colour-blind readers, too
DPI, OFFSET = 120, 9  # points between a line's end and its name
GREY, PALE = "#595959", "#D9D9D9"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY)
STYLE = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "lines.linewidth": 1.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
    "xtick.labelcolor": "black", "ytick.labelcolor": "black", "axes.xmargin": 0.02, "legend.frameon": False,
}  # fmt: skip


def panels(title: str, count: int = 1, height: float = 3.2, **options):
    """A figure 6 inches wide and its axes, side by side; options are those of `Figure.subplots`."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=(6, height), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.06, w_pad=0.05)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    axes = figure.subplots(1, count, **options)
    return figure, axes


def save(figure, file: Path) -> None:
    """As a PNG, 720 pixels wide, in 128 colours."""
    from PIL import Image

    figure.draw_without_rendering()  # limits and places are final from here on
    for axis in figure.axes:
        spread(axis)
        plain_numbers(axis)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, facecolor="white")
    Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)


def spread(axis) -> None:
    """Pushes the names of lines apart where they would overlap."""
    names = sorted((text for text in axis.texts if text.get_gid() == "end"), key=lambda text: text.xy[1])
    sizes = [text.get_window_extent().height / axis.bbox.height + 0.01 for text in names]
    low, highest = 0.0, 1.05
    for i, (text, size) in enumerate(zip(names, sizes)):
        end = axis.transAxes.inverted().transform(axis.transData.transform((1, text.xy[1])))[1]
        height = min(max(end, low + size / 2 if i else end), highest - sum(sizes[i + 1 :]) - size / 2)  # leaves room for those above
        text.set_position((OFFSET, (height - end) * axis.bbox.height * 72 / DPI))
        low = height + size / 2


def plain_numbers(axis) -> None:
    """0.01 and 100 at the ticks of a logarithmic axis, instead of powers of ten, where it spans ordinary numbers."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    for side in (axis.xaxis, axis.yaxis):
        low, high = side.get_view_interval()
        if side.get_scale() == "log" and low > 1e-4 and high < 1e6:
            side.set_major_formatter(StrMethodFormatter("{x:,g}"))
            if high / low > 10:
                side.set_minor_formatter(NullFormatter())


def smooth(values: Sequence[float], width: int) -> Tensor:
    """Means of `width` values that follow one another, each value beginning one; shorter by width - 1."""
    return torch.as_tensor(values, dtype=torch.double).unfold(0, width, 1).mean(1)


def curves(axis, lines: Mapping[str, tuple[Iterable, Iterable]], colours: Sequence[str] = COLOURS, **options) -> None:
    """A line each, named at its end in its colour; few points are marked. Options are those of `Axes.set`: xlabel, ylabel, yscale ..."""
    for (name, (x, y)), colour in zip(lines.items(), colours):
        x, y = (torch.as_tensor(values, dtype=torch.double).numpy() for values in (x, y))
        axis.plot(x, y, color=colour, marker="o" if len(x) < 30 else None, markersize=3.5)
        axis.annotate(name, (x[-1], y[-1]), color=colour, fontsize=8.5, va="center", gid="end", annotation_clip=False,
                      xytext=(OFFSET, 0), textcoords="offset points")  # fmt: skip
    axis.set(**options)


def level(axis, y: float, name: str, x: float = 0.99, ha: str = "right", va: str = "bottom") -> None:
    """A dashed horizontal line with its name on it, `x` being a share of the width."""
    axis.axhline(y, color=GREY, linestyle=(0, (4, 3)), linewidth=1, zorder=0)
    axis.annotate(name, (x, y), xycoords=axis.get_yaxis_transform(), xytext=(0, 2 if va == "bottom" else -3), textcoords="offset points",
                  ha=ha, va=va, color=GREY, fontsize=8)  # fmt: skip


def mark(axis, x: float, name: str) -> None:
    """A dotted vertical line with its name above it."""
    axis.axvline(x, color=GREY, linestyle=":", linewidth=1)
    axis.text(x, 1.01, name, transform=axis.get_xaxis_transform(), ha="center", va="bottom", color=GREY, fontsize=8)


def points(axis, places: Mapping[str, tuple[float, float]], colours: Sequence[str], ha: str = "center", **options) -> None:
    """A point each, named above it, or with `ha` "left" or "right" on the other side of it."""
    apart = {"center": (0, 6), "left": (6, -3), "right": (-6, 2)}[ha]
    for (name, (x, y)), colour in zip(places.items(), colours):
        axis.plot(x, y, "o", color=colour, clip_on=False)
        axis.annotate(name, (x, y), color=colour, fontsize=8.5, xytext=apart, textcoords="offset points", ha=ha)
    axis.set(**options)


def bars(axis, values: Mapping[str, float], form: str = "{:.1f}", colours: Sequence[str] = COLOURS, **options) -> None:
    """A horizontal bar each, the first on top, with its name on the left and its number at the end."""
    drawn = axis.barh(list(values), list(values.values()), color=list(colours)[: len(values)], height=0.6)
    axis.bar_label(drawn, [form.format(value) for value in values.values()], padding=3, fontsize=8.5)
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)
    axis.set(**options)


def images(axis, rows: Sequence[Tensor], names: Sequence[str] = ()) -> None:
    """Rows of images (N, H, W) in [0, 1], dark where the value is 1; their names on the left."""
    size = rows[0].shape[-1]
    gap = max(1, size // 8)
    sheet = torch.cat([torch.cat(list(F.pad(row.clamp(0, 1).double(), (0, gap, 0, gap))), 1) for row in rows])
    axis.imshow(sheet[:-gap, :-gap].numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    bare(axis)
    axis.set_yticks([i * (size + gap) + (size - 1) / 2 for i in range(len(names))], list(names))


def bare(axis) -> None:
    """No frame; numbers, where there are to be some, without their marks."""
    axis.spines[:].set_visible(False)
    axis.set(xticks=[], yticks=[])
    axis.tick_params(length=0)
