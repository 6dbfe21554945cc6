"""One model that goes through the tasks one after another, under whatever the entry adds to plain fine-tuning."""

from __future__ import annotations

from torch import nn

from forgetlab.costs.ledger import Ledger, count, kept_by_task
from forgetlab.experiment import ORACLE
from forgetlab.isolation.network import Files, IsolatedNetwork, IsolationPlugin
from forgetlab.learners.build_plugins import plugins_of
from forgetlab.learners.context import Context
from forgetlab.learners.counts import memory_bytes
from forgetlab.learners.learner import Learner, NamedTensors, Scores
from forgetlab.learners.one_pass_evaluation import answers_of_tasks, undisturbed
from forgetlab.learners.scores import scored, scores
from forgetlab.plugins.registry import built
from forgetlab.training.loop import EVALUATION_BATCH, Loop
from forgetlab.training.network import Network, SharedNetwork


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
        replayed = sum(getattr(plugin, "replayed", 0) for plugin in self.plugins)
        extra_updates = sum(getattr(plugin, "extra_updates", 0) for plugin in self.plugins)
        self.counts.add(self.loop, replayed, extra_updates)
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
