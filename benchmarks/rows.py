"""What is compared with what."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from benchmarks import bare, ours, stock
from benchmarks.measure import Aim, Comparison, Side, seconds
from forgetlab.avalanche.tensor_data import batches
from forgetlab.batch import Batch
from forgetlab.learners.sequential import Sequential
from forgetlab.plugins.registry import built
from forgetlab.seeding import generator
from forgetlab.streams.scenario import Scenario
from forgetlab.toolbox.fisher import Variant, fisher
from forgetlab.training.loop import EVALUATION_BATCH

EWC_STRENGTH = 1e3


@dataclass(frozen=True)
class Work:
    """The stream and the sizes that all rows share."""

    name: str
    scenario: Scenario
    hidden: int = 400
    batch_size: int = 128
    memory: int = 500
    fisher_samples: int = 2560  # of the first task
    fisher_batch: int = 512
    looped_samples: tuple[int, int] = (128, 32)  # of these, in the loop over samples: with one label, with all
    pairs: tuple[int, int] = (5, 11)  # and where the aim is close to 1

    @property
    def n_inputs(self) -> int:
        return math.prod(self.scenario.input_shape)

    @property
    def model(self) -> str:
        shape = f"MLP {self.n_inputs}-{self.hidden}-{self.hidden}-{self.scenario.n_classes}"
        return f"{shape}, batch {self.batch_size}, Adam 1e-3"

    def training(self, tasks: str) -> str:
        return f"{self.name}, {tasks}, one epoch each; {self.model}"

    def learner(self, **strategy: Any) -> Sequential:
        return ours.learner(self.scenario, self.hidden, self.batch_size, **strategy)

    def strategy(self, *plugins: Any, **kind: Any) -> Any:
        sizes = self.n_inputs, self.hidden, self.scenario.n_classes
        return stock.strategy(sizes, self.batch_size, EVALUATION_BATCH, *plugins, **kind)

    @cached_property
    def benchmark(self) -> Any:
        """Avalanche's."""
        return stock.benchmark(self.scenario)

    @cached_property
    def tensors(self) -> list[tuple[Tensor, Tensor]]:
        """The bare loop's."""
        return [bare.as_tensors(task) for task in self.scenario.tasks[:2]]


def comparisons(work: Work) -> list[Comparison]:
    """All rows, in the order in which they are shown."""
    return [
        naive_and_bare(work, "fused Adam", bare.fused_adam, Aim("ours / theirs", "<=", 1.1)),
        naive_and_bare(work, "default Adam", bare.default_adam, Aim("ours / theirs", "<", 1)),
        naive_and_stock(work),
        evaluation(work),
        replay(work),
        dark_experience(work),
        ewc_training(work),
        ewc_fisher_pass(work),
        fisher_and_loop(work, "predicted", bare.one_label),
        fisher_and_loop(work, "exact", bare.every_label),
        fisher_and_epoch(work, "predicted", Aim("ours / theirs", "<=", 1.5)),
        fisher_and_epoch(work, "exact", Aim("ours / theirs")),
    ]


def naive_and_bare(work: Work, adam: str, make_optimizer: Callable[..., Any], aim: Aim) -> Comparison:
    def theirs() -> float:
        network = bare.mlp(work.n_inputs, work.scenario.n_classes, work.hidden)
        orders = [torch.randperm(len(y)) for _, y in work.tensors]
        return seconds(lambda: bare.train(network, work.tensors, orders, work.batch_size, make_optimizer))

    text = f"{work.training('tasks 1 and 2')}, ours fused; theirs: {adam}, float32 tensors, batches by index_select"
    return Comparison(f"naive, bare loop, {adam}", text, naive(work), theirs, aim, work.pairs[1])


def naive(work: Work) -> Side:
    def side() -> float:
        with ours.globals_of_the_engine():
            learner = work.learner()
            return seconds(lambda: [learner.learn(task) for task in (0, 1)])

    return side


def naive_and_stock(work: Work) -> Comparison:
    def theirs() -> float:
        with stock.quiet():
            strategy = work.strategy()
            return seconds(lambda: [strategy.train(experience) for experience in work.benchmark.train_stream[:2]])

    text = f"{work.training('tasks 1 and 2')}; theirs: Naive, default evaluator, PIL images"
    return Comparison("naive, Avalanche", text, naive(work), theirs, Aim("theirs / ours", ">=", 3.5), work.pairs[0])


def evaluation(work: Work) -> Comparison:
    tasks, n = work.scenario.tasks, sum(len(task.test.y) for task in work.scenario.tasks)

    def mine() -> float:
        with ours.globals_of_the_engine():
            learner = work.learner()
            for i, task in enumerate(tasks):
                learner.network.open(i, task.classes)
            return seconds(learner.evaluate_all)

    def theirs() -> float:
        with stock.quiet():
            strategy = work.strategy()
            return seconds(lambda: strategy.eval(work.benchmark.test_stream))

    text = f"{work.name}, all {len(tasks)} tasks, {n} test images in batches of {EVALUATION_BATCH}; {work.model}"
    return Comparison("evaluation, Avalanche", text, mine, theirs, Aim("theirs / ours", ">=", 8), work.pairs[0])


def rehearsed(work: Work, **replay: Any) -> Side:
    """Task 2 with a memory of task 1."""

    def side() -> float:
        with ours.globals_of_the_engine():
            memory = {"name": "reservoir", "capacity": work.memory}
            learner = work.learner(replay={"memory": memory, **replay})
            learner.learn(0)
            return seconds(lambda: learner.learn(1))

    return side


def replay(work: Work) -> Comparison:
    def theirs() -> float:
        from avalanche.training.plugins import ReplayPlugin

        with stock.quiet():
            strategy = work.strategy(ReplayPlugin(mem_size=work.memory, batch_size_mem=work.batch_size))
            strategy.train(work.benchmark.train_stream[0])
            return seconds(lambda: strategy.train(work.benchmark.train_stream[1]))

    text = f"{work.training('task 2')}; capacity {work.memory}, {work.batch_size} old samples beside each batch; "
    text += "ours: reservoir, theirs: ReplayPlugin"
    return Comparison("replay, Avalanche", text, rehearsed(work), theirs, Aim("theirs / ours", ">=", 4), work.pairs[0])


def dark_experience(work: Work) -> Comparison:
    weights = {"alpha": 0.2, "beta": 0.5}

    def theirs() -> float:
        from avalanche.training.supervised import DER

        with stock.quiet():
            given = {"mem_size": work.memory, "batch_size_mem": work.batch_size, **weights}
            strategy = work.strategy(of=DER, **given)
            strategy.train(work.benchmark.train_stream[0])
            return seconds(lambda: strategy.train(work.benchmark.train_stream[1]))

    text = f"{work.training('task 2')}; capacity {work.memory}, {work.batch_size} old samples beside each batch; "
    text += "theirs: DER"
    mine = rehearsed(work, rehearsal={"name": "der++", **weights})
    return Comparison("DER++, Avalanche", text, mine, theirs, Aim("theirs / ours", ">=", 4), work.pairs[0])


def fisher_and_epoch(work: Work, variant: Variant, aim: Aim) -> Comparison:
    """The pass over a task's data that a penalty needs, against one epoch of training on the same data."""

    def mine() -> float:
        with ours.globals_of_the_engine():
            learner = work.learner()
            learner.learn(0)
            data = learner.context.benchmark.streams["train"][0].dataset
            return seconds(lambda: fisher(learner.network, batches(data, work.fisher_batch, "cpu"), variant))

    def theirs() -> float:
        with ours.globals_of_the_engine():
            learner = work.learner()
            return seconds(lambda: learner.learn(0))

    n = len(work.scenario.tasks[0].train.y)
    text = f"{work.name}, the {n} samples of task 1, ours in batches of {work.fisher_batch}; {work.model}; theirs: "
    text += "our own epoch of training on them"
    return Comparison(f"Fisher, {variant}, one epoch", text, mine, theirs, aim, work.pairs[1])


def ewc_training(work: Work) -> Comparison:
    later = range(1, len(work.scenario.tasks))

    def mine() -> float:
        with ours.globals_of_the_engine():
            learner = work.learner(regularization=(ewc_spec("empirical"),))
            learner.learn(0)
            passes = noted(learner.plugins[0], "consolidate")
            return seconds(lambda: [learner.learn(task) for task in later]) - sum(passes)

    def theirs() -> float:
        from avalanche.training.plugins import EWCPlugin

        with stock.quiet():
            strategy = work.strategy(plugin := EWCPlugin(EWC_STRENGTH))
            strategy.train(work.benchmark.train_stream[0])
            passes = noted(plugin, "compute_importances")
            return seconds(lambda: [strategy.train(task) for task in work.benchmark.train_stream[1:]]) - sum(passes)

    text = (
        f"{work.training('all tasks after the first')}; the penalty acts, the Fisher passes (ours: empirical) are left "
    )
    text += "out on both sides; theirs: EWCPlugin, mode 'separate', with a penalty for each past task"
    return Comparison("EWC, Avalanche", text, mine, theirs, Aim("theirs / ours", ">=", 4), work.pairs[0])


def noted(owner: Any, method: str) -> list[float]:
    """From now on each call of the method adds the seconds that it took to this list."""
    taken: list[float] = []
    original = getattr(owner, method)

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        result = original(*args, **kwargs)
        taken.append(time.process_time() - start)
        return result

    setattr(owner, method, call)
    return taken


def ewc_spec(variant: Variant) -> dict[str, Any]:
    return {"name": "ewc", "strength": EWC_STRENGTH, "fisher": variant}


def ewc_fisher_pass(work: Work) -> Comparison:
    def mine() -> float:
        with ours.globals_of_the_engine():
            learner, ewc = work.learner(), built("regularizer", ewc_spec("empirical"))
            data = learner.context.benchmark.streams["train"][0].dataset
            return seconds(lambda: ewc.consolidate(learner.network, batches(data, work.batch_size, "cpu")))

    def theirs() -> float:
        from avalanche.training.plugins import EWCPlugin

        with stock.quiet():
            strategy, data = work.strategy(), work.benchmark.train_stream[0].dataset
            given = (strategy.model, strategy._criterion, strategy.optimizer, data, "cpu", work.batch_size)
            return seconds(lambda: EWCPlugin(EWC_STRENGTH).compute_importances(*given))

    n = len(work.scenario.tasks[0].train.y)
    text = f"{work.name}, the {n} samples of task 1 in batches of {work.batch_size}; {work.model}; ours: empirical, "
    text += "exact per sample; theirs: the gradient of each batch's mean, squared, another number"
    return Comparison("EWC's Fisher pass, Avalanche", text, mine, theirs, Aim("theirs / ours"), work.pairs[0])


def fisher_and_loop(work: Work, variant: Variant, labels: bare.Labels) -> Comparison:
    many, few = work.fisher_samples, work.looped_samples[0 if labels is bare.one_label else 1]
    n_classes = work.scenario.n_classes
    network = bare.mlp(work.n_inputs, n_classes, work.hidden)
    network.grow(n_classes)
    bare.train(network, work.tensors[:1], [torch.randperm(len(work.tensors[0][1]))], work.batch_size)
    model = bare.of_layers(network)
    data = stock.pictures(work.scenario.tasks[0].train)
    rows = torch.randperm(len(data), generator=generator("bench"))
    x, y = work.tensors[0]

    def mine(n: int) -> dict[str, Tensor]:
        parts = rows[:n].split(work.fisher_batch)
        return fisher(model, (Batch(stock.normal(x[part]), y[part], part) for part in parts), variant)

    def theirs(n: int) -> dict[str, Tensor]:
        return bare.fisher(model, DataLoader(Subset(data, rows[:n].tolist()), batch_size=1), labels)

    def difference() -> float:
        ours, others = mine(few), theirs(few)
        largest = max(float(value.max()) for value in others.values())
        return max(float((ours[name] - others[name]).abs().max()) for name in others) / largest

    text = f"{work.name}, seconds per 1000 samples of task 1, from {many} in batches of {work.fisher_batch} (ours, "
    text += f"tensors) and {few} one by one (theirs: the loop of van de Ven's code and its data loader over PIL images)"
    text += f"; {work.model}; {n_classes} classes open, {'the likeliest label' if labels is bare.one_label else 'all'}"
    return Comparison(
        f"Fisher, {variant}, loop over samples",
        text,
        lambda: 1000 / many * seconds(lambda: mine(many)),
        lambda: 1000 / few * seconds(lambda: theirs(few)),
        Aim("theirs / ours", ">=", 20),
        work.pairs[0],
        difference,
    )
