"""What Avalanche 0.6.0's own strategies reach on the protocols of the rows beside this file.

    python experiments/published/reference.py er_reservoir ewc_permuted --seeds 10 --out reference.csv

With no name all rows are made; the Fashion-MNIST of `make data` is needed, and about ten minutes on one core. Each row is
a plain Avalanche script: its `SimpleMLP`, its plug-in or strategy with its own loop, loaders, buffers and evaluation, the
optimizer kept from task to task, generators seeded once by `torch.manual_seed`. Of ForgetLab it takes the samples alone:
the stream of seed 0, as tensors. An online row has an experience of ten samples for each batch (`split_online_stream`),
as Avalanche's own online examples do. The value of a seed is its `Top1_Acc_Stream` on the test stream after the last
task, which for tasks of equal size is the mean over tasks. Seeds count from 100: no draw is shared with ours.

The one change: Avalanche's EWC squares the gradient of a batch's mean, so its Fisher depends on the batch size. Where
``single`` is said, the batch size of that pass alone is 1, and the Fisher is that of single samples.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from forgetlab import avalanche_api as api  # makes torchvision, which Avalanche imports, importable everywhere
from forgetlab import plugins
from forgetlab.scenario import Samples, Scenario, as_input

FIRST_SEED = 100
FASHION = {"data": {"name": "fashion_mnist"}, "class_order": "given", "samples_per_task": 1000}
SPLIT = {**FASHION, "setting": "class-incremental"}
PAIRS = {**FASHION, "setting": "domain-incremental", "by": "class"}
PERMUTED = {**FASHION, "setting": "domain-incremental", "transform": {"name": "permutation"}, "n_tasks": 5}
PERMUTED = {**PERMUTED, "class_order": "drawn", "test_samples_per_task": 2000}
DIGITS = {"data": {"name": "digits"}, "class_order": "given", "setting": "class-incremental"}
PERMUTED_DIGITS = {**PERMUTED, "data": {"name": "digits"}, "samples_per_task": 400, "test_samples_per_task": 450}

Made = dict[str, Any]  # {"plugin": one of Avalanche's} or {"strategy": its class, argument: value, ...}


@dataclass(frozen=True)
class Row:
    """A protocol, and the method on it."""

    data: Mapping[str, Any]
    lr: float
    method: Callable[[], Made] = dict
    batch: int = 10
    epochs: int = 1
    hidden: int = 256
    online: bool = False
    optimizer: str = "sgd"
    settings: Mapping[str, Any] = field(default_factory=dict)


def run(row: Row, seed: int) -> float:
    """One seed's accuracy over the test stream, after the last task."""
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.models import SimpleMLP
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    scenario = plugins.build("scenario", "stream", dict(row.data), seed=0)
    seed_everything(seed)
    benchmark = to_benchmark(scenario)
    sizes = {"num_classes": scenario.n_classes, "input_size": prod(scenario.input_shape), "hidden_size": row.hidden}
    model = SimpleMLP(**sizes, hidden_layers=2, drop_rate=0.0)
    optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[row.optimizer](model.parameters(), lr=row.lr)
    made = row.method()
    strategy = made.pop("strategy", Naive)(
        model=model,
        optimizer=optimizer,
        train_mb_size=row.batch,
        train_epochs=row.epochs,
        eval_mb_size=500,
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True)),
        **made,
    )
    stream = benchmark.train_stream
    if row.online:
        stream = api.split_online_stream(stream, experience_size=row.batch, access_task_boundaries=True)
    if type(strategy).__name__ == "JointTraining":
        strategy.train(stream)
    else:
        for experience in stream:
            strategy.train(experience)
    (accuracy,) = (value for name, value in strategy.eval(benchmark.test_stream).items() if "Top1_Acc_Stream" in name)
    return accuracy


def to_benchmark(scenario: Scenario) -> Any:
    parts = {
        "train": [dataset(task.train) for task in scenario.tasks],
        "test": [dataset(task.test) for task in scenario.tasks],
    }
    return api.with_classes_timeline(api.with_task_labels(api.benchmark_from_datasets(**parts)))


def dataset(samples: Samples) -> Any:
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.benchmarks.utils.data_attribute import DataAttribute

    held = TensorDataset(as_input(samples.x[:]), samples.y)
    targets = DataAttribute(samples.y.tolist(), "targets")
    tasks = DataAttribute([0] * len(samples.y), "targets_task_labels", use_in_getitem=True)
    return api.AvalancheDataset([held], data_attributes=[targets, tasks])


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
