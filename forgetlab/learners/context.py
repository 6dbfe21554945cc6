"""What every entry of a comparison is given: the same stream, and one start that all of a seed share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from forgetlab.avalanche.api import CLScenario, SupervisedPlugin
from forgetlab.avalanche.tensor_data import Columns
from forgetlab.experiment import Budget, ResolvedSpec, Run
from forgetlab.isolation.frozen_features import FrozenWork
from forgetlab.isolation.shared_module import Adapted
from forgetlab.plugins.registry import built
from forgetlab.seeding import drawn_from
from forgetlab.streams.scenario import Scenario
from forgetlab.training.loop import Epoch, Loop, TensorPath, stock_loop
from forgetlab.training.network import Network, SharedNetwork
from forgetlab.training.pretraining import Start, start


@dataclass(frozen=True)
class Context:
    """What a learner is given: the run, its stream, and the one start that all learners of a seed share."""

    run: Run
    scenario: Scenario
    benchmark: CLScenario
    device: torch.device
    on_epoch: Callable[[Epoch], None] = lambda _: None
    starts: Path | None = None  # a folder in which pretrained starts are kept

    def backbone(self) -> nn.Module:
        """The starting backbone, pretrained where the file asks for it: equal weights at every call."""
        backbone = self._untrained()
        if self.start is not None:
            self.start.load_into(backbone)
        return backbone

    @cached_property
    def start(self) -> Start | None:
        """What the backbone was pretrained to."""
        return start(self.run, self.scenario, self._untrained(), self.device, self.starts)

    def _untrained(self) -> nn.Module:
        with drawn_from("init", self.run.seed_of("init")):
            return built("model", self.run.model, input_shape=self.scenario.input_shape).to(self.device)

    def adapted(self) -> nn.Module:
        """The starting backbone, under a module where all tasks train that."""
        strategy, backbone = self.run.strategy, self.backbone()
        if not strategy.shared:
            return backbone
        with drawn_from("module", self.run.seed_of("init")):
            return Adapted(backbone, built("isolation", strategy.isolation or {})).to(self.device)

    def work(self, backbone: nn.Module) -> FrozenWork | None:
        """Where what a frozen backbone computes is kept, if it is to be."""
        return FrozenWork(backbone, json.dumps(self.run.model, sort_keys=True)) if self.run.reuse_frozen else None

    @cached_property
    def test_columns(self) -> list[Columns]:
        """Every task's test samples as tensors."""
        found = [experience.dataset.columns() for experience in self.benchmark.streams["test"]]
        return [columns for columns in found if columns is not None]

    def shared_network(self, task_known: bool) -> SharedNetwork:
        protocol = self.run.protocol
        return SharedNetwork(
            self.adapted(),
            head=protocol.head,
            loss_classes=protocol.loss_classes,
            task_known=task_known,
            n_classes=self.scenario.n_classes,
            seed=self.run.seed_of("init"),
        ).to(self.device)

    def loop(
        self,
        network: Network,
        plugins: list[SupervisedPlugin] | None = None,
        first_task: int = 0,
        stock: ResolvedSpec | None = None,
        budget: Budget | None = None,
    ) -> TensorPath:
        """A training loop; ``stock`` is one of Avalanche's strategies and its arguments, ``budget`` not the run's."""
        kind = Loop if stock is None else partial(stock_loop, stock)
        return kind(
            model=network,
            train=self.run.train,
            budget=self.run.budget if budget is None else budget,
            plugins=plugins or [],
            device=self.device,
            seed=self.run.seed_of("data_order"),
            first_task=first_task,
            reset_optimizer=self.run.protocol.reset_optimizer,
            one_pass=self.scenario.one_pass,
            on_epoch=self.on_epoch,
        )
