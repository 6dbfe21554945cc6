"""The checks of projections turn red where a promise is broken, and a projection runs in a plain Avalanche script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from forgetlab.checks import common, projection, promises
from forgetlab.checks.check import Check
from forgetlab.plugins import registry
from forgetlab.plugins.registry import Plugin
from forgetlab.regularization.keeper import Tensors
from forgetlab.regularization.projection import Projection


class Off(Projection):
    """Without the direction of the last weights, by parameter."""

    kept: ClassVar[tuple[str, ...]] = ("directions",)

    def __init__(self) -> None:
        super().__init__()
        self.directions = Tensors()

    def consolidate(self, model: nn.Module, data: Any) -> None:
        self.directions = {name: p.detach() / p.detach().norm() for name, p in model.named_parameters()}

    def project(self, gradient: Tensors, references: Sequence[Tensors]) -> Tensors:
        return {name: self.off(g, self.directions.get(name)) for name, g in gradient.items()}

    def off(self, g: Tensor, direction: Tensor | None) -> Tensor:
        if direction is None:
            return g
        old = g[: len(direction)]
        return torch.cat([old - (old * direction).sum() * direction, g[len(direction) :]])


class Half(Off):
    def off(self, g: Tensor, direction: Tensor | None) -> Tensor:
        return g if direction is None else g / 2


class Twice(Off):
    def off(self, g: Tensor, direction: Tensor | None) -> Tensor:
        return g if direction is None else 2 * super().off(g, direction) - g


class Nothing(Off):
    def off(self, g: Tensor, direction: Tensor | None) -> Tensor:
        return g


class All(Off):
    def off(self, g: Tensor, direction: Tensor | None) -> Tensor:
        return 0 * g


class Oblique(Off):
    def off(self, g: Tensor, direction: Tensor | None) -> Tensor:
        if direction is None or direction.dim() < 2:
            return g
        left = g.clone()
        left[0, 0] -= (g[: len(direction)] * direction).sum() / direction[0, 0]
        return left


class LeavesNewRowsStill(Off):
    def off(self, g: Tensor, direction: Tensor | None) -> Tensor:
        known = 0 if direction is None else len(direction)
        return torch.cat([super().off(g, direction)[:known], 0 * g[known:]])


class KeepsTheLiveWeights(Off):
    def consolidate(self, model: nn.Module, data: Any) -> None:
        self.directions = {name: p.detach() for name, p in model.named_parameters()}


class ActsInPlace(Off):
    def off(self, g: Tensor, direction: Tensor | None) -> Tensor:
        return g if direction is None else g.copy_(super().off(g, direction))


class ForgetsItsState(Off):
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super().state()
        return {name: t.roll(1) for name, t in tensors.items()}, values


class DrawsGlobally(Off):
    def consolidate(self, model: nn.Module, data: Any) -> None:
        drawn = {name: torch.randn_like(p) for name, p in model.named_parameters()}
        self.directions = {name: d / d.norm() for name, d in drawn.items()}


class ActsAtOnce(Off):
    def begin(self, model: nn.Module) -> None:
        with torch.no_grad():
            next(model.parameters()).mul_(0.9)


class WithReference(Projection):
    """A-GEM's."""

    references: ClassVar[Literal["none", "mixed", "tasks"]] = "mixed"
    always: ClassVar[bool] = False
    share: ClassVar[float] = 1.0

    def project(self, gradient: Tensors, references: Sequence[Tensors]) -> Tensors:
        for r in references:
            along = projection.dot(gradient, r)
            if along < 0 or self.always:
                return {n: g - self.share * along / projection.dot(r, r) * r[n] for n, g in gradient.items()}
        return gradient


class Always(WithReference):
    always = True


class TooShort(WithReference):
    share = 0.5


@pytest.mark.parametrize("check", promises.CHECKS["projection"])
@pytest.mark.parametrize("good", [Off, WithReference])
def test_a_good_projection_passes(good: type, check: Check) -> None:
    check(Plugin("projection", "good", good))


@pytest.mark.parametrize(
    ("broken", "check", "message"),
    [
        (Half, projection.undoes_nothing, "projected again"),
        (Twice, projection.undoes_nothing, "projected again"),
        (Oblique, projection.undoes_nothing, "at a right angle"),
        (Nothing, projection.undoes_nothing, "nothing is taken off"),
        (All, projection.undoes_nothing, "nothing is left"),
        (TooShort, projection.undoes_nothing, "raises an old loss"),
        (Always, projection.undoes_nothing, "raises no old loss is changed"),
        (ForgetsItsState, projection.state_holds_all, "restored state projects otherwise"),
        (DrawsGlobally, projection.state_holds_all, "the same task gives another"),
        (KeepsTheLiveWeights, projection.owns_what_it_keeps, "moves with the model"),
        (ActsInPlace, projection.owns_what_it_keeps, "changed in its place"),
        (LeavesNewRowsStill, projection.survives_new_classes, "new classes cannot learn"),
        (ActsAtOnce, projection.first_task_is_naive, "the first task is not naive"),
        (Nothing, projection.first_task_is_naive, "the second task is naive"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_projection_is_found(broken: type, check: Check, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(Plugin("projection", "broken", broken))


def test_the_name_of_no_callback_is_taken() -> None:
    broken = type("TakesACallbacksName", (Off,), {"after": 0})
    with pytest.raises(AssertionError, match="takes these for callbacks"):
        common.names_no_strange_callback(Plugin("projection", "broken", broken))


@pytest.fixture(scope="module")
def naive() -> list[float]:
    return in_a_script()


METHODS: Mapping[str, dict[str, Any]] = {"agem": {}, "gem": {}, "ogd": {"samples": 50}, "gpm": {}}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_projection_runs_in_a_plain_avalanche_script(name: str, naive: list[float]) -> None:
    """Its domain-incremental tasks all carry the label 0: what is old is told by when it came."""
    method = registry.build("projection", name, METHODS[name])
    found = [method]
    if method.references != "none":
        method.memory = registry.build("memory", "task_ring", {"capacity": 90})
        method.memory.joins = False
        found = [method.memory, method]
    final = in_a_script(*found)
    print(name, final, naive)
    assert method.tasks == 3 and sum(final) > sum(naive) + 0.1


def in_a_script(*found: Any) -> list[float]:
    """The accuracies on three ways to shuffle the digits' pixels, in the end."""
    from avalanche.benchmarks import tensors_benchmark
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.logging import BaseLogger
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    torch.manual_seed(0)
    parts = list(shuffled())
    stream = tensors_benchmark(
        train_tensors=[(x[:600], y[:600]) for x, y in parts],
        test_tensors=[(x[600:], y[600:]) for x, y in parts],
        task_labels=[0] * len(parts),
    )
    model = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=20,
        train_epochs=5,
        plugins=[*found],
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[BaseLogger()]),
    )
    for experience in stream.train_stream:
        strategy.train(experience)
    return list(strategy.eval(stream.test_stream).values())


def shuffled() -> Iterator[tuple[Tensor, Tensor]]:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    for task in range(3):
        draw = torch.Generator().manual_seed(task)
        rows = torch.randperm(len(x), generator=draw)[:900]
        yield x[rows][:, torch.randperm(64, generator=draw)], y[rows]
