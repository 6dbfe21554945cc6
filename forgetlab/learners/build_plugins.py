"""The plug-ins of an entry, built and put together in the order in which Avalanche calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from forgetlab.avalanche.api import SupervisedPlugin, stock_plugin
from forgetlab.experiment import REGULARIZATION, GeneralSet, Replay
from forgetlab.isolation.network import IsolationPlugin
from forgetlab.isolation.shared_module import ModulePlugin
from forgetlab.plugins import registry
from forgetlab.plugins.registry import built
from forgetlab.training.general_data import General, from_data, from_start
from forgetlab.training.loop import HEAD
from forgetlab.training.network import Network

if TYPE_CHECKING:
    from forgetlab.learners.context import Context


def plugins_of(context: Context, network: Network) -> list[SupervisedPlugin]:
    """All that acts on this network's training."""
    strategy = context.run.strategy
    found: list[Any] = []
    if strategy.replay is not None:
        found += _replay(strategy.replay, context, network)
    kinds = [(registry.kind_of(spec["name"], REGULARIZATION), spec) for spec in strategy.regularization or ()]
    kinds.sort(key=lambda one: one[0] != "regime")  # those first, which move weights before others look at them
    found += [built(kind, spec) for kind, spec in kinds]
    if strategy.isolation is not None:
        found.append(ModulePlugin() if strategy.shared else IsolationPlugin())
    for plugin in found:
        plugin.seed = context.run.seed_of("data_order")
    if strategy.avalanche is not None and "plugin" in strategy.avalanche:
        found.append(stock_plugin(strategy.avalanche, model=network, cwr_layer_name=HEAD))
    return found


def _replay(replay: Replay, context: Context, network: Network) -> list[Any]:
    """A memory, what acts by it, and general data."""
    found: list[Any] = []
    if replay.memory is not None:
        memory = built("memory", replay.memory)
        memory.batch_size, memory.weight = replay.batch_size, replay.weight
        samples = sum(len(task.train.y) for task in context.scenario.tasks)
        memory.slots.capacity = min(memory.slots.capacity, samples)  # no more can come than there is
        as_they_came = replay.depth is None and not memory.inside
        memory.slots.as_bytes = as_they_came and context.scenario.tasks[0].train.x.dtype == torch.uint8
        for part in ("sampler", "rehearsal"):
            setattr(memory, part, None if (spec := getattr(replay, part)) is None else built(part, spec))
        if replay.depth is not None:
            memory.keep_inside(network, replay.depth)
        found.append(memory)
        if replay.projection is not None:
            memory.joins = False
            found.append(built("projection", replay.projection))
            found[-1].memory = memory
    if replay.general is not None:
        found.append(_general(replay.general, context, network))
    return found


def _general(general: GeneralSet, context: Context, network: Network) -> General:
    if general.data is not None:
        return from_data(general.data, general.ratio, network, context.run.seed_of("init"))
    assert context.start is not None  # feasibility has seen to it
    return from_start(context.start, general.ratio, context.device)
