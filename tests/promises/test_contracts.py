"""Every registered plug-in keeps its kind's promises, and the checks turn red where one is broken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from forgetlab.avalanche.tensor_data import batches
from forgetlab.backbones.sites import Site
from forgetlab.checks import common, isolation, memory, promises, regularizer, rehearsal, router, task_end
from forgetlab.checks import scenario as scenario_checks
from forgetlab.checks.check import Check
from forgetlab.data.datasets import Samples
from forgetlab.isolation.module import Isolation
from forgetlab.isolation.router import Router
from forgetlab.plugins import registry
from forgetlab.plugins.registry import Plugin
from forgetlab.regularization.regularizer import Regularizer
from forgetlab.replay.memory import Memory
from forgetlab.replay.rehearsal import Rehearsal
from forgetlab.streams.scenario import Scenario, Task
from forgetlab.training.competing_classes import MASK
from helpers.planted import planted

pytestmark = pytest.mark.usefixtures("plugins_as_before")

SLOW = {  # plug-ins and checks
    "rotated_fashion_mnist",
    "permuted_fashion_mnist",
    "old_answers_stay",
    "train_and_evaluation_agree",
    "gradients_reach_the_open_module_only",
}


def promise(plugin: Plugin, check: Check) -> Any:
    marks = [pytest.mark.slow] if SLOW & {plugin.name, check.__name__} else []
    return pytest.param(plugin, check, id=f"{plugin.kind}-{plugin.name}-{check.__name__}", marks=marks)


EVERYTHING = [
    promise(plugin, check)
    for kind in registry.KINDS
    for plugin in (registry.find(kind, name) for name in registry.available(kind))
    for check in promises.checks_of(plugin)
]


@pytest.mark.parametrize(("plugin", "check"), EVERYTHING)
def test_a_registered_plugin_keeps_its_promises(plugin: Plugin, check: Check) -> None:
    check(plugin)


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))


class GoodModule(Isolation):
    """Scales what leaves a site."""

    def __init__(self, sites: tuple[str, ...] = ("mlp.in",)) -> None:
        super().__init__(sites)  # type: ignore[arg-type]

    def make(self, site: Site) -> nn.Module:
        return Scale(site.out_dim)

    def after(self, part: Any, site: Site, x: Tensor, y: Tensor) -> Tensor:
        return y * part.scale


class ClaimsIdentity(GoodModule):
    def make(self, site: Site) -> nn.Module:
        part = Scale(site.out_dim)
        nn.init.constant_(part.scale, 2.0)
        return part


class DiffersInTraining(GoodModule):
    def after(self, part: Any, site: Site, x: Tensor, y: Tensor) -> Tensor:
        return y * part.scale * (2.0 if part.training else 1.0)


SHARED: dict[str, Scale] = {}


class SharesItsTensors(GoodModule):
    def make(self, site: Site) -> nn.Module:
        return SHARED.setdefault(f"{site.key} {site.out_dim}", Scale(site.out_dim)).requires_grad_(True)


class LeavesAPartOut(GoodModule):
    def make(self, site: Site) -> nn.Module:
        part = Scale(site.out_dim)
        part.unused = nn.Parameter(torch.ones(1))  # type: ignore[assignment]
        return part


class WrongDelta(GoodModule):
    def delta(self, part: Any, site: Site) -> Tensor:
        return torch.ones(site.out_dim, site.in_dim)


BROKEN_MODULES = [
    (ClaimsIdentity, isolation.untrained_is_base, "identity_at_birth"),
    (DiffersInTraining, isolation.train_and_evaluation_agree, "mode differ"),
    (SharesItsTensors, isolation.gradients_reach_the_open_module_only, "no gradient reaches"),
    (LeavesAPartOut, isolation.gradients_reach_the_open_module_only, "no gradient reaches"),
    (WrongDelta, isolation.merged_equals_attached, "merged and attached"),
]


@pytest.mark.slow
@pytest.mark.parametrize("check", promises.CHECKS["isolation"])
def test_a_good_module_passes(check: Check) -> None:
    check(planted("isolation", GoodModule))


@pytest.mark.parametrize(("broken", "check", "message"), BROKEN_MODULES)
def test_a_broken_module_is_found(broken: type, check: Check, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(planted("isolation", broken))


def test_a_backbone_left_in_training_mode_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen parameters are not isolation: BatchNorm's statistics leak between tasks."""
    from forgetlab.backbones.mlp import MLP
    from forgetlab.isolation.network import IsolatedNetwork

    def backbone(_: str) -> MLP:
        mlp = MLP((1, 8, 8), hidden=(16,))
        mlp.layers[0].append(nn.BatchNorm1d(16))  # type: ignore[union-attr]
        return mlp.eval()

    monkeypatch.setattr(isolation, "FAMILIES", {"mlp": backbone})
    monkeypatch.setattr(isolation, "tiny", backbone)
    isolation.trained.cache_clear()
    isolation.old_answers_stay(planted("isolation", GoodModule))
    monkeypatch.setattr(IsolatedNetwork, "train", nn.Module.train)
    isolation.trained.cache_clear()
    with pytest.raises(AssertionError, match=r"a later task changed|training moved"):
        isolation.old_answers_stay(planted("isolation", GoodModule))
    isolation.trained.cache_clear()


@pytest.mark.slow
def test_a_missing_freeze_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from forgetlab.isolation.network import IsolatedNetwork

    start = IsolatedNetwork.__init__

    def thawed(self: IsolatedNetwork, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        self.backbone.requires_grad_(True)

    monkeypatch.setattr(IsolatedNetwork, "__init__", thawed)
    isolation.trained.cache_clear()
    with pytest.raises(AssertionError, match="a later task changed"):
        isolation.old_answers_stay(planted("isolation", GoodModule))
    with pytest.raises(AssertionError, match="what is closed"):
        isolation.gradients_reach_the_open_module_only(planted("isolation", GoodModule))
    isolation.trained.cache_clear()


class L2(Regularizer):
    """Half the squared distance to the last task's weights."""

    anchor: Mapping[str, Tensor] = {}
    factor: ClassVar[float] = 1.0
    offset: ClassVar[float] = 0.0

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__(strength)

    def penalty(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        theta = dict(model.named_parameters())
        old = [((theta[name][: len(a)] - a - self.offset) ** 2).sum() for name, a in self.anchor.items()]
        return self.factor * torch.stack(old).sum() / 2

    def consolidate(self, model: nn.Module, data: Any) -> None:
        self.anchor = {name: p.detach().clone() for name, p in model.named_parameters()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self.anchor), {"tasks": self.tasks}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.anchor, self.tasks = tensors, values["tasks"]


class MissesItsAnchor(L2):
    offset = 0.1


class IgnoresItsStrength(L2):
    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        self.strength = self.strength or 1.0
        super().before_backward(strategy, **kwargs)


class DetachedGradient(L2):
    def penalty(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        value = super().penalty(model, batch, output)
        return value.detach() + 0.5 * (value - value.detach())


class KeepsTheModelsOwnTensors(L2):
    def consolidate(self, model: nn.Module, data: Any) -> None:
        self.anchor = dict(model.named_parameters())


class PenalisesNewClasses(L2):
    def penalty(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return super().penalty(model, batch, output) + (output.shape[1] - 4)


class ForgetsItsState(L2):
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {name: torch.zeros_like(t) for name, t in self.anchor.items()}, {"tasks": self.tasks}


class TakesACallbacksName(L2):
    before: float = 0.0


class LearnsInTrainingMode(L2):
    """Looks at its task's data as Avalanche's loop leaves the network."""

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        for batch in batches(strategy.experience.dataset, strategy.train_mb_size, strategy.device):
            strategy.model(batch.x, batch.task)
        self.consolidate(strategy.model, [])
        self.tasks += 1


class LeavesTheModeBehind(L2):
    """What follows in the same loop would be trained without dropout."""

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().after_training_exp(strategy, **kwargs)
        strategy.model.eval()


class SetsAModeOfItsOwn(L2):
    """As if the contract had forgotten to."""

    def consolidate(self, model: nn.Module, data: Any) -> None:
        model.train()
        for batch in data:
            model(batch.x, batch.task)
        model.eval()
        super().consolidate(model, data)


class MovesStatistics(L2):
    def consolidate(self, model: nn.Module, data: Any) -> None:
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm1d):
                layer.reset_running_stats()
        super().consolidate(model, data)


@pytest.mark.parametrize("check", promises.CHECKS["regularizer"])
def test_a_good_regularizer_passes(check: Check) -> None:
    check(planted("regularizer", L2))


@pytest.mark.parametrize(
    ("broken", "check", "message"),
    [
        (MissesItsAnchor, regularizer.flat_at_its_anchor, "at its anchor"),
        (IgnoresItsStrength, regularizer.strength_zero_is_naive, "not naive"),
        (DetachedGradient, regularizer.gradient_is_right, "finite difference"),
        (ForgetsItsState, regularizer.state_holds_all, "another penalty"),
        (KeepsTheModelsOwnTensors, regularizer.owns_what_it_keeps, "moves with the model"),
        (TakesACallbacksName, common.names_no_strange_callback, "takes these for callbacks, by their names: before"),
        (PenalisesNewClasses, regularizer.survives_new_classes, "new classes alone"),
        (LearnsInTrainingMode, task_end.looks_in_evaluation_mode, "asked in training mode"),
        (SetsAModeOfItsOwn, task_end.looks_in_evaluation_mode, "asked in training mode"),
        (LeavesTheModeBehind, task_end.looks_in_evaluation_mode, "mode is not set back"),
        (MovesStatistics, task_end.looks_in_evaluation_mode, "running_mean is moved"),
    ],
)
def test_a_broken_regularizer_is_found(broken: type, check: Check, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(planted("regularizer", broken))


class KeepsTheFirst(Memory):
    """Keeps the stream's first samples."""

    def store(self, batch: Any, output: Tensor, generator: torch.Generator) -> None:
        room = self.slots.capacity - len(self.slots)
        rows = torch.arange(min(room, len(batch.y)))
        self.slots.write(rows + len(self.slots), batch.rows(rows))

    def sample(self, n: int, generator: torch.Generator) -> Any:
        return self.slots.read(torch.randperm(len(self.slots), generator=generator)[:n])


class MixesLabels(KeepsTheFirst):
    def sample(self, n: int, generator: torch.Generator) -> Any:
        drawn = super().sample(n, generator)
        return drawn._replace(y=drawn.y.flip(0))


class DropsWhatIsBeside(KeepsTheFirst):
    def store(self, batch: Any, output: Tensor, generator: torch.Generator) -> None:
        super().store(batch._replace(extra={}), output, generator)


class MixesLogits(KeepsTheFirst):
    def sample(self, n: int, generator: torch.Generator) -> Any:
        drawn = super().sample(n, generator)
        return drawn._replace(extra={name: value.flip(0) for name, value in drawn.extra.items()})


class DrawsGlobally(KeepsTheFirst):
    def sample(self, n: int, generator: torch.Generator) -> Any:
        return self.slots.read(torch.randperm(len(self.slots))[:n])


class DrawsTheFirst(KeepsTheFirst):
    def sample(self, n: int, generator: torch.Generator) -> Any:
        return self.slots.read(torch.arange(min(n, len(self.slots))))


class LosesItsCount(KeepsTheFirst):
    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        super().restore(tensors, {**values, "filled": 1})


class EndsInTrainingMode(KeepsTheFirst):
    def end(self, model: nn.Module, data: Any, generator: torch.Generator) -> None:
        model.train()
        for batch in data:
            model(batch.x, batch.task)  # type: ignore[operator]


@pytest.mark.parametrize("check", promises.CHECKS["memory"])
def test_a_good_memory_passes(check: Check) -> None:
    check(planted("memory", KeepsTheFirst))


@pytest.mark.parametrize(
    ("broken", "check", "message"),
    [
        (MixesLabels, memory.keeps_real_samples, "mixed up"),
        (DropsWhatIsBeside, memory.keeps_what_is_stored_beside, "drops what comes beside"),
        (MixesLogits, memory.keeps_what_is_stored_beside, "mixed up"),
        (DrawsTheFirst, memory.draws_are_fair, "more often"),
        (DrawsGlobally, memory.draws_are_repeatable, "not the run's"),
        (LosesItsCount, memory.state_holds_all, "goes on otherwise"),
        (EndsInTrainingMode, task_end.looks_in_evaluation_mode, "asked in training mode"),
    ],
)
def test_a_broken_memory_is_found(broken: type, check: Check, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(planted("memory", broken))


class Both(Rehearsal):
    """The cross-entropy over both, and the distance to the stored logits where there are any."""

    keeps_logits = True

    def loss(self, model: nn.Module, new: Any, drawn: Any, output: Tensor) -> Tensor:
        both = nn.functional.cross_entropy(output, torch.cat([new.y, drawn.y]))
        stored = drawn.extra["logits"]
        difference = (output[len(new.y) :, : stored.shape[1]] - stored)[stored > MASK]
        return both + difference.square().mean()


class NeglectsTheDrawn(Both):
    keeps_logits = False

    def loss(self, model: nn.Module, new: Any, drawn: Any, output: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output[: len(new.y)], new.y)


class NeglectsItsLogits(Both):
    def loss(self, model: nn.Module, new: Any, drawn: Any, output: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, torch.cat([new.y, drawn.y]))


class TakesLogitsUnasked(Both):
    keeps_logits = False


class ComparesMaskedClasses(Both):
    def loss(self, model: nn.Module, new: Any, drawn: Any, output: Tensor) -> Tensor:
        stored = drawn.extra["logits"]
        distance = (output[len(new.y) :, : stored.shape[1]] - stored).square().mean()
        return nn.functional.cross_entropy(output, torch.cat([new.y, drawn.y])) + distance


class EndsTheTaskInTrainingMode(Both):
    def end(self, model: nn.Module, slots: Any) -> None:
        kept = slots.read(torch.arange(len(slots)))
        model.train()(kept.x, kept.task)


@pytest.mark.parametrize("check", promises.CHECKS["rehearsal"])
def test_a_good_rehearsal_passes(check: Check) -> None:
    check(planted("rehearsal", Both))


@pytest.mark.parametrize(
    ("broken", "check", "message"),
    [
        (NeglectsTheDrawn, rehearsal.uses_new_and_drawn, "drawn samples have no part"),
        (NeglectsItsLogits, rehearsal.uses_the_logits_it_asks_for, "stored logits have no part"),
        (TakesLogitsUnasked, rehearsal.gradient_is_right, "does not ask for"),
        (ComparesMaskedClasses, rehearsal.uses_the_logits_it_asks_for, "were not there"),
        (EndsTheTaskInTrainingMode, task_end.looks_in_evaluation_mode, "asked in training mode"),
    ],
)
def test_a_broken_rehearsal_is_found(broken: type, check: Check, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(planted("rehearsal", broken))


class MajorityVote(Router):
    """Sends a whole batch where most of it belongs, as a well-known implementation does."""

    def __init__(self) -> None:
        self.means: dict[int, Tensor] = {}

    def fit(self, task: int, features: Tensor, labels: Tensor) -> None:
        self.means.update({int(label): features[labels == label].mean(0) for label in labels.unique()})

    def route(self, features: Tensor, answers: Callable[[int], Tensor]) -> Tensor:
        nearest = torch.cdist(features, torch.stack([self.means[label] for label in sorted(self.means)])).argmin(1)
        return (nearest // 2).mode().values.expand(len(features))


def test_a_router_that_votes_by_batch_is_found() -> None:
    with pytest.raises(AssertionError, match="changes a route"):
        router.routes_each_sample_for_itself(planted("router", MajorityVote))
    with pytest.raises(AssertionError, match="mixed up"):
        router.finds_separated_tasks(planted("router", MajorityVote))


def small_stream(seed: int) -> Scenario:
    x = torch.rand(40, 3, generator=torch.Generator().manual_seed(seed))
    y = torch.arange(40) % 4
    parts = [(y // 2 == i).nonzero().squeeze(1) for i in (0, 1)]
    halves = [(rows[: len(rows) // 2], rows[len(rows) // 2 :]) for rows in parts]
    tasks = [
        Task(f"t{i}", Samples(x[a], y[a]), Samples(x[b], y[b]), (2 * i, 2 * i + 1)) for i, (a, b) in enumerate(halves)
    ]
    return Scenario(tuple(tasks), tuple("abcd"), task_known_at_test=True)


def draws_globally(seed: int) -> Scenario:
    stream = small_stream(seed)
    first = replace(stream.tasks[0], train=Samples(torch.rand(10, 3), stream.tasks[0].train.y))
    return replace(stream, tasks=(first, *stream.tasks[1:]))


def trains_on_a_test_row(seed: int) -> Scenario:
    stream = small_stream(seed)
    x = stream.tasks[0].train.x.clone()
    x[3] = stream.tasks[1].test.x[2]
    return replace(stream, tasks=(replace(stream.tasks[0], train=Samples(x, stream.tasks[0].train.y)), stream.tasks[1]))


def tells_at_test_alone(seed: int) -> Scenario:
    return replace(small_stream(seed), boundaries_known=False)


@pytest.mark.parametrize("check", scenario_checks.ABOUT)
def test_a_good_stream_passes(check: Callable[[scenario_checks.Build], None]) -> None:
    check(small_stream)


@pytest.mark.parametrize(
    ("broken", "check", "message"),
    [
        (draws_globally, scenario_checks.same_seed_same_stream, "the same seed gives another stream"),
        (trains_on_a_test_row, scenario_checks.is_sound, r"row 3 is row 2 of task 1"),
        (tells_at_test_alone, scenario_checks.tells_what_it_promises, "told at test but not in training"),
    ],
)
def test_a_broken_stream_is_found(
    broken: scenario_checks.Build, check: Callable[[scenario_checks.Build], None], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        check(broken)


def test_samples_that_carry_what_is_not_told_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from forgetlab.avalanche.tensor_data import to_benchmark

    monkeypatch.setattr(scenario_checks, "to_benchmark", lambda scenario: to_benchmark(scenario, told=True))
    with pytest.raises(AssertionError, match="the test samples of task 0 carry"):
        scenario_checks.tells_what_it_promises(lambda seed: replace(small_stream(seed), task_known_at_test=False))
