"""What projections are made of: some samples of a task, their gradients, what enters a layer, bounded least squares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche.api import avalanche_forward
from forgetlab.batch import Batch
from forgetlab.toolbox.fisher import trainable
from forgetlab.training.heads import Head, TaskHeads


def chosen(data: Iterable[Batch], n: int, generator: Generator) -> Batch:
    """n samples of the data, every set equally likely, or all where there are fewer; in one pass."""
    kept, keys = None, torch.empty(0, dtype=torch.float64)
    for batch in data:
        pair = [batch] if kept is None else [kept, batch]
        x, y, task = (torch.cat([getattr(one, column) for one in pair]) for column in ("x", "y", "task"))
        keys = torch.cat([keys, torch.rand(len(batch.y), generator=generator, dtype=torch.float64)])
        rows = keys.argsort(stable=True)[:n]
        kept, keys = Batch(x, y, task).rows(rows.to(y.device)), keys[rows]
    if kept is None:
        raise ValueError("there are no samples to choose from")
    return kept


def true_logit_gradients(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """By parameter, a row for each sample: the gradient of its true class's logit. -> (B, numbers)"""
    names, parameters = zip(*trainable(model), strict=True)
    found: list[list[Tensor]] = []
    for i in torch.arange(len(batch.y), device=batch.y.device).split(1):
        one = batch.rows(i)
        logit = avalanche_forward(model, one.x, one.task)[0, one.y].sum()
        gradients = torch.autograd.grad(logit, parameters, materialize_grads=True)
        found.append([g.flatten() for g in gradients])
    return {name: torch.stack(rows) for name, *rows in zip(names, *found, strict=True)}


@torch.no_grad()
def entering(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """What enters each trained linear or convolutional layer, by its name: a row for each time that its weight acts.

    A sequence has a row for each position, an image one for each patch; heads that belong to one task are left out.
    -> (N, d), d as many as a weight's row has
    """
    found: dict[str, list[Tensor]] = {}
    of_one_task = {head for heads in model.modules() if isinstance(heads, TaskHeads) for head in heads.values()}
    named = ((layer, name) for name, layer in model.named_modules() if layer not in of_one_task)
    names = {layer: name for layer, name in named if _acts_on_rows(layer)}

    def note(layer: nn.Module, entered: tuple[Tensor, ...], _: Tensor) -> None:
        found.setdefault(names[layer], []).append(_rows(layer, entered[0]))

    handles = [layer.register_forward_hook(note) for layer in names]
    try:
        avalanche_forward(model, batch.x, batch.task)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(rows) for name, rows in found.items()}


def _acts_on_rows(layer: Any) -> bool:
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return plain and layer.weight.requires_grad
    return isinstance(layer, nn.Linear | Head) and layer.weight.requires_grad


def _rows(layer: Any, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        cut = {name: getattr(layer, name) for name in ("kernel_size", "dilation", "padding", "stride")}
        patches = F.unfold(x, **cut)  # (B, d, places)
        return patches.transpose(1, 2).flatten(0, 1)
    return x.flatten(0, -2)


def nonnegative(matrix: Tensor, target: Tensor) -> Tensor:
    """The u >= 0 with the least ||matrix u - target||, by SciPy's active set. (m, n), (m,) -> (n,) in float64"""
    from scipy.optimize import nnls

    found, _ = nnls(matrix.double().cpu().numpy(), target.double().cpu().numpy())
    return torch.from_numpy(found)
