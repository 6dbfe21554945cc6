"""What a regime promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from forgetlab.avalanche.api import SupervisedPlugin
from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.mlp import MLP
from forgetlab.checks.common import inputs, make, names_no_strange_callback, require
from forgetlab.checks.regularizer import SETTINGS
from forgetlab.checks.task_end import looks_in_evaluation_mode
from forgetlab.data.datasets import held_out
from forgetlab.experiment import Budget, Train
from forgetlab.plugins.options import OptionError
from forgetlab.plugins.registry import Plugin
from forgetlab.regularization.regime import Regime
from forgetlab.seeding import drawn_from
from forgetlab.streams.build import split
from forgetlab.training.loop import Diverged, Loop
from forgetlab.training.network import SharedNetwork

TASKS = 3
Weights = dict[str, Tensor]


def network(**options: Any) -> SharedNetwork:
    with drawn_from("checks"):
        return SharedNetwork(MLP((1, 8, 8), hidden=(10, 10)), **options)


def stream() -> list[Any]:
    """Tasks of two classes each."""
    data = held_out(inputs(n=20 * TASKS), torch.arange(20 * TASKS) % (2 * TASKS), "abcdef", test_share=0.25, seed=0)
    return to_benchmark(split(data, setting="class-incremental", n_tasks=TASKS, seed=0)).streams["train"]


def trained(model: SharedNetwork, *found: SupervisedPlugin, tasks: range = range(TASKS)) -> Weights:
    """The weights after these tasks; the loop is a new one."""
    train = Train(optimizer="sgd", lr=0.1, batch_size=8)
    loop = Loop(model=model, train=train, budget=Budget(epochs=2), plugins=list(found), first_task=tasks.start)
    experiences = stream()
    for task in tasks:
        loop.train(experiences[task], [])
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def fits(regime: Regime, model: nn.Module) -> bool:
    try:
        regime.check(model)
    except OptionError:
        return False
    return True


def equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def neutral_is_naive(plugin: Plugin) -> None:
    """With its ``neutral`` options tasks end in the weights of naive training, equal to the bit; else in others."""
    naive, neutral = trained(network()), make(plugin).neutral
    require(equal(trained(network(), make(plugin, **neutral)), naive), f"with {dict(neutral)} it is not naive training")
    require(not equal(trained(network(), make(plugin)), naive), "with its defaults it is naive training")


def repeats_itself(plugin: Plugin) -> None:
    """Two runs end in the same weights to the bit, whatever else draws from the global generator between them."""
    first = trained(network(), make(plugin))
    torch.rand(3)
    require(equal(trained(network(), make(plugin)), first), "a second run ends in other weights")


def runs_in_every_setting(plugin: Plugin) -> None:
    """Where it does not refuse the model it trains it, and every weight stays finite."""
    fitting = [options for options in SETTINGS if fits(make(plugin), network(**options))]
    require(fitting, "it refuses every model: in each setting `check` raises an OptionError")
    for options in fitting:
        model = network(**options)
        with suppress(Diverged):
            trained(model, make(plugin))
        finite = all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
        require(finite, f"with {dict(options)} weights are not finite")


def frozen_stays(plugin: Plugin) -> None:
    """What is frozen is after all tasks as it was."""
    model = network()
    frozen = model.backbone.get_submodule("layers.0").requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    trained(model, make(plugin))
    require(equal(frozen.state_dict(), before), "it moves what is frozen")


def state_holds_all(plugin: Plugin) -> None:
    """A new object with the restored state goes on from any task's end as the old one would."""
    whole = trained(network(), make(plugin))
    for after in range(1, TASKS):
        old, new, model = make(plugin), make(plugin), network()
        trained(model, old, tasks=range(after))
        tensors, values = old.state()
        new.restore({name: tensor.clone() for name, tensor in tensors.items()}, dict(values))
        require(equal(trained(model, new, tasks=range(after, TASKS)), whole), "a restored regime goes on otherwise")


def owns_what_it_keeps(plugin: Plugin) -> None:
    """What is kept of a task does not change when the model goes on."""
    model, regime = network(), make(plugin)
    trained(model, regime, tasks=range(1))
    before = {name: tensor.clone() for name, tensor in regime.state()[0].items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    require(equal(regime.state()[0], before), "what it keeps moves with the model")


class Watches(SupervisedPlugin):
    """Whether the model answers twice alike, and carries hooks, between the steps of its training."""

    def __init__(self) -> None:
        super().__init__()
        self.wavers = self.hooked = False

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        x, _, task = strategy.mbatch
        with torch.no_grad():
            self.wavers |= not torch.equal(strategy.model(x, task), strategy.model(x, task))
        self.hooked |= any(m._forward_hooks or m._forward_pre_hooks for m in strategy.model.modules())


def chance_ends_with_the_pass(plugin: Plugin) -> None:
    """Outside of a step's own forward pass the model is bare: a copy made there has no hook, and no chance."""
    watch = Watches()
    trained(network(), make(plugin), watch)
    require(not watch.hooked, "a hook stays on the model after the forward pass of a step")
    require(not watch.wavers, "the model answers at random outside of the forward pass of a step")


CHECKS: tuple[Callable[[Plugin], None], ...] = (
    names_no_strange_callback,
    neutral_is_naive,
    repeats_itself,
    runs_in_every_setting,
    frozen_stays,
    state_holds_all,
    owns_what_it_keeps,
    chance_ends_with_the_pass,
    looks_in_evaluation_mode,
)
