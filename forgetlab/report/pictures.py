"""The two pictures that a run is looked at with: the accuracy matrix, and curves over the tasks learned.

Equal input gives equal bytes, and no colour vision is needed to tell the lines and cells apart.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from forgetlab.metrics.intervals import Interval
from forgetlab.results.store import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, FigureBase
    from matplotlib.typing import ColorType

Curve = Sequence[tuple[int, Interval]]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
MARKERS = "osD^vPX*"
MOST_ANNOTATED = 15  # tasks: beyond, numbers in the cells cannot be read
MOST_NAMED = len(COLOURS)  # curves: beyond, a scale of colours says more than a legend
DASH = "\N{EN DASH}"
INK, PALE = "#333333", "#DDDDDD"


def accuracy_heat_map(
    accuracy: Sequence[Row], task_names: Sequence[str], title: str, *, initial: Row | None = None
) -> bytes:
    """A PNG of the accuracy matrix: a row after each task, above them one before training where it is known."""
    from matplotlib import colormaps

    first = 0 if any(value is not None for value in initial or []) else 1
    rows = [initial or [], *accuracy][first:]
    values = [[math.nan if value is None else value for value in row] for row in rows]
    cell = min(0.62, 7 / len(task_names))
    figure = new_figure(2.6 + cell * len(task_names), 1.4 + cell * len(rows))
    axes = figure.add_subplot()
    colours = colormaps["cividis"].with_extremes(bad=PALE)
    image = axes.imshow(values, cmap=colours, vmin=0, vmax=1, aspect="equal", interpolation="nearest")
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)
    axes.spines[:].set_visible(False)
    if len(task_names) <= MOST_ANNOTATED:
        names = [short(name) for name in task_names]
        _name_ticks(axes, names, ["before training", *(f"after {name}" for name in names)][first:][: len(rows)])
        _annotate(axes, values)
    else:
        _number_ticks(axes, first)
    colour_bar(figure, axes, image, "accuracy")
    head(axes, title)
    return as_png(figure)


def forgetting_curves(
    curves: Mapping[str, Curve], title: str, *, quantity: str = "forgetting", each: str = "task"
) -> bytes:
    """A PNG with one line for each name, and its interval over seeds as a band.

    Up to 8 curves are named in a legend; more are taken as a series and coloured along a scale.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(7.4, 4.0)
    axes = figure.add_subplot()
    scale = colour_scale()
    named = len(curves) <= MOST_NAMED
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number] if named else scale(number / (len(curves) - 1))
        _line(axes, curve, colour, MARKERS[number] if named else "", name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("tasks learned", color=INK)
    axes.set_ylabel(quantity, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=PALE, linewidth=0.6)
    axes.tick_params(labelsize=8, labelcolor=INK)
    if not named:
        order = ScalarMappable(Normalize(0, len(curves) - 1), scale)
        colour_bar(figure, axes, order, f"{each} (from 0)")
    elif curves:
        axes.legend(title=each, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    head(axes, title)
    return as_png(figure)


def new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")


def head(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK, wrap=True, parse_math=False)


def as_png(figure: Figure) -> bytes:
    """Without the program's version, so that equal pictures are equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def colour_scale() -> Colormap:
    """viridis without its end, which is too light for a line on white."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap([colormaps["viridis"](shade / 255) for shade in range(226)])


def _line(axes: Axes, curve: Curve, colour: ColorType, marker: str, name: str) -> None:
    axes.plot(
        [step for step, _ in curve],
        [interval.mean for _, interval in curve],
        color=colour,
        marker=marker,
        markersize=4,
        linewidth=1.6,
        label=name,
    )
    band = [(step, mean.low, mean.high) for step, mean in curve if mean.low is not None and mean.high is not None]
    if band:
        axes.fill_between(
            [step for step, _, _ in band],
            [low for _, low, _ in band],
            [high for _, _, high in band],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )


def _name_ticks(axes: Axes, columns: Sequence[str], rows: Sequence[str]) -> None:
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel("accuracy on", color=INK)


def _number_ticks(axes: Axes, first: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda row, _: f"{row + first:g}"))
    axes.set_xlabel("accuracy on task (from 0)", color=INK)
    axes.set_ylabel("tasks learned", color=INK)


def _annotate(axes: Axes, values: Sequence[Sequence[float]]) -> None:
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            unknown = math.isnan(value)
            colour = INK if unknown else "white" if value < 0.55 else "black"
            text = DASH if unknown else f"{value:.2f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)


def colour_bar(figure: FigureBase, axes: Axes, colours: ScalarMappable, label: str) -> Colorbar:
    bar: Any = figure.colorbar(colours, ax=axes, fraction=0.05, pad=0.03, aspect=25)
    bar.set_label(label, color=INK)
    bar.ax.tick_params(labelsize=8, labelcolor=INK)
    bar.outline.set_visible(False)
    return bar


def short(name: str, most: int = 16) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
