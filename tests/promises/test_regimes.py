"""The checks of regimes turn red where a promise is broken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.batch import Batch
from forgetlab.checks import common, promises, regime
from forgetlab.checks.check import Check
from forgetlab.plugins.options import OptionError
from forgetlab.regularization.regime import Regime
from forgetlab.toolbox.fisher import trainable
from helpers.planted import planted

pytestmark = pytest.mark.usefixtures("plugins_as_before")


class Pulls(Regime):
    """Before each task but the first weights go a share of the way back to where the last began, by a drawn number."""

    kept: ClassVar[tuple[str, ...]] = ("start",)
    neutral: ClassVar[Mapping[str, Any]] = {"share": 0.0}

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.share = share
        self.start: dict[str, Tensor] = {}

    @torch.no_grad()
    def begin(self, model: nn.Module) -> None:
        drawn = self.drawn()
        for name, theta in trainable(model):
            if self.share and name in self.start:
                old = theta[: len(self.start[name])]
                old.lerp_(self.start[name], self.share * drawn)
            self.start[name] = self.noted(theta)

    def drawn(self) -> float:
        return float(torch.rand(1, generator=self.draws()))

    def noted(self, theta: Tensor) -> Tensor:
        return theta.detach().clone()


class IsNeverNeutral(Pulls):
    def rate(self, name: str, task: int) -> float:
        return 0.5


class DoesNothing(Pulls):
    def begin(self, model: nn.Module) -> None: ...


CALLS: list[int] = []


class DrawsOnWhereOthersStopped(Pulls):
    def drawn(self) -> float:
        CALLS.append(0)
        return 1 / (1 + len(CALLS))


class Explodes(Pulls):
    def noted(self, theta: Tensor) -> Tensor:
        return theta / 0


class ThawsWhatIsFrozen(Pulls):
    @torch.no_grad()
    def consolidate(self, model: nn.Module, data: Iterable[Batch]) -> None:
        for parameter in model.parameters():
            parameter *= 0.9


class ForgetsItsStart(Pulls):
    kept: ClassVar[tuple[str, ...]] = ()


class KeepsTheModelsOwn(Pulls):
    def noted(self, theta: Tensor) -> Tensor:
        return theta.detach()


class LeavesItsHooks(Pulls):
    @contextmanager
    def around(self, model: nn.Module) -> Iterator[None]:
        model.get_submodule("backbone.layers.0").register_forward_hook(lambda _, __, y: y)
        yield


class DropsBetweenSteps(Pulls):
    def begin(self, model: nn.Module) -> None:
        super().begin(model)
        backbone = model.get_submodule("backbone")
        forward = type(backbone).forward
        backbone.forward = lambda x: F.dropout(forward(backbone, x), 0.5, backbone.training)  # type: ignore[method-assign]


class RefusesAll(Pulls):
    def check(self, model: nn.Module) -> None:
        raise OptionError("no")


class TakesACallbacksName(Pulls):
    after: float = 0.0


@pytest.mark.parametrize("check", promises.CHECKS["regime"])
def test_a_good_regime_passes(check: Check) -> None:
    check(planted("regime", Pulls))


@pytest.mark.parametrize(
    ("broken", "check", "message"),
    [
        (IsNeverNeutral, regime.neutral_is_naive, "not naive training"),
        (DoesNothing, regime.neutral_is_naive, "with its defaults it is naive"),
        (DrawsOnWhereOthersStopped, regime.repeats_itself, "ends in other weights"),
        (Explodes, regime.runs_in_every_setting, "weights are not finite"),
        (RefusesAll, regime.runs_in_every_setting, "refuses every model"),
        (ThawsWhatIsFrozen, regime.frozen_stays, "moves what is frozen"),
        (ForgetsItsStart, regime.state_holds_all, "goes on otherwise"),
        (KeepsTheModelsOwn, regime.owns_what_it_keeps, "moves with the model"),
        (LeavesItsHooks, regime.chance_ends_with_the_pass, "a hook stays"),
        (DropsBetweenSteps, regime.chance_ends_with_the_pass, "answers at random"),
        (TakesACallbacksName, common.names_no_strange_callback, "takes these for callbacks, by their names: after"),
    ],
)
def test_a_broken_regime_is_found(broken: type, check: Check, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(planted("regime", broken))


def test_a_rate_of_one_half_is_half_the_rate() -> None:
    """On the weights that it names, and on no other."""

    class Halves(Regime):
        def rate(self, name: str, task: int) -> float:
            return 0.5 if name.startswith("head.") else 1.0

    class Notes(Regime):
        def __init__(self) -> None:
            super().__init__()
            self.rates: dict[str, float] = {}

        def before_update(self, strategy: Any, **kwargs: Any) -> None:
            names = {p: name for name, p in strategy.model.named_parameters()}
            self.rates = {names[p]: g["lr"] for g in strategy.optimizer.param_groups for p in g["params"]}

    notes = Notes()
    regime.trained(regime.network(), Halves(), notes)
    assert notes.rates == {name: 0.05 if name.startswith("head.") else 0.1 for name in notes.rates}
    assert len(notes.rates) == 6
