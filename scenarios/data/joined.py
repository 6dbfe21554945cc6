"""Several data sets as one, for streams that lead from one set to the next."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn.functional import interpolate, pad

from forgetlab.backbones.tokenizer import PADDING
from forgetlab.data import Dataset, Samples, as_input, dataset
from forgetlab.plugins import Named, OptionError, Spec, register


@register("data", "joined")
def joined(
    parts: Annotated[tuple[Spec, ...], Named("data"), Field(min_length=1)],
    rename: bool = True,  # "digits 3" and "mnist_5k 3" are two classes; otherwise classes of equal name are one
    per_class: PositiveInt | None = None,  # training samples of each class of a set at most, its first ones
    test_per_class: PositiveInt | None = None,
) -> Dataset:
    """One data set after another; the domains are the sets. Small images grow, grey ones become RGB beside RGB ones."""
    sets, names = [dataset(spec) for spec in parts], [spec if isinstance(spec, str) else spec["name"] for spec in parts]
    names = [f"{name} {names[:i].count(name) + 1}" if name in names[:i] else name for i, name in enumerate(names)]
    own = [[f"{name} {c}" if rename else c for c in one.class_names] for name, one in zip(names, sets, strict=True)]
    classes = list(dict.fromkeys(c for group in own for c in group))
    labels, (shape, floats) = [torch.tensor([classes.index(c) for c in group]) for group in own], _common(sets)

    def part(given: list[Samples], limit: int | None) -> tuple[Samples, Tensor]:
        rows = [torch.cat([(s.y == c).nonzero()[:limit, 0] for c in s.y.unique()]).sort().values for s in given]
        x = torch.cat([_brought(s.x[row], shape, floats) for s, row in zip(given, rows, strict=True)])
        y = [label[s.y[row]] for label, s, row in zip(labels, given, rows, strict=True)]
        return Samples(x, torch.cat(y)), torch.cat([torch.full_like(label, i) for i, label in enumerate(y)])

    train, domain = part([one.train for one in sets], per_class)
    test, test_domain = part([one.test for one in sets], test_per_class)
    scores = tuple(dict.fromkeys(score for one in sets for score in one.scores))
    return Dataset(train, test, tuple(classes), tuple(names), (domain, test_domain), sets[0].tokenizer, scores)


def _common(sets: list[Dataset]) -> tuple[tuple[int, ...], bool]:
    """The largest shape, and whether bytes must become floats."""
    inputs = [one.train.x for one in sets]
    shapes, floats = {x.shape[1:] for x in inputs}, len({x.dtype for x in inputs}) > 1
    kinds = {(one.tokenizer, as_input(one.train.x[:1]).dtype) for one in sets}
    images = all(len(shape) == 3 for shape in shapes) and {shape[0] for shape in shapes} in ({1}, {3}, {1, 3})
    unscaled = floats and any(((x < 0) | (x > 1)).any() for x in inputs if x.is_floating_point())
    if len(kinds) > 1 or unscaled or not (images or len(shapes) == 1 or sets[0].tokenizer):
        told = ", ".join(f"{one.tokenizer or one.train.x.dtype} {tuple(one.train.x.shape[1:])}" for one in sets)
        raise OptionError(f"these inputs cannot stand side by side (bytes would be floats in [0, 1]): {told}", "parts")
    return tuple(max(sides) for sides in zip(*shapes, strict=True)), floats


def _brought(x: Tensor, shape: tuple[int, ...], floats: bool) -> Tensor:
    x = as_input(x) if floats else x
    if x.ndim == 4 and x.shape[1:] != shape:
        return interpolate(x.expand(-1, shape[0], -1, -1), shape[1:], mode="bilinear", antialias=True)
    return pad(x, (0, shape[0] - x.shape[1]), value=PADDING) if x.ndim == 2 else x
