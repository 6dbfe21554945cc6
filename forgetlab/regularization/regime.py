"""The contract of regimes: rates, and what is done to the weights between tasks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, ClassVar

from torch import nn

from forgetlab.backbones.sites import blocks
from forgetlab.regularization.keeper import Keeper


class Regime(Keeper):
    """How training goes: a parameter's rate, and what is done to the weights before, between and after steps.

    `begin` comes before a task's first step, `observe` after each, `consolidate` at the task's end.
    """

    neutral: ClassVar[Mapping[str, Any]] = {}  # the options with which it changes nothing

    def __init__(self) -> None:
        super().__init__()
        self._around = ExitStack()

    def rate(self, name: str, task: int) -> float:
        """The factor on a parameter's learning rate in this task."""
        return 1.0

    def around(self, model: nn.Module) -> AbstractContextManager[Any]:
        """What stands around the forward pass of each training step: hooks in it are on no copy of the model."""
        return nullcontext()

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        names = {p: name for name, p in strategy.model.named_parameters()}
        self._groups = strategy.optimizer.param_groups
        groups: list[dict[str, Any]] = []
        for group in self._groups:
            by_rate: dict[float, list[nn.Parameter]] = {}
            for p in group["params"]:
                by_rate.setdefault(self.rate(names[p], self.tasks), []).append(p)
            groups += [{**group, "params": ps, "lr": group["lr"] * factor} for factor, ps in by_rate.items()]
        strategy.optimizer.param_groups = groups

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        self._around.close()  # what a pass that was interrupted left
        self._around.enter_context(self.around(strategy.model))

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        self._around.close()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        strategy.optimizer.param_groups = self._groups  # where an optimizer is kept, rates do not build up
        super().after_training_exp(strategy, **kwargs)


def layers(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model's backbone, first to last; of the frozen one where a module is trained on it.

    Raises:
        OptionError: where they are is not known.
    """
    backbone: Any = getattr(model, "backbone", model)
    return blocks(getattr(backbone, "backbone", backbone))
