"""What a merger promises."""

from __future__ import annotations

import torch
from torch import Tensor

from forgetlab.checks.common import make, require
from forgetlab.isolation.merger import Merger
from forgetlab.plugins.registry import Plugin
from forgetlab.seeding import generator

SHAPES = {"first.weight": (4, 6), "first.bias": (4,), "second.weight": (5, 4)}


def tasks() -> list[dict[str, Tensor]]:
    """Three tasks' changes; the first and the second leave a place alone."""
    draw = generator("checks", 9)
    changes = [{place: torch.randn(shape, generator=draw) for place, shape in SHAPES.items()} for _ in range(3)]
    del changes[1]["first.bias"], changes[0]["second.weight"]
    return changes


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[place], other[place]) for place in one)


def gives_one_change(plugin: Plugin) -> None:
    """A tensor of the right shape and type for places that tasks changed, also where some task did not."""
    changes = tasks()
    for n in (1, 2, 3):
        merger: Merger = make(plugin)
        merged = merger.merge(changes[:n])
        there = {place for one in changes[:n] for place in one}
        require(merged, f"nothing is merged of the changes of {n} tasks")
        strange = sorted(merged.keys() - there)
        require(not strange, f"no task changed what is merged: {', '.join(strange)}")
        for place, change in merged.items():
            shape = tuple(change.shape)
            require(shape == SHAPES[place], f"the change of {place} has another shape: {shape}, not {SHAPES[place]}")
            require(change.dtype == torch.float32, f"the change of {place} has another type: {change.dtype}")
            require(bool(torch.isfinite(change).all()), f"the change of {place} is not finite")


def nothing_becomes_nothing(plugin: Plugin) -> None:
    """Where no task changed anything, nothing is changed: the starting weights answer."""
    still = [{place: torch.zeros_like(change) for place, change in one.items()} for one in tasks()]
    merger: Merger = make(plugin)
    require(not any(change.any() for change in merger.merge(still).values()), "changes of zero become a change")


def leaves_the_tasks_alone(plugin: Plugin) -> None:
    """The tasks' changes stay as they are, also when the merged one is written to."""
    changes, merger = tasks(), make(plugin)
    for change in merger.merge(changes).values():
        change.fill_(7.0)
    whole = all(same(one, kept) for one, kept in zip(changes, tasks(), strict=True))
    require(whole, "merging changes what the tasks own")


def is_repeatable(plugin: Plugin) -> None:
    """Equal changes give an equal result, whatever was merged before, and the run's draws stay as they were."""
    changes, merger = tasks(), make(plugin)
    state = torch.random.get_rng_state()
    first = merger.merge(changes)
    merger.merge(changes[:1])
    require(same(first, merger.merge(changes)), "what was merged before changes the result")
    require(same(first, make(plugin).merge(tasks())), "the same changes give another result")
    require(torch.equal(state, torch.random.get_rng_state()), "merging draws from the run's generator")


CHECKS = (gives_one_change, nothing_becomes_nothing, leaves_the_tasks_alone, is_repeatable)
