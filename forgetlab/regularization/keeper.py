"""What penalties, projections and regimes have in common: they learn at a task's end what the next one needs.

The contracts own Avalanche's hooks, so each also runs in an Avalanche script.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Generator, Tensor, nn

from forgetlab.avalanche.api import SupervisedPlugin
from forgetlab.avalanche.tensor_data import batches
from forgetlab.batch import Batch
from forgetlab.seeding import generator

Tensors = dict[str, Tensor]  # by parameter name


class Keeper(SupervisedPlugin, ABC):
    """What is learned at a task's end and kept for the next."""

    needs: ClassVar[frozenset[str]] = frozenset({"boundaries"})  # "passes" too where `consolidate` reads its data
    kept: ClassVar[tuple[str, ...]] = ()  # attributes that the next task needs: tensors by name, or plain values
    paper_protocol: ClassVar[Mapping[str, Any]] = {}  # what its paper assumes, by the keys of ``protocol``

    def __init__(self) -> None:
        super().__init__()
        self.seed = 0
        self.tasks = 0  # consolidated so far

    def check(self, model: nn.Module) -> None:
        """Refuse a model that this cannot act on; called before anything is trained.

        Raises:
            OptionError: with the reason.
        """

    def begin(self, model: nn.Module) -> None:
        """Called before a task's first step, when the model has grown for it."""

    def observe(self, model: nn.Module, loss: Tensor) -> None:
        """Called after each step, while the gradients are still there."""

    def consolidate(self, model: nn.Module, data: Iterable[Batch]) -> None:
        """Learn what the next tasks need, at a task's end, from that task's training data."""

    def draws(self) -> Generator:
        """The generator for what is drawn in this task."""
        return generator(type(self).__name__, self.seed, self.tasks)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is kept: tensors and plain values."""
        kept = {name: getattr(self, name) for name in ("tasks", *self.kept)}
        named = {part: values for part, values in kept.items() if isinstance(values, dict)}
        tensors = {f"{part}/{name}": tensor for part, values in named.items() for name, tensor in values.items()}
        return tensors, {name: value for name, value in kept.items() if name not in named}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        for name in self.kept:
            setattr(self, name, values.get(name, {}))
        for path, tensor in tensors.items():
            part, name = path.split("/", 1)
            getattr(self, part)[name] = tensor
        self.tasks = values["tasks"]

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.check(strategy.model)
        self.begin(strategy.model)

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        self.observe(strategy.model, strategy.loss)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        was_training = strategy.model.training
        strategy.model.eval()
        data = batches(strategy.experience.dataset, strategy.train_mb_size, strategy.device)
        self.consolidate(strategy.model, data)
        strategy.model.train(was_training)
        self.tasks += 1
