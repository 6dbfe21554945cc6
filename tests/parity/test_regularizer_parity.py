"""Our penalties in our loop beside Avalanche's in Avalanche's, on the same batches from the same weights.

Where Avalanche takes a gradient of a batch's mean for that of each sample, the two agree at a batch size of 1 alone.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab.avalanche.api import BaseLogger, CLScenario, EvaluationPlugin, SupervisedPlugin, stock_plugin
from forgetlab.batch import Batch
from forgetlab.plugins import registry
from helpers import training
from helpers.streams import opposed, under_one_label
from helpers.training import SEED, Stock, Weights, difference, weights

FEATURES = 16
TOLERANCE = 1e-6  # in a weight, after all tasks


def benchmark(tasks: int = 3) -> CLScenario:
    """40 samples a task; all carry one task label, as one head wants."""
    return under_one_label(opposed("parity", 40, tasks))


class Net(nn.Module):
    """A backbone and a head, told apart for us and for Avalanche's LFL."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, FEATURES), nn.Tanh())
        self.head = nn.Linear(FEATURES, 6)

    def get_features(self, x: Tensor) -> Tensor:
        return self.backbone(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


class Noting(Net):
    """It keeps the features that it made last, as Avalanche's feature distillation wants it."""

    features: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.backbone(x)
        return self.head(self.features)


def in_avalanche(plugin: SupervisedPlugin, batch_size: int, tasks: int = 3, model: nn.Module | None = None) -> Weights:
    how: Any = {"batch_size": batch_size, "criterion": nn.CrossEntropyLoss()}
    return weights(training.in_avalanche(model or Net(), benchmark(tasks), plugin, **how))


def in_our_loop(plugin: SupervisedPlugin | None, batch_size: int, tasks: int = 3) -> Weights:
    found = [plugin] if plugin else []
    return weights(training.learned(Net(), benchmark(tasks), *found, batch_size=batch_size, seed=SEED))


def stock(spec: dict[str, Any]) -> Any:
    return stock_plugin(spec)


def ours(name: str, **options: Any) -> Any:
    return registry.build("regularizer", name, options)


def same_way(mine: Any, theirs: Any, batch_size: int, tasks: int = 3, model: nn.Module | None = None) -> float:
    """How far apart the two end; both do something."""
    end = in_our_loop(mine, batch_size, tasks)
    assert difference(end, in_our_loop(None, batch_size, tasks)) > 1e-3
    return difference(end, in_avalanche(theirs, batch_size, tasks, model))


@pytest.mark.slow
def test_mas_is_avalanches_where_a_batch_is_one_sample() -> None:
    """Over two tasks: from the third on Avalanche averages importances, and the paper adds them up."""
    mine, theirs = ours("mas", strength=0.05), stock({"plugin": "MASPlugin", "lambda_reg": 0.05})
    assert same_way(mine, theirs, batch_size=1, tasks=2) < TOLERANCE
    for name, value in mine.importance.items():
        torch.testing.assert_close(value, 2 * theirs.importance[name].data, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_avalanches_mas_depends_on_the_batch_size() -> None:
    found = {}
    for size in (1, 20):
        mine, theirs = ours("mas"), stock({"plugin": "MASPlugin"})
        model = Net()
        in_avalanche(theirs, 1, tasks=1, model=model)
        strategy = Stock(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0), train_mb_size=size)
        strategy.experience = benchmark(1).streams["train"][0]
        strategy.device = torch.device("cpu")
        columns = strategy.experience.dataset.columns()
        parts = zip(*(column.split(size) for column in columns), strict=True)
        mine.consolidate(model.eval(), [Batch(*part) for part in parts])
        found[size] = (total(mine.importance), total(theirs._get_importance(strategy)))
    (our_one, their_one), (our_many, their_many) = found[1], found[20]
    assert our_one == pytest.approx(our_many, rel=1e-4) and our_one == pytest.approx(their_one, rel=1e-4)
    assert their_many < 0.8 * their_one


def total(importance: dict[str, Any]) -> float:
    return sum(float(getattr(value, "data", value).sum()) for value in importance.values())


@pytest.mark.slow
def test_ewc_is_avalanches_where_a_batch_is_one_sample() -> None:
    """Which has the true label's Fisher, and no 1/2."""
    theirs = stock({"plugin": "EWCPlugin", "ewc_lambda": 0.5})
    assert same_way(ours("ewc", strength=1.0, fisher="empirical"), theirs, batch_size=1) < TOLERANCE


@pytest.mark.slow
def test_online_ewc_is_avalanches_where_a_batch_is_one_sample() -> None:
    """Which fades a Fisher once less: in the paper it fades when it is used, too."""
    theirs = stock({"plugin": "EWCPlugin", "ewc_lambda": 0.5, "mode": "online", "decay_factor": 0.5})
    mine = ours("online_ewc", strength=2.0, gamma=0.5, fisher="empirical")
    assert same_way(mine, theirs, batch_size=1) < TOLERANCE


def test_with_larger_batches_avalanches_ewc_holds_less() -> None:
    """The square of a mean is smaller than the mean of squares: its penalty is another one for each batch size."""
    theirs = stock({"plugin": "EWCPlugin", "ewc_lambda": 0.5})
    mine = ours("ewc", strength=1.0, fisher="empirical")
    assert same_way(mine, theirs, batch_size=8) > 1e-3
    assert total(mine.weight) > 2 * sum(total(theirs.importances[task]) for task in range(3))


@pytest.fixture
def lfl(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Avalanche's, for any model that has features."""
    plugin: Any = stock({"plugin": "LFLPlugin", "lambda_e": 0.5})
    monkeypatch.setattr(type(plugin), "before_training", lambda *_, **__: None)
    return plugin


def test_lfl_is_avalanches(lfl: Any) -> None:
    """Which divides by the number of features in place of 2."""
    mine = ours("feature_distillation", freeze_head=True, strength=2 * 0.5 / FEATURES)
    assert same_way(mine, lfl, batch_size=8) < TOLERANCE


def test_a_head_that_is_not_frozen_is_no_lfl(lfl: Any) -> None:
    assert same_way(ours("feature_distillation", strength=2 * 0.5 / FEATURES), lfl, batch_size=8) > 1e-2


def test_avalanches_lfl_trains_in_evaluation_mode_from_the_second_task_on(lfl: Any) -> None:
    """Its model has no dropout and no new statistics from then on; ours has."""
    for plugin, expected in ((lfl, False), (ours("feature_distillation", freeze_head=True), True)):
        modes: list[bool] = []

        class Look(SupervisedPlugin):
            def after_update(self, strategy: Any, modes: list[bool] = modes, **kwargs: Any) -> None:
                modes.append(strategy.model.training)

        strategy = Stock(
            model=(model := Net()),
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            train_mb_size=8,
            plugins=[plugin, Look()],
            evaluator=EvaluationPlugin(loggers=[BaseLogger()]),
        )
        training.learn(strategy, benchmark(2))
        n = len(modes) // 2
        assert modes == [True] * n + [expected] * n


def test_the_cosine_of_features_is_avalanches() -> None:
    theirs = stock({"plugin": "FeatureDistillationPlugin", "alpha": 2.0})
    mine = ours("feature_distillation", distance="cosine", strength=2.0)
    assert same_way(mine, theirs, batch_size=8, model=Noting()) < TOLERANCE


def test_avalanches_squared_distance_of_features_does_not_run() -> None:
    theirs = stock({"plugin": "FeatureDistillationPlugin", "mode": "mse"})
    with pytest.raises(TypeError, match="dim"):
        in_avalanche(theirs, 8, tasks=2, model=Noting())


RWALK = {"plugin": "RWalkPlugin", "ewc_lambda": 0.1, "ewc_alpha": 0.9, "delta_t": 4}
RWalk: Any = type(stock(RWALK))
copied: Any = sys.modules[RWalk.__module__].copy_params_dict  # type: ignore[attr-defined]
DAMPING = 1e-3


class Repaired(RWalk):
    """Avalanche's with what the paper has: a Fisher that is new after each stretch, damping, no gains below 0.

    And with the two liberties that ours takes: a Fisher that starts at 0, and once more at a task's end.
    """

    def _update_grad(self, strategy: Any) -> None:
        super()._update_grad(strategy)
        strategy.model.train()

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._update_grad(strategy)
        self.iter_params = copied(strategy.model)

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if self._is_checkpoint_iter(strategy):
            self._update_loss(strategy)
            self._renew(strategy)
            super().after_training_iteration(strategy)
        else:
            super().after_training_iteration(strategy)

    def _renew(self, strategy: Any) -> None:
        gradients = self.iter_grad
        self._update_grad(strategy)
        if self.iter_importance is None:
            self.iter_importance = copied(strategy.model)
            for one in self.iter_importance.values():
                one.data = torch.zeros_like(one.data)
        self._update_importance(strategy)
        self.iter_grad = {name: one for name, one in gradients.items()}
        for one in self.iter_grad.values():
            one.data = torch.zeros_like(one.data)  # counted already

    @torch.no_grad()
    def _update_score(self, strategy: Any) -> None:
        for name, theta in strategy.model.named_parameters():
            f, gain = self.iter_importance[name].data, self.checkpoint_loss[name].data.clamp(min=0)
            distance = f * (theta - self.checkpoint_params[name].data) ** 2 / 2
            self.checkpoint_scores[name].data += gain / (distance + DAMPING)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._renew(strategy)
        super().after_training_exp(strategy)


@pytest.mark.slow
def test_rwalk_is_avalanches_repaired_where_a_batch_is_one_sample() -> None:
    mine, theirs = ours("rwalk", strength=0.1, alpha=0.9, delta_t=4), Repaired(**without_name(RWALK))
    assert same_way(mine, theirs, batch_size=1) < TOLERANCE


def without_name(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != "plugin"}


@pytest.mark.slow
def test_avalanches_rwalk_as_it_is_goes_another_way() -> None:
    mine, theirs = ours("rwalk", strength=0.1, alpha=0.9, delta_t=4), stock(RWALK)
    assert same_way(mine, theirs, batch_size=1) > 1e-3


def test_avalanches_rwalk_trains_in_evaluation_mode() -> None:
    modes: list[bool] = []
    plugin: Any = stock(RWALK)
    update = plugin._update_loss
    plugin._update_loss = lambda strategy: (modes.append(strategy.model.training), update(strategy))
    in_avalanche(plugin, 8, tasks=1)
    assert modes and not any(modes)
