"""What a regularizer promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from forgetlab.batch import Batch
from forgetlab.checks.common import inputs, make, names_no_strange_callback
from forgetlab.data import to_benchmark
from forgetlab.description import Budget, Train
from forgetlab.loop import Loop
from forgetlab.models import MLP
from forgetlab.network import SharedNetwork
from forgetlab.plugins import Plugin
from forgetlab.regularization import Regularizer, logits
from forgetlab.scenario import held_out
from forgetlab.seeding import drawn_from, generator
from forgetlab.streams import split

SETTINGS: tuple[Mapping[str, Any], ...] = (
    {},
    {"loss_classes": "current"},
    {"task_known": True},
    {"task_known": True, "head": "per-task"},
)


def network(**options: Any) -> SharedNetwork:
    """In float64, with one task open."""
    with drawn_from("checks"):
        model = SharedNetwork(MLP((1, 8, 8), hidden=(10,)), **options)
    model.open(0, [0, 1, 2, 3])
    return model.double()


def batch(seed: int = 0, task: int = 0) -> Batch:
    return Batch(inputs(seed).double(), torch.arange(12) % 4, torch.full((12,), task))


def consolidated(plugin: Plugin, model: SharedNetwork) -> Regularizer:
    """A regularizer that went through a task of a few steps."""
    regularizer: Regularizer = make(plugin)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer.begin(model.train())
    for seed in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(logits(model, batch(seed)), batch(seed).y)
        loss.backward()
        optimizer.step()
        regularizer.observe(model, loss)
    regularizer.consolidate(model.eval(), iter([batch(0), batch(1)]))
    regularizer.tasks = 1
    return regularizer


def moved(model: SharedNetwork) -> None:
    """Change every weight a little."""
    draw = generator("checks", "moved")
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=draw, dtype=p.dtype)


def flat_at_its_anchor(plugin: Plugin) -> None:
    """Right after consolidation neither the penalty nor its gradient is more than rounding."""
    model = network()
    regularizer = consolidated(plugin, model)
    value = penalty(regularizer, model)
    gradient = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    assert abs(value.item()) < 1e-9, f"the penalty at its anchor is {value.item():.2g}"
    assert all(g is None or g.abs().max() < 1e-9 for g in gradient), "the penalty pulls away from its anchor"


def gradient_is_right(plugin: Plugin) -> None:
    """The penalty's gradient agrees with finite differences in float64, and is not zero away from the anchor."""
    model = network()
    regularizer = consolidated(plugin, model)
    moved(model)
    parameter = next(model.parameters())
    (gradient,) = torch.autograd.grad(penalty(regularizer, model), [parameter])
    assert gradient.abs().max() > 1e-9, "the penalty does not depend on the weights"
    for index in gradient.abs().flatten().topk(3).indices.tolist():
        step, values = 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.view(-1)[index] += sign * step
                values.append(penalty(regularizer, model).item())
                parameter.view(-1)[index] -= sign * step
        numeric, exact = (values[0] - values[1]) / (2 * step), gradient.flatten()[index].item()
        assert abs(numeric - exact) <= 1e-4 * abs(exact) + 1e-7, f"gradient {exact}, finite difference {numeric}"


def state_holds_all(plugin: Plugin) -> None:
    """A new object with the restored state gives the same penalty."""
    model = network()
    old = consolidated(plugin, model)
    moved(model)
    new: Regularizer = make(plugin)
    new.restore(*old.state())
    assert new.tasks == old.tasks, "the restored state forgot how many tasks there were"
    assert torch.equal(penalty(new, model), penalty(old, model)), "the restored state gives another penalty"


def owns_what_it_keeps(plugin: Plugin) -> None:
    """What is kept of a task does not change when the model goes on."""
    model = network()
    regularizer = consolidated(plugin, model)
    before = {name: t.clone() for name, t in regularizer.state()[0].items()}
    assert before, "nothing is kept of a task"
    moved(model)
    for name, kept in regularizer.state()[0].items():
        assert torch.equal(kept, before[name]), f"{name} moves with the model"


def survives_new_classes(plugin: Plugin) -> None:
    """In every setting a head that has grown since leaves the penalty flat, and asked for by samples of a new task."""
    for options in SETTINGS:
        model = network(**options)
        regularizer = consolidated(plugin, model)
        model.open(1, [4, 5])
        regularizer.begin(model.double())
        value = penalty(regularizer, model, task=1)
        assert abs(value.item()) < 1e-9, f"with {dict(options)} new classes alone give a penalty of {value.item():.2g}"
        moved(model)
        assert penalty(regularizer, model, task=1) > 1e-9, f"with {dict(options)} nothing is penalised"


def strength_zero_is_naive(plugin: Plugin) -> None:
    """With strength 0, two tasks end in the weights of naive training, equal to the bit."""
    data = held_out(inputs(n=40), torch.arange(40) % 4, "abcd", test_share=0.25, seed=0)
    stream = to_benchmark(split(data, setting="class-incremental", n_tasks=2, seed=0)).streams["train"]
    ends = []
    for found in ([], [make(plugin, strength=0.0)]):
        with drawn_from("checks"):
            model = SharedNetwork(MLP((1, 8, 8), hidden=(10,)))
        loop = Loop(model=model, train=Train(batch_size=8), budget=Budget(epochs=2), plugins=found)
        for experience in stream:
            loop.train(experience, [])
        ends.append(model.state_dict())
    naive, ours = ends
    assert all(torch.equal(naive[name], ours[name]) for name in naive), "strength 0 is not naive training"


def penalty(regularizer: Regularizer, model: SharedNetwork, task: int = 0) -> Tensor:
    one = batch(2, task)
    value = regularizer.penalty(model, one, logits(model.train(), one))
    assert value.dim() == 0 and bool(value.isfinite()), "a penalty is a finite scalar"
    return value


CHECKS = (
    names_no_strange_callback,
    flat_at_its_anchor,
    gradient_is_right,
    state_holds_all,
    owns_what_it_keeps,
    survives_new_classes,
    strength_zero_is_naive,
)
