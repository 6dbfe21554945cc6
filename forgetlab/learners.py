"""How each entry of a comparison goes through the stream: what it trains on when a task arrives, and how it answers."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from forgetlab.adapted import Adapted
from forgetlab.answering import answers_of_tasks, undisturbed
from forgetlab.assembly import built, plugins_of
from forgetlab.avalanche_api import CLScenario, SupervisedPlugin, held_bytes
from forgetlab.data import Columns
from forgetlab.description import ORACLE, ResolvedSpec, Run
from forgetlab.frozen import FrozenWork
from forgetlab.isolated import Files, IsolatedNetwork, IsolationPlugin
from forgetlab.ledger import KEPT, STEP, Ledger, Price, byte_count, count, kept_by_task
from forgetlab.loop import EVALUATION_BATCH, Epoch, Loop, TensorPath, stock_loop
from forgetlab.network import Network, SharedNetwork
from forgetlab.pretraining import Start, start
from forgetlab.scenario import Scenario
from forgetlab.scores import scored
from forgetlab.seeding import drawn_from

Scores = dict[str, float]  # of one task's test samples
NamedTensors = dict[str, Tensor]


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
    ) -> TensorPath:
        """A training loop; ``stock`` is one of Avalanche's strategies and its arguments."""
        kind = Loop if stock is None else partial(stock_loop, stock)
        return kind(
            model=network,
            train=self.run.train,
            budget=self.run.protocol.budget,
            plugins=plugins or [],
            device=self.device,
            seed=self.run.seed_of("data_order"),
            first_task=first_task,
            reset_optimizer=self.run.protocol.reset_optimizer,
            one_pass=self.scenario.one_pass,
            on_epoch=self.on_epoch,
        )


@dataclass
class Counts:
    """The price, task by task."""

    parameters: int = 0  # that must be kept to answer
    stored_bytes: int = 0  # that must be kept to answer
    memory_bytes: int | None = 0  # that are kept beside, to learn on: buffers, importances; None where not known
    trainable: list[int] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    samples_seen: list[int] = field(default_factory=list)
    samples_replayed: list[int] = field(default_factory=list)
    backbone_parameters: int | None = None
    prices: list[Price] = field(default_factory=list)  # of each task, see `forgetlab.ledger`

    def add(self, loop: TensorPath, replayed: int = 0) -> None:
        """The task that this loop trained last."""
        parameters = [p for group in loop.optimizer.param_groups for p in group["params"]]
        self.trainable.append(sum(p.numel() for p in parameters))
        self.updates.append(loop.steps)
        self.samples_seen.append(loop.seen)
        self.samples_replayed.append(replayed)

    def keep(self, tensors: Mapping[str, Tensor], copies: int = 1) -> None:
        """What must be kept to answer."""
        self.parameters = copies * sum(t.numel() for t in tensors.values() if t.is_floating_point())
        self.stored_bytes = copies * byte_count(tensors)

    def as_plain(self) -> dict[str, Any]:
        per_task = {name: getattr(self, name) for name in ("trainable", "updates", "samples_seen", "samples_replayed")}
        total = {name: sum(values) for name, values in per_task.items() if name != "trainable"}
        total["trainable"] = max(self.trainable, default=0)
        names = ("parameters", "stored_bytes", "memory_bytes", "backbone_parameters")
        totals = {name: getattr(self, name) for name in names}
        prices = {name: [price[name] for price in self.prices] for name in (*STEP, *KEPT) if self.prices}
        rows = {name: list(values) for name, values in per_task.items()}
        return {"per_task": {**rows, **prices}, "total": {**total, **totals}}


class Learner(ABC):
    """Goes through a stream."""

    context: Context
    counts: Counts
    prequential: list[float | None]
    trains: ClassVar[bool] = True  # by gradient, as the file says under ``train:``

    def prepare(self, context: Context) -> None:
        """Make ready for the first task."""
        self.context, self.counts, self.prequential = context, Counts(), []

    @property
    def latency(self) -> float | None:
        """How many times as long as the bare backbone an answer takes; None where nothing is attached to it."""
        return None

    @abstractmethod
    def learn(self, task: int) -> None:
        """Train when a task has arrived."""

    @abstractmethod
    def evaluate(self, task: int) -> Scores | None:
        """Answer a task's test samples; None where there is no answer yet."""

    def evaluate_all(self) -> list[Scores | None]:
        """The same for every task of the stream."""
        return [self.evaluate(task) for task in range(len(self.context.scenario.tasks))]

    def task_tensors(self, task: int) -> NamedTensors:
        """What belongs to this task alone and is stored as a file of its own."""
        return {}

    def files(self, task: int) -> Files:
        """What is stored when a task has ended."""
        tensors = self.task_tensors(task)
        return {f"task-{task}": (tensors, {})} if tensors else {}

    def current_backbone(self) -> nn.Module | None:
        """The backbone as it is now; None where there is not one."""
        return None


class Sequential(Learner):
    """One model, trained on one task after another; with no plug-in this is naive fine-tuning."""

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        network, stock = self._network(), context.run.strategy.avalanche or {}
        self.plugins = plugins_of(context, network)
        self.ledger = None if "strategy" in stock else Ledger()
        plugins = [*self.plugins, *([self.ledger] if self.ledger else [])]
        self.loop = context.loop(network, plugins, stock=stock if "strategy" in stock else None)
        if isinstance(self.network, SharedNetwork):
            self.network.open(0, context.scenario.tasks[0].classes)

    @property
    def network(self) -> Network:
        """The model as it is now: a stock plug-in (GDumb) may have put another in its place."""
        return self.loop.model

    def learn(self, task: int) -> None:
        self.loop.train(self.context.benchmark.streams["train"][task], [])
        self.counts.add(self.loop, sum(getattr(plugin, "replayed", 0) for plugin in self.plugins))
        if self.context.scenario.one_pass:
            routed = self.context.run.task_identity == "routed"  # training tells the task, which a router has to find
            self.prequential.append(None if routed else self.loop.prequential)
        self.counts.keep(self.network.stored())
        self.counts.backbone_parameters = count(getattr(self.network.backbone, "backbone", self.network.backbone))
        if self.ledger is not None:
            self.counts.prices.append({**self.ledger.steps[-1], **kept_by_task(self.network)})
        stock = [self.loop] if type(self.loop) is not Loop else []
        keepers = [*self.loop.plugins, getattr(self.network, "router", None), *stock]
        holding = [k for k in keepers if k and not isinstance(k, IsolationPlugin | Ledger)]
        self.counts.memory_bytes = memory_bytes(holding, self.network)

    def evaluate(self, task: int) -> Scores | None:
        if not self.network.can_answer(task, self.context.scenario.tasks[task].tested):
            return None
        return scores(self.loop, self.context, task)

    def evaluate_all(self) -> list[Scores | None]:
        apart = isinstance(self.network, SharedNetwork) and type(self.loop) is Loop
        if not apart or not all(map(undisturbed, self.plugins)):
            return super().evaluate_all()
        tasks = self.context.scenario.tasks
        open_tasks = [i for i, task in enumerate(tasks) if self.network.can_answer(i, task.tested)]
        found: list[Scores | None] = [None] * len(tasks)
        columns = [self.context.test_columns[i] for i in open_tasks]
        for i, (logits, y) in zip(open_tasks, answers_of_tasks(self.network, columns, EVALUATION_BATCH), strict=True):
            accuracy = {"accuracy": (logits.argmax(1) == y).double().mean().item()}
            found[i] = accuracy | scored(self.context.scenario.scores, [(logits, y)])
        return found

    @property
    def latency(self) -> float | None:
        return self.ledger.latency if self.ledger else None

    def task_tensors(self, task: int) -> NamedTensors:
        return self.network.task_tensors(task) if isinstance(self.network, IsolatedNetwork) else {}

    def files(self, task: int) -> Files:
        return self.network.files(task) if isinstance(self.network, IsolatedNetwork) else {}

    def current_backbone(self) -> nn.Module | None:
        return self.network.backbone

    def _network(self) -> Network:
        run, strategy = self.context.run, self.context.run.strategy
        if strategy.isolation is None or strategy.shared:
            return self.context.shared_network(self.context.scenario.task_known_at_test)
        spec, router, backbone = strategy.isolation, strategy.router, self.context.backbone()
        return IsolatedNetwork(
            backbone,
            lambda: built("isolation", spec),
            router=None if router is None or router["name"] == ORACLE else built("router", router),
            merger=None if strategy.merge is None else built("merger", strategy.merge),
            task_known=run.task_identity == "told",
            seed=run.seed_of("init"),
            work=self.context.work(backbone),
        ).to(self.context.device)


def scores(loop: TensorPath, context: Context, task: int) -> Scores:
    """Let a loop answer one task's test samples."""
    loop.keeps_outputs = bool(context.scenario.scores)
    loop.eval(context.benchmark.streams["test"][task])
    assert loop.correct is not None
    found = {"accuracy": loop.correct.double().mean().item()}
    if loop.keeps_outputs:
        found |= scored(context.scenario.scores, loop.outputs)
    if context.run.task_identity == "routed" and loop.right_route is not None:
        right = loop.right_route
        found["router_accuracy"] = right.double().mean().item()
        if right.any():
            found["accuracy_given_route"] = loop.correct[right].double().mean().item()
    return found


def memory_bytes(keepers: list[Any], model: nn.Module) -> int | None:
    """The bytes of the tensors in their states, and of what stock code holds; None where one does not tell."""
    sizes = [byte_count(k.state()[0]) if hasattr(k, "state") else held_bytes(k, model) for k in keepers]
    return None if None in sizes else sum(size for size in sizes if size is not None)
