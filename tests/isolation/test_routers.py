"""Routers against sums done by hand and other implementations: those that ask every module, and those of features."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.covariance import EmpiricalCovariance, ShrunkCovariance
from torch import Tensor
from torch.nn import functional as F

from forgetlab.checks import router as router_checks
from forgetlab.engine import one_run
from forgetlab.experiment import Run
from forgetlab.isolation.module import Isolation
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.isolation.router import Router
from forgetlab.plugins.registry import Plugin, built
from forgetlab.results.store import Result
from forgetlab.seeding import drawn_from, generator
from forgetlab.strategies.isolation.modules.low_rank.lora import LoRA
from forgetlab.strategies.isolation.routers.entropy import LowestEntropy, normalised_entropy
from forgetlab.strategies.isolation.routers.key_query import KeyQuery
from forgetlab.strategies.isolation.routers.kmeans import KMeansKeys, clusters
from forgetlab.strategies.isolation.routers.mahalanobis import Mahalanobis
from forgetlab.strategies.isolation.routers.max_probability import LargestProbability, log_doubt
from forgetlab.strategies.isolation.routers.union import UnionOfHeads
from helpers import runs

NO_FEATURES = torch.empty(1, 0)


def fitted(router: Router, tasks: int) -> Router:
    for task in range(tasks):
        router.fit(task, torch.zeros(2, 4), torch.tensor([2 * task, 2 * task + 1]))
    return router


def route(router: Router, *answers: Tensor) -> list[int]:
    """Where each sample goes, given each task's logits."""
    return fitted(router, len(answers)).route(NO_FEATURES.expand(len(answers[0]), -1), answers.__getitem__).tolist()


def logits(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities]).log()


def test_entropy_is_that_of_the_softmax_over_its_largest() -> None:
    found = normalised_entropy(torch.tensor([[math.log(3), 0.0], [5.0, 5.0], [200.0, 0.0]]))
    by_hand = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert found.tolist() == pytest.approx([by_hand, 1.0, 0.0], abs=1e-6)
    assert normalised_entropy(torch.zeros(1, 7)).item() == pytest.approx(1.0)


def test_entropy_sends_a_sample_to_the_surest_task() -> None:
    first, second = torch.tensor([[3.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.0, -2.0]])
    assert route(LowestEntropy(), first, second) == [0, 1]


class Unnormalised(LowestEntropy):
    """The break: tasks of few classes win, as they cannot be very unsure."""

    def route(self, features: Tensor, answers: Callable[[int], Tensor]) -> Tensor:
        raw = [normalised_entropy(answers(task)) * math.log(answers(task).shape[1]) for task in self.tasks]
        return torch.tensor(self.tasks)[torch.stack(raw, dim=1).argmin(1)]


def test_entropy_does_not_prefer_tasks_of_few_classes() -> None:
    """0.500 nats of log 2 are 72 %, 0.588 of log 4 are 42 %."""
    two, four = logits(0.8, 0.2), logits(0.85, 0.05, 0.05, 0.05)
    assert route(LowestEntropy(), two, four) == [1]
    assert route(Unnormalised(), two, four) == [0]


def test_a_task_of_one_class_says_nothing_by_its_entropy() -> None:
    assert route(LowestEntropy(), logits(1.0), logits(0.6, 0.4)) == [1]


def test_the_union_is_won_by_the_largest_raw_logit() -> None:
    first, second = torch.tensor([[1.0, -9.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.9, 0.8], [0.0, 2.0, 2.0]])
    assert route(UnionOfHeads(), first, second) == [0, 1]


def test_a_shift_of_one_heads_logits_moves_the_union_and_not_the_entropy() -> None:
    """No softmax sees such a shift, so training does not fix it: what makes raw logits a poor measure."""
    first, second = torch.tensor([[4.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert route(UnionOfHeads(), first, second) == route(LowestEntropy(), first, second) == [0]
    assert route(UnionOfHeads(), first, second + 9) == [1]
    assert route(LowestEntropy(), first, second + 9) == [0]


class OfProbabilities(UnionOfHeads):
    """The break: each head's softmax is taken first, which is another router (largest probability)."""

    def route(self, features: Tensor, answers: Callable[[int], Tensor]) -> Tensor:
        return super().route(features, lambda task: answers(task).softmax(1))


@torch.no_grad()
def the_answer_is_the_largest_logit_of_all(router: Router) -> None:
    """Routing by the union, then answering, is one argmax over all heads side by side."""
    with drawn_from("a network"):
        network = IsolatedNetwork(
            built("model", {"name": "vit", "width": 16, "depth": 1}, input_shape=(1, 8, 8)),
            LoRA,
            router=fitted(router, 3),
            task_known=False,
        )
        images = torch.rand(64, 1, 8, 8)
        for task, classes in enumerate([[0, 4], [1, 2, 5], [3]]):
            network.open(task, classes)
            torch.nn.init.normal_(network.heads[str(task)].get_parameter("weight"))
    network.eval()
    whole = torch.stack([network.answer(0, images)[:, 0]] * 6, dim=1)
    for task, classes in network.classes_of.items():
        whole[:, classes] = network.answer(task, images)
    assert torch.equal(network(images, torch.full((64,), -1)).argmax(1), whole.argmax(1))


@pytest.mark.slow
def test_the_union_answers_with_the_largest_logit_of_all() -> None:
    the_answer_is_the_largest_logit_of_all(UnionOfHeads())
    with pytest.raises(AssertionError):
        the_answer_is_the_largest_logit_of_all(OfProbabilities())


@pytest.mark.parametrize("kind", [LowestEntropy, LargestProbability, UnionOfHeads])
def test_ties_go_to_the_earlier_task(kind: type[Router]) -> None:
    assert route(kind(), torch.zeros(1, 2), torch.zeros(1, 2)) == [0]


@pytest.mark.parametrize("kind", [LowestEntropy, LargestProbability, UnionOfHeads])
def test_it_stores_no_tensor_and_asks_the_tasks_it_was_fitted_to(kind: type[Router]) -> None:
    router, asked = kind(), list[int]()
    for task in (0, 2, 3):
        router.fit(task, torch.zeros(2, 4), torch.tensor([0, 1]))

    def answers(task: int) -> Tensor:
        asked.append(task)
        return task * torch.eye(2)

    tensors, values = router.state()
    assert tensors == {}
    again = kind()
    again.restore({}, json.loads(json.dumps(values)))
    assert again.route(torch.zeros(2, 4), answers).tolist() == [3, 3]
    assert asked == [0, 2, 3]


class ForgetsItsTasks(UnionOfHeads):
    """The break: an empty state, where the tasks are part of what was learned."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        return {}, {"tasks": [0]}


def test_a_router_that_forgets_its_tasks_is_found() -> None:
    with pytest.raises(AssertionError, match="routes otherwise"):
        router_checks.state_holds_all(Plugin("router", "broken", ForgetsItsTasks))


def test_the_doubt_is_what_the_largest_probability_lacks_over_the_most_it_can_lack() -> None:
    found = log_doubt(torch.tensor([[0.7, 0.2, 0.05, 0.05], [0.25, 0.25, 0.25, 0.25]]).log()).exp()
    assert found.tolist() == pytest.approx([0.3 / 0.75, 1.0])
    assert log_doubt(torch.tensor([[3.0], [-5.0]])).tolist() == [0.0, 0.0]


class OfRawProbabilities(LargestProbability):
    """The break: p itself, at least 1/2 with two classes and 1/4 with four; and 1.0 wherever it rounds to that."""

    def route(self, features: Tensor, answers: Callable[[int], Tensor]) -> Tensor:
        p = torch.stack([answers(task).softmax(1).amax(1) for task in self.tasks], dim=1)
        return torch.tensor(self.tasks)[p.argmax(1)]


def test_the_largest_probability_does_not_prefer_tasks_of_few_classes() -> None:
    """0.8 of two classes is 60 % of the way from chance to sure, 0.75 of four is 67 %."""
    two, four = logits(0.8, 0.2), logits(0.75, 0.15, 0.05, 0.05)
    assert route(LargestProbability(), two, four) == [1]
    assert route(OfRawProbabilities(), two, four) == [0]


def test_the_surer_of_two_tasks_is_found_where_both_probabilities_round_to_one() -> None:
    sure, surer = torch.tensor([[30.0, 0.0]]), torch.tensor([[0.0, 40.0]])
    assert sure.softmax(1).max() == surer.softmax(1).max() == 1.0
    assert route(LargestProbability(), sure, surer) == [1]
    assert route(OfRawProbabilities(), sure, surer) == [0]


def test_a_task_of_one_class_says_nothing_by_its_probability() -> None:
    assert route(LargestProbability(), logits(1.0), logits(0.6, 0.4)) == [1]


def no_answers(task: int) -> Tensor:
    raise AssertionError("a router of features asks no module")


def samples(name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator("test of routers", len(name), *name.encode()))


SLANTED = samples("slant", 6, 6)
CENTRES = 2 * samples("centres", 9, 6)


def slanted(router: Router) -> list[tuple[Tensor, Tensor]]:
    """Fit three tasks of three classes whose features lie along a slant; gives their features and labels."""
    found = []
    for task in range(3):
        labels = 3 * task + torch.arange(40 + 10 * task) % 3
        found.append((CENTRES[labels] + samples(f"train {task}", len(labels), 6) @ SLANTED, labels))
        router.fit(task, *found[-1])
    return found


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 0.7])
def test_mahalanobis_is_that_of_scikit_learn(shrinkage: float) -> None:
    """The classes' shared covariance is that of all samples about their own class' mean."""
    router = Mahalanobis(shrinkage)
    features, labels = (torch.cat(both) for both in zip(*slanted(router), strict=True))
    means = torch.stack([features[labels == label].mean(0) for label in range(9)])
    inside = (features - means[labels]).double().numpy()
    model = ShrunkCovariance(shrinkage=shrinkage, assume_centered=True).fit(inside)
    if shrinkage == 0.0:
        model = EmpiricalCovariance(assume_centered=True).fit(inside)
    test = 3 * samples("test", 200, 6)
    distance = torch.stack([torch.from_numpy(model.mahalanobis((test - mean).double().numpy())) for mean in means])
    routes = router.route(test, no_answers)
    assert torch.equal(routes, distance.argmin(0) // 3)
    assert len(routes.unique()) == 3
    assert not torch.equal(routes, torch.cdist(test, means).argmin(1) // 3)  # the plain distance says otherwise


def test_mahalanobis_with_full_shrinkage_is_the_plain_distance() -> None:
    router = Mahalanobis(1.0)
    features, labels = (torch.cat(both) for both in zip(*slanted(router), strict=True))
    means = torch.stack([features[labels == label].mean(0) for label in range(9)])
    test = 3 * samples("test", 200, 6)
    assert torch.equal(router.route(test, no_answers), torch.cdist(test, means).argmin(1) // 3)


def test_mahalanobis_bears_fewer_samples_than_features() -> None:
    """The last feature varies in no class, and alone tells the tasks: shrinkage finds it, the pseudo-inverse cannot."""
    features = torch.zeros(8, 50)
    features[:, :4] = samples("few", 8, 4)
    features[4:, -1] = 10.0
    plain, shrunk = Mahalanobis(0.0), Mahalanobis(0.1)
    for router in (plain, shrunk):
        for task, rows in enumerate(features.split(4)):
            router.fit(task, rows, torch.tensor([0, 0, 1, 1]))
        assert torch.isfinite(router.whitening).all()
    assert plain.whitening.shape[1] == 4 and plain.whitening[-1].abs().max() < 1e-6
    assert shrunk.route(features, no_answers).tolist() == [0] * 4 + [1] * 4


def spread(points: Tensor, centres: Tensor) -> float:
    return torch.cdist(points, centres).amin(1).square().sum().item()


@pytest.mark.parametrize("k", [1, 3, 5])
def test_k_means_ends_where_each_centre_is_the_mean_of_its_points(k: int) -> None:
    points = F.normalize(CENTRES[torch.arange(300) % 5] + samples("cloud", 300, 6), dim=1).double()
    centres = clusters(points, k, 300)
    nearest = torch.cdist(points, centres).argmin(1)
    assert torch.allclose(centres, torch.stack([points[nearest == j].mean(0) for j in range(k)]), atol=1e-12)
    model: Any = KMeans(k, n_init="auto")
    best = min(model.set_params(random_state=seed).fit(points.numpy()).inertia_ for seed in range(20))
    assert best <= spread(points, centres) * (1 + 1e-9) <= 1.1 * best


def test_k_means_makes_no_more_centres_than_there_are_different_points() -> None:
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(4, 1).double()
    assert sorted(clusters(points, 5, 300).tolist()) == [[0.0, 1.0], [1.0, 0.0]]


def test_k_means_keys_are_euclidean_and_blind_to_length() -> None:
    """To the first task's key the way is 0.5 along one axis, to the second's 0.3 along each of two: 0.5 against 0.42,
    but 0.5 against 0.6 by L1, which the authors' code measures."""
    router = KMeansKeys()
    router.kept = {"centres": torch.tensor([[1.0, 0, 0.5], [1.0, 0.3, 0.3]]).double(), "tasks": torch.tensor([0, 1])}
    assert router.route(torch.tensor([[7.0, 0.0, 0.0]]), no_answers).tolist() == [1]


def test_one_key_misses_a_task_of_two_clusters_and_k_means_finds_it() -> None:
    """The first task lies on both sides of the second: its key, a mean direction, is the second's too."""
    far = torch.tensor([[1.0, 0.4, 0.0], [-1.0, 0.4, 0.0]]).repeat(20, 1) + 0.05 * samples("far", 40, 3)
    near = torch.tensor([[0.0, 1.0, 0.2]]).repeat(40, 1) + 0.05 * samples("near", 40, 3)
    found: dict[str, list[float]] = {}
    for router in (KeyQuery(), KMeansKeys()):
        for task, features in enumerate((far, near)):
            router.fit(task, features, torch.zeros(40, dtype=torch.int64))
        rights = [router.route(features, no_answers) == task for task, features in enumerate((far, near))]
        found[type(router).__name__] = [right.double().mean().item() for right in rights]
    assert found["KMeansKeys"] == [1.0, 1.0]
    assert found["KeyQuery"][0] < 0.8


def test_a_key_is_where_gradient_descent_on_the_matching_loss_ends() -> None:
    queries = samples("queries", 50, 6) + torch.arange(6)
    router = KeyQuery()
    router.fit(4, queries, torch.zeros(50))
    key = samples("start", 6).requires_grad_()
    optimizer = torch.optim.SGD([key], lr=1.0)
    for _ in range(300):
        loss = -F.cosine_similarity(queries, key.unsqueeze(0)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(F.normalize(key, dim=0), router.keys[4], atol=1e-4)
    assert router.keys[4].norm().item() == pytest.approx(1.0)
    best = F.cosine_similarity(queries, router.keys[4].unsqueeze(0)).mean()
    near = F.normalize(router.keys[4] + 0.1 * samples("elsewhere", 50, 6), dim=1)
    assert all(F.cosine_similarity(queries, other.unsqueeze(0)).mean() < best for other in near)


@pytest.mark.parametrize("kind", [Mahalanobis, KMeansKeys, KeyQuery])
def test_a_stored_router_learns_on(kind: Callable[[], Any]) -> None:
    """One that was stored after a task goes on as if it never had been; nothing is drawn from the run's generator."""
    whole, first = kind(), kind()
    fitted_on = slanted(whole)
    drawn = torch.random.get_rng_state()
    first.fit(0, *fitted_on[0])
    again = kind()
    again.restore(*first.state())
    for task in (1, 2):
        again.fit(task, *fitted_on[task])
    test = 3 * samples("test", 200, 6)
    assert torch.equal(again.route(test, no_answers), whole.route(test, no_answers))
    assert torch.equal(torch.random.get_rng_state(), drawn)


def run(folder: Path, router: str) -> tuple[Run, Result, list[Mapping[str, Tensor]]]:
    """A run with a prefix per task, and what it stored of each task."""
    return runs.isolated(folder, f"isolation: prefix, router: {router}", "class-incremental")


@torch.no_grad()
def stored_answers(description: Run, stored: list[Mapping[str, Tensor]], images: Tensor) -> list[Tensor]:
    """Each task's logits, from its stored tensors alone."""
    with drawn_from("init", 0):
        backbone = built("model", description.model, input_shape=tuple(images.shape[1:]))
    found = []
    for tensors in stored:
        module: Isolation = built("isolation", description.strategy.isolation or {})
        module.attach(backbone)
        module.materialise()
        module.load_state_dict({k.removeprefix("module."): t for k, t in tensors.items() if k.startswith("module.")})
        with module.active(backbone):
            found.append(backbone(images) @ tensors["head.weight"].T + tensors["head.bias"])
    return found


def surest(answers: list[Tensor]) -> Tensor:
    p = [answer.double().softmax(1) for answer in answers]
    return torch.stack([-(one * one.log()).sum(1) for one in p], dim=1).argmin(1)  # equally many classes


def largest(answers: list[Tensor]) -> Tensor:
    return torch.cat(answers, dim=1).argmax(1) // 2  # two classes a task


def most_probable(answers: list[Tensor]) -> Tensor:
    return largest([answer.double().softmax(1) for answer in answers])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("router", "by_hand"), [("entropy", surest), ("union", largest), ("max_probability", most_probable)]
)
def test_a_run_on_digits_routes_as_its_stored_modules_say(
    tmp_path: Path, router: str, by_hand: Callable[[list[Tensor]], Tensor]
) -> None:
    description, result, stored = run(tmp_path, router)
    rows = result.scores["router_accuracy"]
    assert rows[0][0] == 1.0  # one task is known
    shares = []
    for i, task in enumerate(one_run.load_scenario(description).tasks):
        shares.append((by_hand(stored_answers(description, stored, task.test.x)) == i).double().mean().item())
    assert rows[-1] == pytest.approx(shares)
    assert sum(shares) / 5 > 0.25  # chance is 0.2
    assert result.counts["total"]["memory_bytes"] == 0
