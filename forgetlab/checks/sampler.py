"""What a sampler promises."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.batch import Batch
from forgetlab.checks.common import CAPACITY, inputs, make, require
from forgetlab.plugins.registry import Plugin
from forgetlab.replay.slots import Slots
from forgetlab.seeding import drawn_from, generator
from forgetlab.toolbox.teacher import logits
from forgetlab.training.network import SharedNetwork

RATE = 0.1
N = 4  # drawn


class Chancy(nn.Sequential):
    """A backbone that a forward pass changes and that draws: BatchNorm and dropout."""

    n_features = 10

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10), nn.Dropout(0.3), nn.ReLU())


def network() -> SharedNetwork:
    """In training, with gradients of a step that is over."""
    with drawn_from("checks"):
        model = SharedNetwork(Chancy())
        model.open(0, range(4))
        F.cross_entropy(logits(model, new()), new().y).backward()
    return model


def new() -> Batch:
    return Batch(inputs(1), torch.arange(12) % 4, torch.zeros(12, dtype=torch.int64))


def kept(n: int = CAPACITY) -> Slots:
    """n samples in more places than these."""
    slots, y = Slots(CAPACITY + 3), torch.arange(n) % 4
    slots.write(torch.arange(n), Batch(inputs(2, n), y, torch.zeros_like(y)))
    return slots


def choice(plugin: Plugin, seed: int = 0, n: int = N, slots: Slots | None = None) -> Tensor:
    return make(plugin).choose(slots or kept(), n, new(), network(), RATE, generator("checks", seed))


def gives_places(plugin: Plugin) -> None:
    """As many places as asked for, each of a sample that is there, none twice while others lie idle."""
    for seed in range(10):
        places = choice(plugin, seed)
        require(places.shape == (N,) and places.dtype == torch.int64, f"{N} places are asked for, not {places}")
        require(
            bool(((places >= 0) & (places < CAPACITY)).all()),
            f"of {CAPACITY} kept samples some places hold no sample: {places.tolist()}",
        )
        require(len(places.unique()) == N, f"a sample is drawn twice while others lie idle: {places.tolist()}")


def gives_what_there_is(plugin: Plugin) -> None:
    """Where fewer are kept than are asked for, at most these."""
    for n in (1, 3):
        places = choice(plugin, n=N, slots=kept(n))
        require(0 < len(places) <= n and bool((places < n).all()), f"of {n} kept samples it draws {places.tolist()}")


def draws_are_repeatable(plugin: Plugin) -> None:
    """Equal generators give equal choices, whatever the global one holds; other generators give others."""
    choices = []
    for state in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(state)
            choices.append(choice(plugin))
    require(torch.equal(*choices), "the sampler draws from a generator that is not the run's")
    few = {tuple(choice(plugin, seed, n=1).tolist()) for seed in range(20)}
    require(len(few) > 1, "the generator is not used")


def leaves_all_as_it_is(plugin: Plugin) -> None:
    """Weights, buffers, gradients, mode, the global generator and what is kept are equal to the bit afterwards."""
    model, slots = network(), kept()
    kind = {name: module.training for name, module in model.named_modules()}
    before = held(model, slots)
    make(plugin).choose(slots, N, new(), model, RATE, generator("checks", 0))
    after = held(model, slots)
    changed = [name for name in before if name in after and not torch.equal(before[name], after[name])]
    changed += sorted(before.keys() ^ after.keys())
    require(not changed, f"a choice changes {', '.join(changed)}")
    require(kind == {name: module.training for name, module in model.named_modules()}, "a choice changes the mode")


def held(model: nn.Module, slots: Slots) -> dict[str, Tensor]:
    gradients = {f"the gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    memory = {f"the memory's {name}": tensor for name, tensor in slots.tensors.items()}
    found = {**model.state_dict(), **gradients, **memory, "the global generator": torch.random.get_rng_state()}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


CHECKS = (gives_places, gives_what_there_is, draws_are_repeatable, leaves_all_as_it_is)
