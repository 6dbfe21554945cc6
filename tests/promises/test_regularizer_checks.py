"""The checks of regularizers turn red where a promise is broken, and let those pass that act from the start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab.checks import regularizer as checks
from forgetlab.checks.check import Check
from forgetlab.plugins.registry import Plugin
from forgetlab.regularization.regularizer import Regularizer, quadratic
from forgetlab.toolbox.fisher import trainable


class ToTheStart(Regularizer):
    """Pulls to the weights of before the first task, in every task."""

    from_start = True
    kept = ("start",)

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__(strength)
        self.start: dict[str, Tensor] = {}

    def begin(self, model: nn.Module) -> None:
        for name, parameter in trainable(model):
            rows = self.start.get(name, parameter[:0])
            self.start[name] = torch.cat([rows, parameter[len(rows) :]]).detach().clone()

    def penalty(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return quadratic(model, {name: start.new_ones(()) for name, start in self.start.items()}, self.start)


class HasNoCentre(ToTheStart):
    def penalty(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return super().penalty(model, batch, output) + 1


class FollowsTheTasks(ToTheStart):
    def consolidate(self, model: nn.Module, data: Any) -> None:
        self.start = {name: p.detach().clone() for name, p in trainable(model)}


class PullsHarderWithMoreClasses(ToTheStart):
    def penalty(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return super().penalty(model, batch, output) * output.shape[1]


class KeepsEveryTask(ToTheStart):
    def consolidate(self, model: nn.Module, data: Any) -> None:
        for name, parameter in list(trainable(model)):
            self.start[f"{name} of task {self.tasks}"] = parameter.detach().clone()

    def penalty(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return torch.stack([(p - self.start[name][: len(p)]).square().sum() for name, p in trainable(model)]).sum()


class ThawsTheModel(ToTheStart):
    def begin(self, model: nn.Module) -> None:
        model.requires_grad_(True)
        super().begin(model)


class StartsAnewWhenRestored(ToTheStart):
    def state(self) -> Any:
        return {}, super().state()[1]


class DrawsGlobally(ToTheStart):
    def penalty(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return super().penalty(model, batch, output) + 0 * torch.rand(())


def plugin(kind: type) -> Plugin:
    return Plugin("regularizer", "planted", kind)


@pytest.mark.parametrize("check", checks.CHECKS)
def test_one_that_acts_from_the_start_passes(check: Check) -> None:
    check(plugin(ToTheStart))


@pytest.mark.parametrize(
    ("broken", "check", "message"),
    [
        (HasNoCentre, checks.flat_at_its_anchor, "at its anchor is 1"),
        (FollowsTheTasks, checks.keeps_its_centre, "centre moves with the tasks"),
        (PullsHarderWithMoreClasses, checks.survives_new_classes, "change the pull on old weights"),
        (KeepsEveryTask, checks.does_not_grow, "28 tensors after 6 tasks, 12 after 2"),
        (ThawsTheModel, checks.leaves_frozen_parameters_alone, "frozen weights"),
        (StartsAnewWhenRestored, checks.goes_on_from_its_state, "goes on otherwise"),
        (DrawsGlobally, checks.leaves_the_global_generator_alone, "global generator"),
    ],
)
def test_a_broken_promise_is_found(broken: type, check: Check, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(plugin(broken))
