"""What a rehearsal promises."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from forgetlab.backbones.mlp import MLP
from forgetlab.batch import Batch
from forgetlab.checks.common import inputs, make, require
from forgetlab.checks.task_end import looks_in_evaluation_mode
from forgetlab.plugins.registry import Plugin
from forgetlab.replay.rehearsal import Rehearsal
from forgetlab.seeding import drawn_from, generator
from forgetlab.toolbox.teacher import logits
from forgetlab.training.competing_classes import MASK
from forgetlab.training.network import SharedNetwork

CLASSES = 4
N = 12  # of the new samples, and of the drawn ones


def network() -> SharedNetwork:
    with drawn_from("checks"):
        model = SharedNetwork(MLP((1, 8, 8), hidden=(10,)))
    model.open(0, range(CLASSES))
    return model.double()


def new_and_drawn(rehearsal: Rehearsal, known: int = CLASSES) -> tuple[Batch, Batch]:
    """Two batches; where logits are asked for, the drawn one has those of the first ``known`` classes."""
    y = torch.arange(N) % CLASSES
    new, drawn = (Batch(inputs(seed, N).double(), y, torch.zeros_like(y)) for seed in (0, 1))
    stored = torch.randn(N, CLASSES, generator=generator("checks", 2), dtype=torch.float64)
    stored[:, known:] = MASK
    return new, drawn._replace(extra={"logits": stored}) if rehearsal.keeps_logits else drawn


def loss(rehearsal: Rehearsal, model: nn.Module, new: Batch, drawn: Batch) -> Tensor:
    output = logits(model, Batch(torch.cat([new.x, drawn.x]), torch.cat([new.y, drawn.y]), torch.zeros(2 * N).long()))
    try:
        value = rehearsal.loss(model, new, drawn, output)
    except KeyError as error:
        raise AssertionError(f"the loss needs {error}, which it does not ask for") from error
    require(value.dim() == 0, f"a loss is a finite scalar, not of shape {tuple(value.shape)}")
    require(bool(value.isfinite()), f"a loss is a finite scalar, not {value.item()}")
    return value


def gradient_is_right(plugin: Plugin) -> None:
    """The loss is a finite scalar whose gradient agrees with finite differences in float64."""
    rehearsal, model = make(plugin), network()
    new, drawn = new_and_drawn(rehearsal)
    parameter = next(model.parameters())
    (gradient,) = torch.autograd.grad(loss(rehearsal, model, new, drawn), [parameter])
    for index in gradient.abs().flatten().topk(3).indices.tolist():
        step, values = 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.view(-1)[index] += sign * step
                values.append(loss(rehearsal, model, new, drawn).item())
                parameter.view(-1)[index] -= sign * step
        numeric, exact = (values[0] - values[1]) / (2 * step), gradient.flatten()[index].item()
        require(abs(numeric - exact) <= 1e-4 * abs(exact) + 1e-7, f"gradient {exact}, finite difference {numeric}")


def uses_new_and_drawn(plugin: Plugin) -> None:
    """The loss depends on the answers to the new samples and on those to the drawn ones."""
    rehearsal, model = make(plugin), network()
    new, drawn = new_and_drawn(rehearsal)
    output = torch.randn(2 * N, CLASSES, generator=generator("checks", 3), dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(rehearsal.loss(model, new, drawn, output), [output])
    used = gradient.abs().sum(1) > 0
    require(bool(used[:N].all()), "new samples have no part in the loss")
    require(bool(used[N:].all()), "drawn samples have no part in the loss")


def uses_the_logits_it_asks_for(plugin: Plugin) -> None:
    """Other stored logits give another loss; those of classes that were not there yet have no part in it."""
    rehearsal, model = make(plugin), network()
    if not rehearsal.keeps_logits:
        return
    new, drawn = new_and_drawn(rehearsal)
    other = drawn._replace(extra={"logits": 2 * drawn.extra["logits"]})
    changes = bool(loss(rehearsal, model, new, drawn) != loss(rehearsal, model, new, other))
    require(changes, "the stored logits have no part in the loss")
    new, drawn = new_and_drawn(rehearsal, known=2)
    narrow = drawn._replace(extra={"logits": drawn.extra["logits"][:, :2]})
    masked, cut = loss(rehearsal, model, new, drawn).item(), loss(rehearsal, model, new, narrow).item()
    require(abs(masked - cut) < 1e-9, "classes that were not there when a sample was stored have a part in the loss")


CHECKS = (gradient_is_right, uses_new_and_drawn, uses_the_logits_it_asks_for, looks_in_evaluation_mode)
