"""What a regularizer promises."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.mlp import MLP
from forgetlab.batch import Batch
from forgetlab.checks.common import inputs, make, names_no_strange_callback, require
from forgetlab.checks.task_end import looks_in_evaluation_mode
from forgetlab.data.datasets import held_out
from forgetlab.experiment import Budget, Train
from forgetlab.plugins.registry import Plugin
from forgetlab.regularization.regularizer import Regularizer
from forgetlab.seeding import drawn_from, generator
from forgetlab.streams.build import split
from forgetlab.toolbox.teacher import logits
from forgetlab.training.loop import Loop
from forgetlab.training.network import SharedNetwork

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


def consolidated(plugin: Plugin, model: SharedNetwork, tasks: int = 1, steps: int = 3) -> Regularizer:
    """A regularizer that went through tasks of a few steps, as the loop calls it."""
    regularizer: Regularizer = make(plugin)
    for _ in range(tasks):
        one_task(regularizer, model, steps)
    return regularizer


def one_task(regularizer: Regularizer, model: SharedNetwork, steps: int = 3) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    regularizer.begin(model.train())
    for seed in range(steps):
        optimizer.zero_grad()
        regularizer.batch = batch(seed)
        loss = F.cross_entropy(logits(model, batch(seed)), batch(seed).y)
        loss.backward()
        optimizer.step()
        regularizer.observe(model, loss)
    regularizer.consolidate(model.eval(), iter([batch(0), batch(1)]))
    regularizer.tasks += 1


def in_the_second_task(plugin: Plugin, model: SharedNetwork) -> Regularizer:
    """At its first step."""
    regularizer = consolidated(plugin, model)
    regularizer.begin(model.train())
    return regularizer


def moved(model: SharedNetwork) -> None:
    """Change every weight that is trained a little."""
    draw = generator("checks", "moved")
    with torch.no_grad():
        for p in trained(model):
            p += 0.1 * torch.randn(p.shape, generator=draw, dtype=p.dtype)


def trained(model: SharedNetwork) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def flat_at_its_anchor(plugin: Plugin) -> None:
    """When the next task begins neither the penalty nor its gradient is more than rounding.

    One that acts from the start has a centre of its own instead: weights where this is so.
    """
    model = network()
    regularizer = in_the_second_task(plugin, model)
    if regularizer.from_start:
        descend(regularizer, model)
    value = penalty(regularizer, model)
    gradient = torch.autograd.grad(value, trained(model), allow_unused=True)
    require(abs(value.item()) < 1e-9, f"the penalty at its anchor is {value.item():.2g}")
    pull = max((g.abs().max().item() for g in gradient if g is not None), default=0.0)
    require(pull < 1e-9, f"the penalty pulls away from its anchor, with a gradient of {pull:.2g}")


def descend(regularizer: Regularizer, model: SharedNetwork) -> None:
    """Go to where the penalty, which is smooth, is least."""
    optimizer = torch.optim.LBFGS(trained(model), max_iter=100, tolerance_grad=1e-12, tolerance_change=0.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = penalty(regularizer, model)
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]


def keeps_its_centre(plugin: Plugin) -> None:
    """One that acts from the start asks for the same in every task: a task's end does not move its centre."""
    model = network()
    regularizer = make(plugin)
    if not regularizer.from_start:
        return
    regularizer.begin(model.train())
    moved(model)
    before = penalty(regularizer, model).item()
    regularizer.consolidate(model.eval(), iter([batch(0)]))
    regularizer.tasks += 1
    regularizer.begin(model.train())
    require(before > 0, "nothing is penalised away from the centre")
    after = penalty(regularizer, model).item()
    require(after == before, f"the centre moves with the tasks: the same weights cost {before:.3g}, then {after:.3g}")


def gradient_is_right(plugin: Plugin) -> None:
    """The penalty's gradient agrees with finite differences in float64, and is not zero away from the anchor."""
    model = network()
    regularizer = in_the_second_task(plugin, model)
    moved(model)
    parameter = next(model.parameters())
    (gradient,) = torch.autograd.grad(penalty(regularizer, model), [parameter])
    require(gradient.abs().max() > 1e-9, "the penalty does not depend on the weights")
    for index in gradient.abs().flatten().topk(3).indices.tolist():
        step, values = 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.view(-1)[index] += sign * step
                values.append(penalty(regularizer, model).item())
                parameter.view(-1)[index] -= sign * step
        numeric, exact = (values[0] - values[1]) / (2 * step), gradient.flatten()[index].item()
        require(abs(numeric - exact) <= 1e-4 * abs(exact) + 1e-7, f"gradient {exact}, finite difference {numeric}")


def state_holds_all(plugin: Plugin) -> None:
    """A new object with the restored state gives the same penalty."""
    model = network()
    old = consolidated(plugin, model)
    new: Regularizer = make(plugin)
    new.restore(*copy.deepcopy(old.state()))
    for regularizer in (old, new):
        regularizer.begin(model.train())
    moved(model)
    told = f"the restored state forgot how many tasks there were: {new.tasks}, not {old.tasks}"
    require(new.tasks == old.tasks, told)
    require(torch.equal(penalty(new, model), penalty(old, model)), "the restored state gives another penalty")


def owns_what_it_keeps(plugin: Plugin) -> None:
    """What is kept of a task does not change when the model goes on."""
    model = network()
    regularizer = consolidated(plugin, model)
    before = {name: t.clone() for name, t in regularizer.state()[0].items()}
    require(before, "nothing is kept of a task")
    moved(model)
    for name, kept in regularizer.state()[0].items():
        require(torch.equal(kept, before[name]), f"{name} moves with the model")


def survives_new_classes(plugin: Plugin) -> None:
    """In every setting a head that has grown since leaves the penalty flat, and asked for by samples of a new task.

    One that acts from the start may hold new rows too; its pull on what there was stays as it is.
    """
    for options in SETTINGS:
        model = network(**options)
        regularizer = consolidated(plugin, model)
        old = list(model.backbone.parameters())
        regularizer.begin(model.train())
        before = torch.autograd.grad(penalty(regularizer, model), old, allow_unused=True)
        model.open(1, [4, 5])
        regularizer.begin(model.double())
        value = penalty(regularizer, model, task=1)
        after = torch.autograd.grad(value, old, allow_unused=True, retain_graph=True)
        if regularizer.from_start:
            same = all(a is b is None or torch.equal(a, b) for a, b in zip(after, before, strict=True))
            require(same, f"with {dict(options)} new classes change the pull on old weights")
        else:
            require(
                abs(value.item()) < 1e-9, f"with {dict(options)} new classes alone give a penalty of {value.item():.2g}"
            )
        moved(model)
        require(penalty(regularizer, model, task=1) > 1e-9, f"with {dict(options)} nothing is penalised")


def does_not_grow(plugin: Plugin) -> None:
    """After six tasks of the same classes it keeps as much as after two."""
    kept = [consolidated(plugin, network(), tasks, steps=1).state()[0] for tasks in (2, 6)]
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in kept]
    require(shapes[0] == shapes[1], f"{len(kept[1])} tensors after 6 tasks, {len(kept[0])} after 2")


def leaves_frozen_parameters_alone(plugin: Plugin) -> None:
    """Where a part of the model is frozen, that part stays, and the rest is held as before."""
    model = network()
    frozen = model.get_parameter("backbone.layers.0.0.weight").requires_grad_(False)
    before = frozen.clone()
    regularizer = in_the_second_task(plugin, model)
    moved(model)
    value = penalty(regularizer, model)
    require(value > 1e-9, "nothing is penalised")
    value.backward()
    one_task(regularizer, model)
    require(torch.equal(frozen, before), "frozen weights moved")
    require(frozen.grad is None, "frozen weights got a gradient")


def leaves_the_global_generator_alone(plugin: Plugin) -> None:
    """What it draws is drawn from a generator of its own, so that the model and its data stay as they are."""
    model, state = network(), torch.get_rng_state()
    penalty(in_the_second_task(plugin, model), model)
    require(torch.equal(torch.get_rng_state(), state), "it draws from the global generator")


def goes_on_from_its_state(plugin: Plugin) -> None:
    """A run in which a new object with the restored state takes over for the third task ends in the same weights."""
    ends = []
    for stops in (False, True):
        loop, tasks = training(regularizer := make(plugin))
        for i, experience in enumerate(tasks):
            if stops and i == 2:
                new: Regularizer = make(plugin)
                new.restore(*copy.deepcopy(regularizer.state()))
                loop.plugins[loop.plugins.index(regularizer)] = new
            loop.train(experience, [])
        ends.append(loop.model.state_dict())
    require(all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0]), "a restored one goes on otherwise")


def strength_zero_is_naive(plugin: Plugin) -> None:
    """With strength 0, three tasks end in the weights of naive training, equal to the bit."""
    ends = []
    for found in ([], [make(plugin, strength=0.0)]):
        loop, tasks = training(*found)
        for experience in tasks:
            loop.train(experience, [])
        ends.append(loop.model.state_dict())
    naive, ours = ends
    require(all(torch.equal(naive[name], ours[name]) for name in naive), "strength 0 is not naive training")


def training(*found: Regularizer) -> tuple[Loop, Any]:
    """A loop, and the three tasks it is to be trained on."""
    data = held_out(inputs(n=60), torch.arange(60) % 6, "abcdef", test_share=0.25, seed=0)
    with drawn_from("checks"):
        model = SharedNetwork(MLP((1, 8, 8), hidden=(10,)))
    loop = Loop(model=model, train=Train(batch_size=8), budget=Budget(epochs=2), plugins=found)
    return loop, to_benchmark(split(data, setting="class-incremental", n_tasks=3, seed=0)).streams["train"]


def penalty(regularizer: Regularizer, model: SharedNetwork, task: int = 0) -> Tensor:
    one = batch(2, task)
    value = regularizer.penalty(model, one, logits(model.train(), one))
    require(value.dim() == 0, f"a penalty is a finite scalar, not of shape {tuple(value.shape)}")
    require(bool(value.isfinite()), f"a penalty is a finite scalar, not {value.item()}")
    return value


CHECKS = (
    names_no_strange_callback,
    flat_at_its_anchor,
    keeps_its_centre,
    gradient_is_right,
    state_holds_all,
    owns_what_it_keeps,
    survives_new_classes,
    does_not_grow,
    leaves_frozen_parameters_alone,
    leaves_the_global_generator_alone,
    goes_on_from_its_state,
    strength_zero_is_naive,
    looks_in_evaluation_mode,
)
