"""A stream before anything is trained on it: a table of its tasks, and a picture of samples and of what comes when.

Equal streams give equal bytes, and no colour vision is needed to tell the classes apart.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from forgetlab.report import pictures
from forgetlab.report.pictures import COLOURS, INK, head, short
from forgetlab.report.stream_samples import MOST_NAMED, panel, spread, task_names
from forgetlab.streams.scenario import Scenario, Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import FigureBase
    from rich.table import Table

WIDTH = 8.6  # inches of the picture
COURSE = 3.1  # inches of what comes when
MOST_SHOWN = 10  # tasks of which samples are shown
MOST_LABELLED = 20  # classes: beyond, they are numbered


def task_table(scenario: Scenario, width: int = 80) -> Table:
    """One row per task: how many rows it has, and its classes by name, cut to the width."""
    from rich.table import Table as RichTable

    validated = any(task.validation is not None for task in scenario.tasks)
    headers = ["training", *(["validation"] if validated else []), "test"]
    rows = []
    for i, task in enumerate(scenario.tasks):
        parts = [task.train, *([task.validation] if validated else []), task.test]
        counts = [f"{0 if part is None else len(part.y):,}" for part in parts]
        rows.append([str(i), short(task.name, 20), *counts, _classes(scenario, task)])
    shown = RichTable(show_edge=False, pad_edge=False)
    for header in ("", "task", *headers, "classes"):
        shown.add_column(header, justify="right" if header in ("", *headers) else "left", no_wrap=True)
    taken = [max(map(len, column)) for column in zip(["", "task", *headers], *(row[:-1] for row in rows), strict=True)]
    for row in rows:
        cells = [*row[:-1], short(row[-1], max(width - sum(taken) - 3 * len(taken), 12))]
        shown.add_row(*map(_plain, cells))
    return shown


def stream_facts(scenario: Scenario, setting: str | None = None) -> list[str]:
    """What kind of stream it is, what the learner is told, and what a row is."""
    n, tasks = scenario.n_classes, scenario.tasks
    x = tasks[0].train.x
    size = math.prod(x.shape[1:]) * x.dtype.itemsize
    rows = sum(len(part.y) for task in tasks for part in (task.train, task.validation, task.test) if part is not None)
    told_in_training = "where a task ends and which it is" if scenario.boundaries_known else "nothing about tasks"
    return [
        f"Stream: {setting or _setting(scenario)}; classes: {n}, tasks: {len(tasks)}",
        f"Told in training: {told_in_training}",
        f"Told at test: {'the task of each sample' if scenario.task_known_at_test else 'nothing about tasks'}",
        f"Passes: {'one, every sample comes by once' if scenario.one_pass else 'as the budget says'}",
        f"A row: {' x '.join(map(str, x.shape[1:])) or 'one number'} ({str(x.dtype).removeprefix('torch.')}), "
        f"{size:,} bytes; {size * rows / 2**20:,.1f} MiB in {rows:,} rows",
    ]


def _classes(scenario: Scenario, task: Task) -> str:
    """What a task is tested on, and what is trained on beside it."""
    beside = [scenario.class_names[label] for label in task.classes if label not in task.tested]
    names = [scenario.class_names[label] for label in task.tested]
    return f"{len(names)}: {', '.join(names)}{f' (training: {len(beside)} more)' if beside else ''}"


def _setting(scenario: Scenario) -> str:
    if scenario.task_known_at_test:
        return "task-incremental"
    same = len({task.tested for task in scenario.tasks}) == 1
    return "the same labels in every task" if same else "class-incremental"


def _plain(name: str) -> Any:
    """Not read as rich's markup."""
    from rich.text import Text

    return Text(name)


def picture(scenario: Scenario, title: str) -> bytes:
    """A PNG: samples of the tasks above, and below what is trained on when."""
    shown = spread(len(scenario.tasks), MOST_SHOWN)
    above = panel(scenario, shown)
    heights = [COURSE] if above is None else [above[0], COURSE]
    figure = pictures.new_figure(WIDTH, sum(heights) + 0.3)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK, parse_math=False)
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat)
    if above is not None:
        above[1](parts[0])
    _course(parts[-1], scenario)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # letters that the font has not
        return pictures.as_png(figure)


def _course(part: FigureBase, scenario: Scenario) -> None:
    """Shares of the classes in what is trained on, task after task, each as wide as it has rows."""
    from matplotlib.collections import PolyCollection

    axes = part.add_subplot()
    counts = torch.stack([task.train.y.bincount(minlength=scenario.n_classes) for task in scenario.tasks])
    edges = [0, *counts.sum(1).cumsum(0).tolist()]
    tops = (counts / counts.sum(1, keepdim=True)).cumsum(1)
    colours, cells, shades = _class_colours(scenario.n_classes), [], []
    for i, label in counts.nonzero().tolist():
        low, high = float(tops[i, label - 1]) if label else 0.0, float(tops[i, label])
        cells.append([(edges[i], low), (edges[i + 1], low), (edges[i + 1], high), (edges[i], high)])
        shades.append(colours(label))
    line = 0.4 if max(len(scenario.tasks), scenario.n_classes) <= MOST_LABELLED else 0
    axes.add_collection(PolyCollection(cells, facecolors=shades, edgecolors="white", linewidths=line))
    axes.set(xlim=(0, edges[-1]), ylim=(0, 1))
    axes.set_ylabel("share of each class", color=INK)
    axes.set_xlabel("training samples seen in one pass", color=INK)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(labelsize=8, labelcolor=INK)
    axes.spines[:].set_visible(False)
    _borders(axes, scenario, edges)
    if scenario.n_classes == 2 and len(scenario.tasks) <= MOST_NAMED:
        for left, right, share in zip(edges, edges[1:], (1 - tops[:, 0]).tolist(), strict=False):
            axes.text(
                (left + right) / 2, 0.97, f"{share:.0%}", ha="center", va="top", fontsize=7, color="white", clip_on=True
            )
    _class_bar(part, axes, scenario, colours)
    borders = "" if scenario.boundaries_known else "; the borders (dotted) are not told"
    head(axes, f"What is trained on, in order{borders}")


def _borders(axes: Axes, scenario: Scenario, edges: Sequence[int]) -> None:
    """A line between tasks, and their names above."""
    style = "-" if scenario.boundaries_known else ":"
    n = len(scenario.tasks)
    axes.vlines(edges[1:-1], 0, 1, colors=INK, linestyles=style, linewidth=1.2 if n <= MOST_NAMED else 0.3)
    above = axes.secondary_xaxis("top")
    above.tick_params(length=0, labelsize=7, labelcolor=INK)
    above.spines[:].set_visible(False)
    named = range(n) if n <= MOST_NAMED else spread(n, 8)
    widths = {i: (edges[i + 1] - edges[i]) / edges[-1] * WIDTH if n <= MOST_NAMED else 1.0 for i in named}  # inches
    wide = [i for i in named if widths[i] > 0.2]
    names = task_names(scenario, wide, 14)
    slanted = any(len(name) * 0.08 > widths[i] for i, name in zip(wide, names, strict=True))
    slant: dict[str, Any] = {"rotation": 25, "ha": "left", "rotation_mode": "anchor"} if slanted else {}
    above.set_xticks([(edges[i] + edges[i + 1]) / 2 for i in wide], names, parse_math=False, **slant)


def _class_bar(part: FigureBase, axes: Axes, scenario: Scenario, colours: ListedColormap) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    n = scenario.n_classes
    bar = pictures.colour_bar(part, axes, ScalarMappable(Normalize(-0.5, n - 0.5), colours), "")
    labels = range(n) if n <= MOST_LABELLED else spread(n, 8)
    names = [short(scenario.class_names[label]) if n <= MOST_LABELLED else f"class {label}" for label in labels]
    bar.set_ticks(list(labels), labels=names, parse_math=False)
    bar.ax.tick_params(length=0, labelsize=8 if n <= 12 else 6)


def _class_colours(n: int) -> ListedColormap:
    """A colour for each class; many take a scale from the first that appears to the last."""
    from matplotlib.colors import ListedColormap

    scale = pictures.colour_scale()
    return ListedColormap(COLOURS[:n] if n <= len(COLOURS) else [scale(i / (n - 1)) for i in range(n)])
