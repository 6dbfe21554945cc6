"""Tasks learned one after the other in our loop or in Avalanche's, and how far apart the weights come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from forgetlab.avalanche.api import BaseLogger, CLScenario, EvaluationPlugin, SupervisedPlugin, SupervisedTemplate
from forgetlab.avalanche.tensor_data import TensorLoader
from forgetlab.experiment import Budget, Train
from forgetlab.seeding import generator, reseed
from forgetlab.training.loop import Loop

SEED = 3

Weights = dict[str, Tensor]


def learn(training: Any, stream: Any) -> Any:
    """The model after all tasks of a stream of Avalanche's, or after these tasks of one, by either's loop."""
    for experience in stream.streams["train"] if isinstance(stream, CLScenario) else stream:
        training.train(experience, [])
    return training.model


def learned(model: nn.Module, stream: Any, *found: Any, epochs: int = 2, seed: int = 0, **train: Any) -> Any:
    """The model after all tasks in our loop; SGD at a rate of 0.1 on batches of 8 where ``train`` says nothing."""
    settings = Train(**{"optimizer": "sgd", "lr": 0.1, "batch_size": 8, **train})
    return learn(Loop(model=model, train=settings, budget=Budget(epochs=epochs), plugins=[*found], seed=seed), stream)


class OurBatches:
    """Feeds a template of Avalanche's with the batches of our loop, its generators seeded as our loop seeds them."""

    adapted_dataset: Any
    clock: Any
    train_mb_size: int
    if TYPE_CHECKING:  # the template's own looks at the signatures of its classes

        def __init__(self, **options: Any) -> None: ...

    def make_train_dataloader(self, **kwargs: Any) -> None:
        columns, task = self.adapted_dataset.columns(), self.clock.train_exp_counter
        self.dataloader = TensorLoader(columns, self.train_mb_size, lambda e: generator("order", SEED, task, e))

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        reseed("task", SEED, self.clock.train_exp_counter)
        super().check_model_and_optimizer(**kwargs)  # type: ignore[misc] - the template's, which stands beside this


class Stock(OurBatches, SupervisedTemplate):  # type: ignore[misc] - the types that each gives its attributes
    """Avalanche's own template on our batches."""


def in_avalanche(
    model: nn.Module,
    stream: CLScenario,
    *found: Any,
    kind: Any = Stock,
    lr: float = 0.1,
    batch_size: int = 8,
    **options: Any,
) -> Any:
    """The model after all tasks, two epochs each, in Avalanche's own template by plain SGD."""
    training = kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        train_mb_size=batch_size,
        train_epochs=2,
        plugins=[*found],
        evaluator=EvaluationPlugin(loggers=[BaseLogger()]),
        **options,
    )
    return learn(training, stream)


def weights(model: nn.Module) -> Weights:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def difference(one: nn.Module | Mapping[str, Tensor], other: nn.Module | Mapping[str, Tensor]) -> float:
    """The largest, over all weights."""
    ours, theirs = (weights(found) if isinstance(found, nn.Module) else found for found in (one, other))
    assert ours.keys() == theirs.keys()
    return max((ours[name].double() - theirs[name].double()).abs().max().item() for name in ours)


class Recorder(SupervisedPlugin):
    """Keeps what was trained on, step by step: inputs, labels, tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[Tensor]] = []

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.batches.append([field.clone() for field in strategy.mbatch])


class EachStep(SupervisedPlugin):
    """Notes the weights after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Weights] = []

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        self.weights.append(weights(strategy.model))


def farthest(ours: Sequence[Weights], theirs: Sequence[Weights]) -> float:
    """The largest difference in a weight after any step."""
    assert len(ours) == len(theirs) > 0
    return max(difference(one, other) for one, other in zip(ours, theirs, strict=True))
