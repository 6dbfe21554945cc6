"""What a projection promises."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.mlp import MLP
from forgetlab.batch import Batch
from forgetlab.checks.common import inputs, make, names_no_strange_callback, require
from forgetlab.checks.regularizer import SETTINGS, batch, moved, network
from forgetlab.checks.task_end import looks_in_evaluation_mode
from forgetlab.data.datasets import held_out
from forgetlab.experiment import Budget, Train
from forgetlab.plugins.registry import Plugin
from forgetlab.regularization.keeper import Tensors
from forgetlab.regularization.projection import Projection
from forgetlab.replay.memory import Memory
from forgetlab.seeding import drawn_from, generator
from forgetlab.streams.build import split
from forgetlab.toolbox.teacher import logits
from forgetlab.training.loop import Loop
from forgetlab.training.network import SharedNetwork

ROUNDING = 1e-6  # of a gradient's length; single precision in what is kept


class All(Memory):
    """Keeps all that comes."""

    def store(self, batch: Batch, output: Tensor, generator: torch.Generator) -> None:
        self.slots.write(len(self.slots) + torch.arange(len(batch.y)), batch)


def consolidated(plugin: Plugin, model: SharedNetwork) -> Projection:
    """A projection that went through a task of a few steps."""
    projection: Projection = make(plugin)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    projection.begin(model.train())
    for seed in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(logits(model, batch(seed)), batch(seed).y)
        loss.backward()
        optimizer.step()
        projection.observe(model, loss)
    projection.consolidate(model.eval(), iter([batch(0), batch(1)]))
    projection.tasks = 1
    return projection


def gradient(model: SharedNetwork, one: Batch) -> Tensors:
    """Of the loss on a batch, for every parameter."""
    loss = F.cross_entropy(logits(model.train(), one), one.y)
    found = torch.autograd.grad(loss, [*model.parameters()], materialize_grads=True)
    return dict(zip(dict(model.named_parameters()), found, strict=True))


def references(projection: Projection, g: Tensors, sign: int) -> list[Tensors]:
    """As many as are asked for, which agree or disagree with a gradient."""
    draw, found = generator("checks", "references"), []
    for _ in range({"none": 0, "mixed": 1, "tasks": 3}[projection.references]):
        drawn = {name: torch.randn(t.shape, generator=draw, dtype=t.dtype) for name, t in g.items()}
        across = {name: d - dot(drawn, g) / dot(g, g) * g[name] for name, d in drawn.items()}
        found.append({name: across[name] + sign * g[name] for name in g})
    return found


def dot(a: Tensors, b: Tensors) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def length(a: Tensors) -> float:
    return float(dot(a, a).sqrt())


def between(a: Tensors, b: Tensors) -> float:
    """The length of the difference, as a share of the second's."""
    return length({name: a[name] - b[name] for name in b}) / length(b)


def undoes_nothing(plugin: Plugin) -> None:
    """No reference's loss rises along the step, and a step that raises none stays as it is.

    Where there are no references, what is left lies in a subspace, and what is taken off is at a right angle to it.
    """
    model = network()
    projection = consolidated(plugin, model)
    moved(model)
    g = gradient(model, batch(3))
    against = references(projection, g, -1)
    left = projection.project(g, against)
    other = sorted(left.keys() ^ g.keys())
    require(not other, f"the projection leaves parameters out, or gives others: {', '.join(other)}")
    require(between(left, g) > 1e-3, "nothing is taken off a step that undoes what was learned")
    require(length(left) > 1e-3 * length(g), "nothing is left of the step")
    for reference in against:
        rise = -float(dot(left, reference)) / length(left) / length(reference)
        require(rise < ROUNDING, f"the step raises an old loss: the cosine to its gradient is {-rise:.2g}")
    if against:
        same = projection.project(g, references(projection, g, 1))
        require(between(same, g) == 0, "a step that raises no old loss is changed")
    else:
        require(between(projection.project(left, []), left) < ROUNDING, "what is left is projected again")
        angle = float(dot(left, g)) / length(left) ** 2 - 1
        require(abs(angle) < ROUNDING, "what is taken off is not at a right angle to what is left")


def state_holds_all(plugin: Plugin) -> None:
    """A new object with the restored state projects alike; so does another that learned the same."""
    model = network()
    before = copy.deepcopy(model)
    old, new, again = consolidated(plugin, model), make(plugin), consolidated(plugin, before)
    new.restore(*copy.deepcopy(old.state()))
    require(new.tasks == old.tasks, "the restored state forgot how many tasks there were")
    moved(model)
    g = gradient(model, batch(3))
    ends = [one.project(g, references(old, g, -1)) for one in (old, new, again)]
    require(all(torch.equal(ends[0][name], ends[1][name]) for name in g), "the restored state projects otherwise")
    require(all(torch.equal(ends[0][name], ends[2][name]) for name in g), "the same task gives another projection")


def owns_what_it_keeps(plugin: Plugin) -> None:
    """What is kept of a task does not change when the model goes on, and no gradient is changed in its place."""
    model = network()
    projection = consolidated(plugin, model)
    before = {name: t.clone() for name, t in projection.state()[0].items()}
    moved(model)
    g = gradient(model, batch(3))
    against = references(projection, g, -1)
    given = copy.deepcopy([g, *against])
    projection.project(g, against)
    for name, kept in projection.state()[0].items():
        require(torch.equal(kept, before[name]), f"{name} moves with the model")
    for one, other in zip([g, *against], given, strict=True):
        require(all(torch.equal(one[name], other[name]) for name in g), "a gradient is changed in its place")


def survives_new_classes(plugin: Plugin) -> None:
    """In every setting a head that has grown is projected too, its new rows can learn, and its task can end."""
    for options in SETTINGS:
        model = network(**options)
        projection = consolidated(plugin, model)
        for task, classes in enumerate(([4, 5], [6, 7]), 1):
            old = {name: p.shape for name, p in model.named_parameters()}
            model.open(task, classes)
            projection.begin(model.double())
            one = batch(3, task)._replace(y=classes[0] + torch.arange(12) % 2)
            g = gradient(model, one)
            left = projection.project(g, references(projection, g, -1))
            shapes, asked = ({name: tuple(t.shape) for name, t in one.items()} for one in (left, g))
            other = sorted(name for name in shapes.keys() | asked.keys() if shapes.get(name) != asked.get(name))
            told = f"with {dict(options)} what is left has other shapes than the gradient: {', '.join(other)}"
            require(not other, told)
            require(
                all(bool(t.isfinite().all()) for t in left.values()), f"with {dict(options)} a gradient is not finite"
            )
            grown = [t[-2:] for name, t in left.items() if old.get(name) != t.shape]
            require(grown and all(bool(t.any()) for t in grown), f"with {dict(options)} new classes cannot learn")
            projection.consolidate(model.eval(), iter([one]))
            projection.tasks += 1


def first_task_is_naive(plugin: Plugin) -> None:
    """In every setting the first task ends in the weights of naive training, equal to the bit; the second does not."""
    for options in SETTINGS:
        naive, ours = ends(None, options), ends(make(plugin), options)
        for task, same in enumerate((True, False)):
            equal = all(torch.equal(naive[task][name], ours[task][name]) for name in naive[task])
            told = "the first task is not naive training" if same else "the second task is naive training"
            require(equal == same, f"with {dict(options)} {told}")


def ends(projection: Projection | None, options: Mapping[str, Any]) -> list[Tensors]:
    """The weights after each of two tasks of the same two classes."""
    setting = "task-incremental" if options.get("task_known") else "class-incremental"
    data = held_out(inputs(n=40), torch.arange(40) % 4, "abcd", test_share=0.25, seed=0)
    found: list[Any] = []
    if projection is not None:
        memory = All(capacity=100)
        memory.joins, projection.memory = False, memory
        found = [memory, projection]
    with drawn_from("checks"):
        model = SharedNetwork(MLP((1, 8, 8), hidden=(10,)), **options)
    train = Train(optimizer="sgd", lr=0.1, batch_size=8)
    loop, weights = Loop(model=model, train=train, budget=Budget(epochs=2), plugins=found), []
    for experience in to_benchmark(split(data, setting=setting, n_tasks=2, seed=0)).streams["train"]:
        loop.train(experience, [])
        weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
    return weights


CHECKS = (
    names_no_strange_callback,
    undoes_nothing,
    state_holds_all,
    owns_what_it_keeps,
    survives_new_classes,
    first_task_is_naive,
    looks_in_evaluation_mode,
)
