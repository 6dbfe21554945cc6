"""Ways in which a router may know the task without inferring it: from the rest of the batch, or from the bench."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from forgetlab.avalanche.api import SupervisedPlugin
from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.mlp import MLP
from forgetlab.checks import router as checks
from forgetlab.data.datasets import Samples
from forgetlab.experiment import Budget, Train
from forgetlab.isolation.frozen_features import FrozenWork
from forgetlab.isolation.network import IsolatedNetwork, IsolationPlugin
from forgetlab.isolation.router import Router
from forgetlab.plugins import registry
from forgetlab.plugins.registry import Plugin
from forgetlab.seeding import drawn_from, generator
from forgetlab.streams.scenario import Scenario
from forgetlab.training.loop import Loop
from helpers.streams import in_pairs
from helpers.training import learn

ROUTERS = registry.available("router")
OF_FEATURES = ("prototype", "mahalanobis", "kmeans", "key_query")
N_TASKS, WIDTH = 3, 6


def cluster(task: int, n: int, name: str) -> Samples:
    """Two classes of a task, near enough to other tasks' that some samples are routed wrongly."""
    centres = 1.5 * torch.randn(2 * N_TASKS, WIDTH, generator=generator("traps", 0))
    y = 2 * task + torch.arange(n) % 2
    return Samples(centres[y] + torch.randn(n, WIDTH, generator=generator(f"traps {name}", task)), y)


def stream() -> Scenario:
    train, test = ([cluster(task, n, name) for task in range(N_TASKS)] for n, name in ((60, "train"), (40, "test")))
    return in_pairs(train, test)


class Watcher(SupervisedPlugin):
    """Notes where the samples of an evaluation go; before that, it lies about whose they are."""

    def __init__(self) -> None:
        super().__init__()
        self.routes: list[Tensor] = []
        self.claimed: int | None = None

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        if self.claimed is not None:
            strategy.experience.current_experience = self.claimed
            strategy.clock.train_exp_counter = self.claimed

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.routes.append(strategy.model.routes)


class Bench:
    """A trained network in its loop."""

    def __init__(self, router: Router, kept: bool = False) -> None:
        """``kept``: what the frozen backbone computes is computed once."""
        with drawn_from("traps"):
            backbone = MLP((WIDTH,), (8,))
        self.network = IsolatedNetwork(
            backbone,
            lambda: registry.build("isolation", "lora", {"sites": ["mlp.in"], "rank": 1}),
            router=router,
            task_known=False,
            work=FrozenWork(backbone, "traps") if kept else None,
        )
        self.watcher = Watcher()
        self.loop = Loop(
            model=self.network,
            train=Train(batch_size=20, lr=0.05),
            budget=Budget(epochs=1),
            plugins=[IsolationPlugin(), self.watcher],
        )
        if isinstance(router, Peeks):
            router.loop = self.loop
        learn(self.loop, to_benchmark(stream()))

    def routes(self, task: int, claimed: int | None = None) -> Tensor:
        """Where a task's test samples go when the bench claims that it is another."""
        self.watcher.routes, self.watcher.claimed = [], claimed
        self.loop.eval(to_benchmark(stream()).streams["test"][task])
        return torch.cat(self.watcher.routes)


class Notes(Router):
    """Notes what it is fitted on, and sends everything to the first task."""

    def __init__(self) -> None:
        self.fitted: list[tuple[Tensor, Tensor]] = []

    def fit(self, task: int, features: Tensor, labels: Tensor) -> None:
        self.fitted.append((features, labels))

    def route(self, features: Tensor, answers: Callable[[int], Tensor]) -> Tensor:
        return torch.zeros(len(features), dtype=torch.int64)


@pytest.mark.parametrize("kept", [False, True])
def test_a_router_is_fitted_on_the_bare_backbones_features(kept: bool) -> None:
    """Those that it has to route by, and not what the task's own module makes of them; also where they are kept."""
    router = Notes()
    network = Bench(router, kept).network
    assert len(router.fitted) == N_TASKS
    for task, (features, labels) in enumerate(router.fitted):
        x, y = stream().tasks[task].train
        with torch.no_grad():
            bare, under = network.bare(x), network.under(network.module_of(task), x)
        assert not torch.allclose(bare, under, atol=1e-3)
        torch.testing.assert_close(features, bare)
        assert torch.equal(labels, y)


class Peeks(Router):
    """The break: reads whose test samples the loop evaluates, as any plug-in of Avalanche could."""

    loop: Any

    def fit(self, task: int, features: Tensor, labels: Tensor) -> None: ...

    def route(self, features: Tensor, answers: Callable[[int], Tensor]) -> Tensor:
        return torch.full((len(features),), self.loop.experience.current_experience)


def no_lie_changes_a_route(bench: Bench) -> None:
    for task in range(N_TASKS):
        honest = bench.routes(task)
        assert len(honest) == 40 and bench.network.routes is not None
        for claimed in range(N_TASKS):
            assert torch.equal(bench.routes(task, claimed), honest), "the experience at hand decides the route"


@pytest.mark.parametrize("name", ROUTERS)
def test_the_current_experience_is_not_read(name: str) -> None:
    no_lie_changes_a_route(Bench(registry.build("router", name)))


def test_a_router_that_reads_the_current_experience_is_found() -> None:
    peeking = Bench(Peeks())
    assert [set(peeking.routes(task).tolist()) for task in range(N_TASKS)] == [{0}, {1}, {2}]  # never wrong, at first
    with pytest.raises(AssertionError, match="the experience at hand"):
        no_lie_changes_a_route(peeking)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_network_routes_each_sample_for_itself(name: str) -> None:
    """Through backbone and modules too: shuffled, alone, and in batches of one task; and whatever task is told."""
    network = Bench(registry.build("router", name)).network.eval()
    # the samples come from no loop
    x = torch.cat([task.test.x for task in stream().tasks])
    truth = torch.arange(N_TASKS).repeat_interleave(40)
    mixed = network.route(x)
    order = torch.randperm(len(x), generator=generator("traps", 1))
    assert torch.equal(network.route(x[order]), mixed[order])
    assert torch.equal(torch.cat([network.route(one.unsqueeze(0)) for one in x]), mixed)
    assert torch.equal(torch.cat([network.route(x[truth == task]) for task in range(N_TASKS)]), mixed)
    with torch.no_grad():
        assert torch.equal(network(x, truth), network(x, torch.full_like(truth, -1)))
    assert 0.34 < (mixed == truth).double().mean() < 1.0  # some are routed wrongly, more than chance rightly


def gaussians(distance: float, n: int, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features of four tasks with three classes each, their classes and their tasks."""
    labels = torch.arange(12).repeat_interleave(n)
    noise = torch.randn(len(labels), 16, generator=generator(f"gaussians {name}"))
    return distance * torch.eye(12, 16)[labels] + noise, labels, labels // 3


def fitted(name: str, features: Tensor, labels: Tensor, tasks: Tensor) -> Router:
    router: Router = registry.build("router", name)
    for task in tasks.unique().tolist():
        router.fit(task, features[tasks == task], labels[tasks == task])
    return router


def unrelated(features: Tensor) -> Callable[[int], Tensor]:
    """Answers that know the sample, and nothing of whose task it is."""
    return lambda task: (features.square() @ torch.randn(16, 3, generator=generator("unrelated", task))).sin()


@pytest.mark.parametrize("name", OF_FEATURES)
def test_separable_gaussians_are_told_apart_wholly(name: str) -> None:
    router = fitted(name, *gaussians(40.0, 30, "train"))
    features, _, tasks = gaussians(40.0, 100, "test")
    assert torch.equal(router.route(features, unrelated(features)), tasks)


@pytest.mark.parametrize("name", ROUTERS)
def test_shuffled_task_ids_are_found_by_chance_only(name: str) -> None:
    """One in four; 4000 samples leave a deviation of 0.7 % around it."""
    features, labels, tasks = gaussians(40.0, 200, "train")
    shuffled = tasks[torch.randperm(len(tasks), generator=generator("traps", 2))]
    router = fitted(name, features, labels, shuffled)
    features = gaussians(40.0, 334, "test")[0][:4000]
    ids = torch.arange(4000)[torch.randperm(4000, generator=generator("traps", 3))] % 4
    share = (router.route(features, unrelated(features)) == ids).double().mean().item()
    assert share == pytest.approx(0.25, abs=0.03)


class BatchVote(Router):
    """The break: the batch goes where most of its samples belong, as in the official code of L2P."""

    def __init__(self) -> None:
        self.nearest: Router = registry.build("router", "prototype")

    def fit(self, task: int, features: Tensor, labels: Tensor) -> None:
        self.nearest.fit(task, features, labels)

    def route(self, features: Tensor, answers: Callable[[int], Tensor]) -> Tensor:
        return self.nearest.route(features, answers).mode().values.expand(len(features))


@pytest.mark.parametrize("check", [checks.routes_each_sample_for_itself, checks.a_pure_batch_is_no_help])
def test_a_router_that_votes_by_batch_is_found(check: Callable[[Plugin], None]) -> None:
    check(Plugin("router", "prototype", registry.find("router", "prototype").factory))
    with pytest.raises(AssertionError, match="changes a route"):
        check(Plugin("router", "vote", BatchVote))


def test_the_vote_knows_the_task_of_pure_batches_and_of_no_others() -> None:
    """What the leak is worth: with batches of one task it seems to infer all that the samples alone do not tell."""
    voting, alone = BatchVote(), registry.build("router", "prototype")
    train, test = gaussians(1.5, 200, "train"), gaussians(1.5, 200, "test")
    for router in (voting, alone):
        for task in range(4):
            router.fit(task, *(tensor[train[2] == task] for tensor in train[:2]))
    features, _, tasks = test
    pure = torch.cat([voting.route(features[tasks == task], unrelated(features)) for task in range(4)])
    order = torch.randperm(len(tasks), generator=generator("traps", 4))
    mixed = voting.route(features[order], unrelated(features))
    shares = [(found == truth).double().mean().item() for found, truth in ((pure, tasks), (mixed, tasks[order]))]
    honest = (alone.route(features, unrelated(features)) == tasks).double().mean().item()
    assert shares == [1.0, 0.25]
    assert 0.4 < honest < 0.9
