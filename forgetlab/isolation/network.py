"""The network of a frozen backbone with a module and a head per task, and what tells modules when tasks begin and end.

Who answers a test sample: its own task's module where the task is told, the one that a router finds, or one for all
tasks, behind all heads side by side (the newest module, or what a merger makes of all).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forgetlab.avalanche.api import SupervisedPlugin
from forgetlab.avalanche.tensor_data import Source, batches
from forgetlab.backbones.sites import Site
from forgetlab.batch import UNKNOWN, Batch
from forgetlab.isolation.attachment import positions, skipped
from forgetlab.isolation.frozen_features import FrozenWork
from forgetlab.isolation.merger import Merger
from forgetlab.isolation.module import Isolation, Shared
from forgetlab.isolation.router import Router
from forgetlab.seeding import drawn_from
from forgetlab.training.competing_classes import heads_asked, nobody, side_by_side
from forgetlab.training.heads import Head
from forgetlab.training.loop import progress, progress_of_epoch
from forgetlab.training.network import Network

Files = dict[str, tuple[dict[str, Tensor], dict[str, Any]]]  # by name: tensors, and plain values beside them


class IsolatedNetwork(Network):
    """A frozen backbone with a module and a head per task; old tasks' tensors are never touched again."""

    def __init__(
        self,
        backbone: nn.Module,
        make: Callable[[], Isolation],
        *,
        router: Router | None = None,
        merger: Merger | None = None,
        task_known: bool = True,
        seed: int = 0,
        work: FrozenWork | None = None,
    ) -> None:
        super().__init__(backbone.requires_grad_(False), task_known=task_known, seed=seed)
        self.make, self.router, self.merger, self.work = make, router, merger, work
        self.modules_of = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self.merged: Merged | None = None
        self.shared: Shared = {}
        self.current = UNKNOWN
        self.source: Source | None = None  # where the batch at hand lies, where that is known
        self.routes: Tensor | None = None  # (B,) where the last batch was sent

    def open(self, task: int, classes: Sequence[int]) -> None:
        """Make the task's module and head, and close all others."""
        if task in self.classes_of:
            return
        device = next(self.backbone.parameters()).device
        with drawn_from("module", self.seed, task):
            module = self.make()
            module.attach(self.backbone)
        head = Head(self.n_features, self.seed)
        head.grow(sorted(classes))
        for closed in (*self.modules_of.values(), *self.heads.values()):
            closed.requires_grad_(False)
        self.modules_of[str(task)], self.heads[str(task)] = module.to(device), head.to(device)
        self.classes_of[task], self.current = sorted(classes), task

    def load_task(self, task: int, classes: Sequence[int], tensors: Mapping[str, Tensor]) -> None:
        """Open a task with what `task_tensors` gave when it ended; tasks come in their order."""
        previous = [self.module_of(one) for one in self.classes_of]
        self.open(task, classes)
        module = self.module_of(task)
        module.recall(previous, self.shared)
        module.materialise()
        for name, part in (("module", module), ("head", self.heads[str(task)])):
            own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
            part.load_state_dict(own)

    def train(self, mode: bool = True) -> IsolatedNetwork:
        """The backbone and closed modules stay in evaluation mode: their buffers are frozen too."""
        super().train(mode)
        self.backbone.eval()
        for task, module in self.modules_of.items():
            module.train(mode and int(task) == self.current)
        return self

    def look(self, source: Source | None) -> None:
        """Told before a batch where it lies; holds for the next forward pass alone."""
        self.source = source

    def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
        """(B, ...), (B,) tasks or UNKNOWN -> (B, width)"""
        source, self.source = self.source, None
        asked = heads_asked(
            self.classes_of,
            training=self.training,
            current=self.current,
            task_known=self.task_known,
            routed=self.router is not None,
        )
        if asked is not None:
            if not self.training:
                self.routes = None
            features = self.under(self.speaker(self.current), x, source)
            return self._spread({task: self.heads[str(task)](features) for task in asked})
        task = task_labels if self.router is None else self.route(x, source)
        self.routes = task
        logits = nobody(len(x), self.width, like=next(iter(self.heads.parameters())))
        for one in task.unique().tolist():
            rows = (task == one).nonzero().squeeze(1)
            logits[rows] = self._spread({one: self.answer(one, x[rows], source and source.take(rows))})
        return logits

    def route(self, x: Tensor, source: Source | None = None) -> Tensor:
        """(B, ...) -> (B,) tasks, by the router"""
        assert self.router is not None
        with torch.no_grad():
            return self.router.route(self.bare(x, source), lambda task: self.answer(task, x, source))

    def answer(self, task: int, x: Tensor, source: Source | None = None) -> Tensor:
        """One task's own logits. (B, ...) -> (B, its classes)"""
        return self.heads[str(task)](self.under(self.speaker(task), x, source))

    def speaker(self, task: int) -> Isolation:
        """The module behind a task's head."""
        if self.merged is not None and not self.training:
            return self.merged
        newest = self.module_of(self.current)
        return newest if newest.speaks_for_all else self.module_of(task)

    def bare(self, x: Tensor, source: Source | None = None) -> Tensor:
        """The frozen backbone's own features. (B, ...) -> (B, d)"""
        with torch.no_grad():
            if self.work is None or source is None:
                return self.backbone(x)
            return self.work.features(self.backbone, source)

    def under(self, module: Isolation, x: Tensor, source: Source | None = None) -> Tensor:
        """The features under a module; what lies below it is not computed again where the batch is known. -> (B, d)"""
        if module.asks:
            module.query = self.bare(x, source)
        if module.siteless:
            return self.bare(x, source)
        if self.work is None or source is None or (depth := module.lowest()) == 0:
            return module.features(self.backbone, x)
        if depth < module.sites[0].layers:
            h = self.work.entering(self.backbone, source, depth)
            with skipped(self.backbone, depth, h):
                return module.features(self.backbone, x)
        h = module.side(self.work.taps(self.backbone, source), positions(self.backbone, x))
        with skipped(self.backbone, depth, h):
            return self.backbone(x)

    def module_of(self, task: int) -> Isolation:
        module = self.modules_of[str(task)]
        assert isinstance(module, Isolation)
        return module

    def merge(self) -> None:
        """Make the one module that answers for all tasks."""
        if self.merger is not None:
            modules = [self.module_of(task) for task in self.classes_of]
            self.merged = Merged(modules, self.merger.merge([module.changes() for module in modules]))

    def stored(self) -> dict[str, Tensor]:
        return super().stored() | {f"shared.{name}": tensor for name, tensor in self.shared.items()}

    def task_tensors(self, task: int) -> dict[str, Tensor]:
        """All that one task owns: its module's and its head's tensors."""
        parts = {"module": self.modules_of[str(task)], "head": self.heads[str(task)]}
        return {f"{a}.{name}": t.detach() for a, part in parts.items() for name, t in part.state_dict().items()}

    def files(self, task: int) -> Files:
        """What is to be stored when a task has ended: what is its own, and what all tasks share as it is now."""
        inside = [inner for inner in self.module_of(task).modules() if isinstance(inner, Isolation)]
        sites = [{"role": s.role, "layer": s.layer, "path": s.path} for module in inside for s in module.sites]
        found: Files = {f"task-{task}": (self.task_tensors(task), {"classes": self.classes_of[task], "sites": sites})}
        found |= {"shared": (self.shared, {})} if self.shared else {}
        return found | ({} if self.router is None else {"router": self.router.state()})

    def _spread(self, answers: Mapping[int, Tensor]) -> Tensor:
        """Tasks' logits (B, a task's classes) each -> (B, width); a class that several tasks have gets its largest."""
        return side_by_side(answers, self.classes_of, self.width)


class Merged(Isolation):
    """The backbone's weights with one change, made of the tasks'."""

    def __init__(self, modules: Sequence[Isolation], changes: Mapping[str, Tensor]) -> None:
        super().__init__(())
        self.sites = list({site.key: site for module in modules for site in module.sites}.values())
        self.parts = nn.ModuleDict({site.key: nn.Identity() for site in self.sites})
        self.tensors: dict[str, dict[str, Tensor]] = {}
        for site in self.sites:
            names = {key.removeprefix(f"{site.key}."): key for key in changes if key.startswith(f"{site.key}.")}
            self.tensors[site.key] = {name: site.tensors[name] + changes[key] for name, key in names.items()}

    def make(self, site: Site) -> nn.Module:
        return nn.Identity()

    def weights(self, part: Any, site: Site) -> Mapping[str, Tensor]:
        return self.tensors[site.key]


class Data:
    """A task's training data as batches, as often as they are asked for."""

    def __init__(self, strategy: Any) -> None:
        self.dataset, self.size = strategy.experience.dataset, strategy.train_mb_size
        self.device = strategy.device

    def __iter__(self) -> Iterator[Batch]:
        return batches(self.dataset, self.size, self.device)


class IsolationPlugin(SupervisedPlugin):
    """Tells an `IsolatedNetwork`'s modules, router and merger when a task begins and ends, and of each step."""

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        network: IsolatedNetwork = strategy.model
        module, previous = self._modules(network)
        module.begin(Data(strategy), previous, network.shared, network.backbone)

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        module = strategy.model.module_of(strategy.model.current)
        module.step(progress(strategy))
        module.step_of_epoch(*progress_of_epoch(strategy))

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        penalty = strategy.model.module_of(strategy.model.current).penalty()
        if penalty is not None:
            strategy.loss = strategy.loss + penalty

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        network: IsolatedNetwork = strategy.model
        module, previous = self._modules(network)
        network.eval()
        module.end(Data(strategy), previous, network.shared, network.backbone)
        module.materialise()
        network.merge()
        if network.router is not None:
            features, labels = self._features(network, strategy)
            network.router.fit(network.current, features, labels)

    def _features(self, network: IsolatedNetwork, strategy: Any) -> tuple[Tensor, Tensor]:
        """The bare features and labels of the task's training data. (N, d), (N,)"""
        columns = strategy.experience.dataset.columns() if hasattr(strategy.experience.dataset, "columns") else None
        if columns is not None and network.work is not None:
            return network.bare(columns[0], Source.all(columns[0])), columns[1]
        parts = [(network.bare(batch.x), batch.y) for batch in Data(strategy)]
        features, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return features, labels

    def _modules(self, network: IsolatedNetwork) -> tuple[Isolation, list[Isolation]]:
        *previous, module = (network.module_of(task) for task in network.classes_of)
        return module, previous
