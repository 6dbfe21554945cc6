"""What a router promises."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from forgetlab.checks.common import make, require
from forgetlab.isolation.router import Router
from forgetlab.plugins.registry import Plugin
from forgetlab.seeding import generator


def separated(plugin: Plugin) -> tuple[Router, Tensor, Tensor]:
    """A router fitted to three tasks of two distant classes each, and test features with their tasks."""
    router, draw = make(plugin), generator("checks", 6)
    centres = 10 * torch.eye(6, 8)

    def features(label: int, n: int) -> Tensor:
        return centres[label] + 0.1 * torch.randn(n, 8, generator=draw)

    for task in range(3):
        labels = torch.tensor([2 * task, 2 * task + 1]).repeat_interleave(20)
        router.fit(task, torch.cat([features(2 * task, 20), features(2 * task + 1, 20)]), labels)
    return router, torch.cat([features(label, 5) for label in range(6)]), torch.arange(6).repeat_interleave(5) // 2


def answers_of(features: Tensor) -> Callable[[int], Tensor]:
    """Logits of modules that are sure of their own task's samples only."""
    return lambda task: 5 * features[:, 2 * task : 2 * task + 2]


def finds_separated_tasks(plugin: Plugin) -> None:
    """Tasks that lie far apart are all told apart."""
    router, features, tasks = separated(plugin)
    wrong = int((router.route(features, answers_of(features)) != tasks).sum())
    require(not wrong, f"well separated tasks are mixed up: {wrong} of {len(tasks)} samples are routed to a wrong one")


def blurred(plugin: Plugin) -> tuple[Router, Tensor, Tensor]:
    """The same with test features that are noisy enough to be routed wrongly here and there."""
    router, features, tasks = separated(plugin)
    return router, features + 3 * torch.randn(features.shape, generator=generator("checks", 7)), tasks


def routes_each_sample_for_itself(plugin: Plugin) -> None:
    """A sample's route is the same in any batch: alone, shuffled, or with some samples twice."""
    router, features, _ = blurred(plugin)
    whole = router.route(features, answers_of(features))
    told = f"not one route for each sample: {tuple(whole.shape)} for {len(features)} samples"
    require(whole.shape == (len(features),), told)
    draw = generator("checks", 8)
    for order in (torch.randperm(len(features), generator=draw), torch.randint(len(features), (50,), generator=draw)):
        shuffled = router.route(features[order], answers_of(features[order]))
        require(torch.equal(shuffled, whole[order]), "the order of the batch changes a route")
    alone = torch.cat([router.route(f.unsqueeze(0), answers_of(f.unsqueeze(0))) for f in features])
    require(torch.equal(alone, whole), "the rest of the batch changes a route")


def a_pure_batch_is_no_help(plugin: Plugin) -> None:
    """Samples of one task only are routed as they are among others: what they share tells nothing."""
    router, features, tasks = blurred(plugin)
    mixed = router.route(features, answers_of(features))
    for task in tasks.unique():
        pure = features[tasks == task]
        found = router.route(pure, answers_of(pure))
        require(torch.equal(found, mixed[tasks == task]), "a batch of one task changes a route")


def state_holds_all(plugin: Plugin) -> None:
    """A new router with the restored state routes alike."""
    router, features, _ = separated(plugin)
    new: Router = make(plugin)
    new.restore(*router.state())
    whole = router.route(features, answers_of(features))
    require(torch.equal(new.route(features, answers_of(features)), whole), "a restored router routes otherwise")


CHECKS = (finds_separated_tasks, routes_each_sample_for_itself, a_pure_batch_is_no_help, state_holds_all)
