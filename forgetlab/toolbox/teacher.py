"""A model as methods ask it: as it is, under other tensors, or as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from forgetlab.avalanche.api import MultiTaskModule, avalanche_forward
from forgetlab.batch import UNKNOWN, Batch
from forgetlab.training.competing_classes import hides_seen_classes, is_told_the_task


def logits(model: nn.Module, batch: Batch, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
    """The model's answer, with the tasks where the model takes them. -> (B, classes)

    With ``tensors``, parameters and buffers by name, as if it had these; what it would write to them goes there too.
    """
    if tensors is None:
        return avalanche_forward(model, batch.x, batch.task)
    given = (batch.x, batch.task) if isinstance(model, MultiTaskModule) else (batch.x,)
    return functional_call(model, dict(tensors), given)


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Inside, no layer draws or counts (dropout, BatchNorm), whatever the mode in which the network itself answers."""
    modes = [(layer, layer.training) for layer in model.modules() if layer is not model]
    for layer, _ in modes:
        layer.training = False
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


def features(model: nn.Module, x: Tensor) -> Tensor:
    """What the head stands on. (B, ...) -> (B, d)

    Raises:
        TypeError: the model does not say what its backbone is.
    """
    backbone: Any = getattr(model, "backbone", None)
    if backbone is None:
        raise TypeError(f"this method looks at features: give the {type(model).__name__} a 'backbone' that makes them")
    return backbone(x)


def answers(model: nn.Module, x: Tensor, output: Tensor | None = None) -> dict[int, Tensor]:
    """The logits by the task that is asked about, or {UNKNOWN: logits} where no task is told; one backbone pass.

    No class that a task had is masked in its answer. ``output`` is what the model gave for these samples in training;
    it is taken where it is the answer already.
    """
    if isinstance(model, MultiTaskModule) and is_told_the_task(model):
        return avalanche_forward(model, x, None)
    if output is not None and not hides_seen_classes(model):
        return {UNKNOWN: output}
    return {UNKNOWN: avalanche_forward(model, x, torch.full((len(x),), UNKNOWN, device=x.device))}


def frozen_copy(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model as it was when it had these tensors, in evaluation mode, without gradients."""
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    own = frozen.state_dict()
    frozen.load_state_dict({**own, **{name: padded(t, own[name]) for name, t in tensors.items()}})
    return frozen


def changing(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes, by name: all but frozen parameters. They are the model's own."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def padded(tensor: Tensor, like: Tensor) -> Tensor:
    """Zeros for the rows by which a parameter has grown since; the rows that there were stay first."""
    if tensor.shape == like.shape:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(len(like) - len(tensor), *tensor.shape[1:])])


def gradient(model: nn.Module, batch: Batch) -> Tensor:
    """Of the mean cross-entropy over a batch, for all that is trained; the model's own gradients stay. -> (P,)"""
    trained = [p for p in model.parameters() if p.requires_grad]
    loss = F.cross_entropy(logits(model, batch), batch.y)
    found = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
    return torch.cat([one.flatten() for one in found])
