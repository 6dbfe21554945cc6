"""What Avalanche 0.6.0's own strategies reach on the protocols of the rows beside this file.

    python experiments/published/reference.py                              # all rows, about twelve minutes on one core
    python experiments/published/reference.py er_reservoir --seeds 3       # one of them, or several

It prints each row's mean, standard deviation and values, as they stand in targets.csv; the Fashion-MNIST of `make data`
is needed. Each row is a plain Avalanche script: its `SimpleMLP`, its plug-in or strategy with its own loop, loaders,
buffers and evaluation, the optimizer kept from task to task, the global generators seeded once. Of ForgetLab it takes
the samples alone: the stream of seed 0, as tensors. An online row has an experience for each batch, as Avalanche's own
online examples do (`split_online_stream`): its buffers are filled when an experience ends, and ours at each step.
A seed's value is its `Top1_Acc_Stream` on the test stream after the last task, which for tasks of equal size is the
mean over tasks. Seeds count from 100: no draw is shared with ours.

Two changes: Avalanche's EWC and MAS take the gradient of a batch's mean where the papers take that of each sample, so
that their importances depend on the batch size; where ``single`` is said, the batch size of that pass alone is 1. And
iCaRL asks for attributes of Avalanche's older benchmarks, which are set.
"""

from __future__ import annotations

import argparse
import random
import statistics
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn

from forgetlab import plugins
from forgetlab.avalanche import api  # makes torchvision, which Avalanche imports, importable everywhere
from forgetlab.data import Samples, as_input
from forgetlab.streams import Scenario

FIRST_SEED = 100
FASHION = {"data": {"name": "fashion_mnist"}, "class_order": "given", "samples_per_task": 1000}
SPLIT = {**FASHION, "setting": "class-incremental"}
PAIRS = {**FASHION, "setting": "domain-incremental", "by": "class"}
FEW = {**PAIRS, "samples_per_task": 200}
DIGITS = {"data": {"name": "digits"}, "class_order": "given", "setting": "class-incremental"}
PERMUTED = {"data": {"name": "digits"}, "setting": "domain-incremental", "transform": {"name": "permutation"}}

Made = dict[str, Any]  # what a strategy is constructed with; under "strategy" its class, if it is not Naive
Method = Callable[[nn.Module], Made]


@dataclass(frozen=True)
class Row:
    """A protocol, and the method on it."""

    data: Mapping[str, Any]
    lr: float
    method: Method | None = None  # None: fine-tuning
    batch: int = 10
    epochs: int = 1
    hidden: tuple[int, ...] = (256, 256)  # equal widths; none: one linear layer
    online: bool = False
    optimizer: str = "sgd"
    flat: bool = False  # vectors, not images: Avalanche's iCaRL mirrors images
    seeds: int = 10


def run(row: Row, seed: int) -> float:
    """One seed's accuracy over the test stream, after the last task."""
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    scenario = plugins.build("scenario", "stream", dict(row.data), seed=0)
    seed_everything(seed)
    benchmark, model = to_benchmark(scenario, row.flat), network(row, scenario)
    made: Made = {"model": model, **row.method(model)} if row.method else {"model": model}
    if made["model"] is None:
        del made["model"]
    strategy = made.pop("strategy", Naive)(
        optimizer={"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[row.optimizer](model.parameters(), lr=row.lr),
        train_mb_size=row.batch,
        train_epochs=row.epochs,
        eval_mb_size=500,
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True)),
        **made,
    )
    stream = benchmark.train_stream
    if row.online:
        stream = api.split_online_stream(stream, experience_size=row.batch, access_task_boundaries=True)
    for experience in [stream] if type(strategy).__name__ == "JointTraining" else stream:
        strategy.train(experience)
    (accuracy,) = (value for name, value in strategy.eval(benchmark.test_stream).items() if "Top1_Acc_Stream" in name)
    return accuracy


def network(row: Row, scenario: Scenario) -> nn.Module:
    """Avalanche's MLP, started as torch starts its layers."""
    from avalanche.models import SimpleMLP

    size = prod(scenario.input_shape)
    if not row.hidden:
        return nn.Sequential(nn.Flatten(), nn.Linear(size, scenario.n_classes))
    return SimpleMLP(scenario.n_classes, size, row.hidden[0], hidden_layers=len(row.hidden), drop_rate=0.0)


def to_benchmark(scenario: Scenario, flat: bool) -> Any:
    parts = {
        "train": [dataset(task.train, flat) for task in scenario.tasks],
        "test": [dataset(task.test, flat) for task in scenario.tasks],
    }
    made = api.with_classes_timeline(api.with_task_labels(api.benchmark_from_datasets(**parts)))
    made.n_classes_per_exp = [len(task.classes) for task in scenario.tasks]
    made.classes_order = [label for task in scenario.tasks for label in task.classes]
    for experience in made.train_stream:
        experience.benchmark = made
    return made


def dataset(samples: Samples, flat: bool) -> Any:
    """A task's samples, all with the task label 0, as one head wants."""
    from avalanche.benchmarks.utils.flat_data import ConstantSequence

    x, labels = as_input(samples.x[:]), samples.y.tolist()
    held: Any = list(zip(x.flatten(1) if flat else x, labels, strict=True))
    targets = api.DataAttribute(labels, "targets")
    tasks = api.DataAttribute(ConstantSequence(0, len(labels)), "targets_task_labels", use_in_getitem=True)
    return api.TaskAwareSupervisedClassificationDataset([held], data_attributes=[targets, tasks])


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def replay(policy: str, capacity: int = 200) -> Method:
    """ER with one of Avalanche's buffers, as many old samples as new ones."""

    def made(model: nn.Module) -> Made:
        from avalanche.training import storage_policy as stock
        from avalanche.training.plugins import ReplayPlugin

        return {"plugins": [ReplayPlugin(capacity, storage_policy=getattr(stock, policy)(capacity))]}

    return made


def plugin(name: str, **arguments: Any) -> Method:
    """One of Avalanche's plug-ins."""

    def made(model: nn.Module) -> Made:
        from avalanche.training import plugins as stock

        return {"plugins": [getattr(stock, name)(**arguments)]}

    return made


def strategy(name: str, **arguments: Any) -> Method:
    """One of Avalanche's strategies."""

    def made(model: nn.Module) -> Made:
        from avalanche.training import supervised as stock

        return {"strategy": getattr(stock, name), **arguments}

    return made


def single(name: str, **arguments: Any) -> Method:
    """One of Avalanche's plug-ins, whose pass over a task's data at its end has batches of one sample."""

    def made(model: nn.Module) -> Made:
        from avalanche.training import plugins as stock

        base: Any = getattr(stock, name)

        class Single(base):
            def after_training_exp(self, strategy: Any, **given: Any) -> None:
                batch, strategy.train_mb_size = strategy.train_mb_size, 1
                super().after_training_exp(strategy, **given)
                strategy.train_mb_size = batch

        return {"plugins": [Single(**arguments)]}

    return made


def icarl(model: Any) -> Made:
    from avalanche.training.supervised import ICaRL

    features = nn.Sequential(nn.Flatten(), model.features)
    parts = {"feature_extractor": features, "classifier": model.classifier}
    memory = {"memory_size": 200, "fixed_memory": True, "buffer_transform": None}
    return {"strategy": ICaRL, "model": None, **parts, **memory}


def linear(n_tasks: int, method: Method) -> Row:
    """One linear layer on permuted digits."""
    data = {**PERMUTED, "n_tasks": n_tasks}
    return Row(data, 0.01, method, batch=32, epochs=10, hidden=(), optimizer="adam", seeds=20)


JOINT = {"criterion": nn.CrossEntropyLoss()}
DER = {"mem_size": 200, "batch_size_mem": 10}
ROWS = {
    "digits_er": Row(DIGITS, 0.5, replay("ReservoirSamplingBuffer"), batch=5, hidden=(), online=True, seeds=20),
    "digits_ewc": linear(2, single("EWCPlugin", ewc_lambda=1.0)),
    "digits_online_ewc": linear(3, single("EWCPlugin", ewc_lambda=1.5, mode="online", decay_factor=0.8)),
    "digits_mas": linear(2, single("MASPlugin", lambda_reg=0.0015)),
    "naive_pairs": Row(PAIRS, 0.05, seeds=20),
    "joint_split": Row(SPLIT, 0.05, strategy("JointTraining", **JOINT), seeds=20),
    "er_reservoir": Row(SPLIT, 0.05, replay("ReservoirSamplingBuffer"), online=True, seeds=20),
    "er_class_balanced": Row(SPLIT, 0.05, replay("ClassBalancedBuffer"), online=True, seeds=20),
    "der": Row(SPLIT, 0.05, strategy("DER", **DER, alpha=0.5, beta=0.0), online=True, seeds=20),
    "der_pp": Row(SPLIT, 0.05, strategy("DER", **DER, alpha=0.2, beta=0.5), online=True, seeds=20),
    "er_ace": Row(SPLIT, 0.1, strategy("ER_ACE", mem_size=200, batch_size_mem=10), online=True, seeds=20),
    "mir": Row(SPLIT, 0.05, plugin("MIRPlugin", mem_size=200, batch_size_mem=10, subsample=50), online=True, seeds=20),
    "gdumb": Row(SPLIT, 0.05, plugin("GDumbPlugin", mem_size=200), epochs=30, seeds=20),
    "icarl": Row(SPLIT, 0.5, icarl, batch=12, epochs=2, flat=True),
    "agem_pairs": Row(PAIRS, 0.05, plugin("AGEMPlugin", patterns_per_experience=1000, sample_size=60), seeds=20),
    "gem_pairs": Row(FEW, 0.05, plugin("GEMPlugin", patterns_per_experience=200, memory_strength=0.5), epochs=5),
    "lwf_pairs": Row(PAIRS, 0.05, plugin("LwFPlugin", alpha=2.0), seeds=20),
}


def main() -> None:
    asked = argparse.ArgumentParser(description="Accuracies of Avalanche's own strategies on the rows' protocols.")
    asked.add_argument("names", nargs="*", choices=[[], *ROWS], help="rows; by default all")
    asked.add_argument("--seeds", type=int, help="by default each row's own number")
    given = asked.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in given.names or ROWS:
        seeds = range(FIRST_SEED, FIRST_SEED + (given.seeds or ROWS[name].seeds))
        values = [run(ROWS[name], seed) for seed in seeds]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        told = f"{name},{statistics.mean(values):.4f},{spread:.4f},{len(values)}"
        print(told, ";".join(f"{value:.4f}" for value in values), sep=",", flush=True)


if __name__ == "__main__":
    main()
