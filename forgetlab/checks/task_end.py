"""What is learned when a task has ended is learned of the network as it answers at test.

A keeper, a memory and a rehearsal look at the network once more when a task has ended. With dropout at work they would
keep chance, and BatchNorm's statistics would move with data that nobody trains on. The contracts set evaluation mode
around these calls; a plug-in that takes a contract's hook over, or sets a mode itself, is found here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forgetlab.avalanche.api import SupervisedPlugin
from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.mlp import MLP
from forgetlab.batch import Batch
from forgetlab.checks.common import CAPACITY, inputs, make
from forgetlab.data.datasets import held_out
from forgetlab.experiment import Budget, Train
from forgetlab.plugins.registry import Plugin, parameters
from forgetlab.regularization.keeper import Keeper
from forgetlab.regularization.projection import Projection
from forgetlab.replay.memory import Memory
from forgetlab.seeding import drawn_from
from forgetlab.streams.build import split
from forgetlab.training.loop import Loop
from forgetlab.training.network import SharedNetwork

TASKS = 3
CLASSES = 2  # of a task
SAMPLES = 20  # of a task, half of them for training


class KeepsAll(Memory):
    """Keeps all that comes by: what a projection or a rehearsal stands beside here."""

    def store(self, batch: Batch, output: Tensor, generator: torch.Generator) -> None:
        self.slots.write(len(self.slots) + torch.arange(len(batch.y)), batch)


def network() -> SharedNetwork:
    """Two hidden layers, each with BatchNorm and dropout."""
    with drawn_from("checks"):
        backbone = MLP((1, 8, 8), hidden=(10, 10))
        for i, layer in enumerate(backbone.layers):
            backbone.layers[i] = nn.Sequential(*layer.children(), nn.BatchNorm1d(10), nn.Dropout(0.5))
        return SharedNetwork(backbone)


class Look(SupervisedPlugin):
    """Notes what the network is like when a task has ended, and watches it from then on; stands first."""

    def __init__(self, watched: SharedNetwork) -> None:
        super().__init__()
        self.watched = watched
        self.mode = True
        self.statistics: dict[str, Tensor] = {}
        self.handles: list[Any] = []

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.mode = self.watched.training
        self.statistics = {name: tensor.clone() for name, tensor in self.watched.named_buffers()}
        chancy = [layer for layer in self.watched.modules() if isinstance(layer, nn.BatchNorm1d | nn.Dropout)]
        self.handles = [layer.register_forward_pre_hook(refuse_training_mode) for layer in chancy]


def refuse_training_mode(layer: nn.Module, entered: Any) -> None:
    """A hook before a layer's forward pass."""
    if layer.training:
        raise AssertionError(
            f"when a task has ended, the network is asked in training mode: its {type(layer).__name__} is at work"
        )


class SecondLook(SupervisedPlugin):
    """Holds the network against what it was at the first look; stands last."""

    def __init__(self, first: Look) -> None:
        super().__init__()
        self.first = first

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        first = self.first
        for handle in first.handles:
            handle.remove()
        if first.watched.training != first.mode:
            raise AssertionError("when a task has ended, the network's mode is not set back")
        for name, tensor in first.watched.named_buffers():
            if not torch.equal(tensor, first.statistics[name]):
                raise AssertionError(f"when a task has ended, {name} is moved by samples that nobody trains on")


def train(*found: SupervisedPlugin) -> None:
    """Train three tasks with these, watched at each task's end."""
    model = network()
    first = Look(model)
    rows = TASKS * SAMPLES
    data = held_out(inputs(n=rows), torch.arange(rows) % (TASKS * CLASSES), "abcdef", test_share=0.5, seed=0)
    loop = Loop(
        model=model,
        train=Train(optimizer="sgd", lr=0.01, batch_size=5),
        budget=Budget(epochs=1),
        plugins=[first, *found, SecondLook(first)],
    )
    for experience in to_benchmark(split(data, setting="class-incremental", n_tasks=TASKS, seed=0)).streams["train"]:
        loop.train(experience, [])


def looks_in_evaluation_mode(plugin: Plugin) -> None:
    """What it learns when a task has ended it learns in evaluation mode, and then the mode is as it was."""
    train(*_with_what_it_needs(plugin))


def _with_what_it_needs(plugin: Plugin) -> Sequence[SupervisedPlugin]:
    """The plug-in as the loop is given it, with a memory where it stands beside one."""
    if plugin.kind == "rehearsal":
        memory = KeepsAll(CAPACITY * TASKS)
        memory.rehearsal = make(plugin)
        return [memory]
    taken = {option.name for option in parameters(plugin)}
    small = {name: value for name, value in {"capacity": CAPACITY, "steps": 3}.items() if name in taken}
    made: Keeper | Memory = make(plugin, **small)
    if isinstance(made, Projection) and made.references != "none":
        memory = KeepsAll(CAPACITY * TASKS)
        memory.joins, made.memory = False, memory
        return [memory, made]
    return [made]
