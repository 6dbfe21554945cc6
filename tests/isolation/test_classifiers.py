"""Closed forms against scikit-learn and sums by hand; what they promise, each with a break that is found; and runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, relu

from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.batch import UNKNOWN
from forgetlab.checks import classifier as contract
from forgetlab.checks.check import Check
from forgetlab.config.load import load
from forgetlab.engine import one_run
from forgetlab.experiment import Run
from forgetlab.isolation.classifier import Classifier, Ridge, add_samples, means
from forgetlab.isolation.classifier import ridge as solved
from forgetlab.learners.closed_form import ClosedForm
from forgetlab.learners.context import Context
from forgetlab.plugins.registry import Plugin
from forgetlab.seeding import generator
from forgetlab.strategies.isolation.classifiers.ease import EASE
from forgetlab.strategies.isolation.classifiers.ncm import NearestClassMean
from forgetlab.strategies.isolation.classifiers.ranpac import STRENGTHS, RanPAC
from forgetlab.strategies.isolation.classifiers.recursive_ridge import RecursiveRidge
from forgetlab.strategies.isolation.classifiers.slda import StreamingLDA
from forgetlab.training.competing_classes import MASK

Make = Callable[[], Classifier]
SUMS: list[Make] = [
    NearestClassMean,
    lambda: NearestClassMean("euclidean"),
    StreamingLDA,
    Ridge,
    lambda: RanPAC(40, strength=0.5),
    lambda: RecursiveRidge(0),
    lambda: RecursiveRidge(40),
]


def samples(n: int = 120, width: int = 6, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated features around the classes' centres (n, 1, d), and labels in which every class stands."""
    draw = generator("test_classifiers", seed)
    labels = torch.randint(classes, (n,), generator=draw)
    labels[:classes] = torch.arange(classes)
    mix, centres = torch.randn(width, width, generator=draw), 2 * torch.randn(classes, width, generator=draw)
    return (centres[labels] + torch.randn(n, width, generator=draw) @ mix + 1).unsqueeze(1), labels


def taught(make: Make, *parts: tuple[Tensor, Tensor]) -> Classifier:
    classifier = make()
    for task, (features, labels) in enumerate(parts):
        classifier.update(task, features, labels)
        classifier.close(task)
    return classifier


def close(a: Tensor, b: Any, bound: float = 1e-9) -> bool:
    b = torch.as_tensor(b)
    return bool((a - b).abs().max() <= bound * b.abs().max())


def by_class(f: Tensor, y: Tensor, order: list[int]) -> list[tuple[Tensor, Tensor]]:
    return [(f[y == label], y[y == label]) for label in order]


@pytest.mark.parametrize("make", SUMS)
def test_class_after_class_in_any_order_is_all_at_once(make: Make) -> None:
    f, y = samples()
    whole, asked = taught(make, (f, y)), samples(seed=1)[0]
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        assert close(taught(make, *by_class(f, y, order)).logits(asked), whole.logits(asked))
    backwards = taught(make, *[(f[i : i + 1], y[i : i + 1]) for i in range(len(y) - 1, -1, -1)])
    assert close(backwards.logits(asked), whole.logits(asked))


class LastBatchAlone(NearestClassMean):
    """The break: a mean that is replaced, not added to."""

    def update(self, task: int, features: Tensor, labels: Tensor) -> None:
        self.sums.pop("fy", None)
        super().update(task, features, labels)


def test_a_forgotten_sum_is_found() -> None:
    f, y = samples()
    whole = taught(LastBatchAlone, (f, y)).logits(f)
    assert not close(taught(LastBatchAlone, *by_class(f, y, [0, 1, 2, 3])).logits(f), whole)


@pytest.mark.parametrize("make", SUMS)
def test_sums_are_float64_whatever_the_features_are(make: Make) -> None:
    f, y = samples()
    tensors, _ = taught(make, (f, y)).state()
    assert {t.dtype for name, t in tensors.items() if name != "projection"} == {torch.float64}


def test_ncm_is_the_nearest_mean_by_hand() -> None:
    from sklearn.neighbors import NearestCentroid

    f, y = samples()
    asked = samples(seed=1)[0]
    mu = torch.stack([f[y == c, 0].double().mean(0) for c in range(4)])
    by_cosine = taught(NearestClassMean, (f, y)).logits(asked)
    assert close(by_cosine, cosine_similarity(asked.double(), mu.unsqueeze(0), dim=2))
    euclidean = taught(lambda: NearestClassMean("euclidean"), (f, y)).logits(asked)
    centroids = NearestCentroid().fit(f[:, 0].double().numpy(), y)
    assert euclidean.argmax(1).tolist() == centroids.predict(asked[:, 0].double().numpy()).tolist()
    assert not torch.equal(euclidean.argmax(1), by_cosine.argmax(1))


@pytest.mark.parametrize("shrinkage", [1e-4, 0.3, 1.0])
def test_slda_is_scikit_learns_lda_without_its_priors(shrinkage: float) -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    f, y = samples()
    asked = samples(seed=1)[0]
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(f[:, 0].double().numpy(), y)
    expected = torch.tensor(lda.decision_function(asked[:, 0].double().numpy())) - torch.tensor(lda.priors_).log()
    assert close(taught(lambda: StreamingLDA(shrinkage), *by_class(f, y, [3, 1, 0, 2])).logits(asked), expected)


def test_slda_answers_after_one_sample_of_each_class() -> None:
    f, y = samples(n=4)
    assert torch.equal(taught(StreamingLDA, (f, y)).logits(f).argmax(1), y)


def sklearns_ridge(x: Tensor, y: Tensor, asked: Tensor, strength: float, intercept: bool) -> Tensor:
    from sklearn.linear_model import Ridge as Theirs

    onehot = torch.nn.functional.one_hot(y).numpy()
    fitted = Theirs(alpha=strength, fit_intercept=intercept, solver="cholesky").fit(x.double().numpy(), onehot)
    return torch.tensor(fitted.predict(asked.double().numpy())).reshape(len(asked), -1)


def test_ridge_is_scikit_learns() -> None:
    f, y = samples()
    asked = samples(seed=1)[0]
    g = (f[:, 0].double() - f[:, 0].double().mean(0)).square().sum(0).mean().item()
    expected = sklearns_ridge(f[:, 0], y, asked[:, 0], 0.01 * g, intercept=True)
    assert close(taught(lambda: Ridge(0.01), *by_class(f, y, [1, 0, 3, 2])).logits(asked), expected)


def test_recursive_ridge_is_the_joint_ridge_after_any_number_of_tasks() -> None:
    f, y = samples(n=400, width=20)
    asked = samples(width=20, seed=1)[0]
    for order in ([0, 1, 2, 3], [3, 1, 2, 0]):
        recursive = RecursiveRidge(0, strength=0.1)
        for task, label in enumerate(order):
            for one in f[y == label].split(13):
                recursive.update(task, one, torch.full((len(one),), label))
            so_far = torch.isin(y, torch.tensor(order[: task + 1]))
            expected = sklearns_ridge(f[so_far, 0], y[so_far], asked[:, 0], 0.1, intercept=False)
            seen = sorted(order[: task + 1])
            found = recursive.logits(asked)
            assert close(found[:, seen], expected[:, seen], 1e-8)
            assert bool((found[:, [c for c in range(found.shape[1]) if c not in seen]] == MASK).all())


class WithoutTheOldInverse(RecursiveRidge):
    """The break: each batch starts from the first inverse, as if it were alone."""

    def update(self, task: int, features: Tensor, labels: Tensor) -> None:
        if "inverse" in self.sums:
            self.sums["inverse"] = torch.eye(features.shape[2]).double() / self.strength
        super().update(task, features, labels)


def test_a_recursion_that_forgets_is_found() -> None:
    f, y = samples()
    expected = sklearns_ridge(f[:, 0], y, f[:, 0], 0.1, intercept=False)
    assert close(taught(lambda: RecursiveRidge(0), *by_class(f, y, [0, 1, 2, 3])).logits(f), expected, 1e-8)
    forgetful = taught(lambda: WithoutTheOldInverse(0), *by_class(f, y, [0, 1, 2, 3]))
    assert not close(forgetful.logits(f), expected, 1e-3)


def acils_code(p: Tensor, batches: list[tuple[Tensor, Tensor]], asked: Tensor, gamma: float) -> Tensor:
    """Answers of Analytic-continual-learning's ACIL after these batches: a linear layer P without bias, relu, and the
    recursive least squares of its RecursiveLinear, whose columns grow with the classes."""
    inverse, weight = torch.eye(p.shape[1]).double() / gamma, torch.zeros(p.shape[1], 0).double()
    for f, y in batches:
        h, onehot = relu(f.double() @ p), torch.nn.functional.one_hot(y).double()
        more = onehot.shape[1] - weight.shape[1]
        weight = torch.nn.functional.pad(weight, (0, max(0, more)))
        onehot = torch.nn.functional.pad(onehot, (0, max(0, -more)))
        k = torch.inverse(torch.eye(len(h)).double() + h @ inverse @ h.T)
        inverse = inverse - inverse @ h.T @ k @ h @ inverse
        weight = weight + inverse @ h.T @ (onehot - h @ weight)
    return relu(asked.double() @ p) @ weight


def test_recursive_ridge_is_acil_with_its_random_layer() -> None:
    f, y = samples(n=200, width=9)
    asked = samples(width=9, seed=1)[0]
    made = RecursiveRidge(30)
    made.seed = 5
    batches = [
        (rows, labels)
        for f_c, y_c in by_class(f, y, [0, 2, 1, 3])
        for rows, labels in zip(f_c.split(17), y_c.split(17), strict=True)
    ]
    for rows, labels in batches:
        made.update(0, rows, labels)
    with torch.random.fork_rng():  # their layer is torch's, which draws between -1 and 1 over the root of the width
        torch.manual_seed(generator("projection", 5).initial_seed())
        layer = torch.nn.Linear(9, 30, bias=False)
    bound = 9**-0.5
    assert layer.weight.abs().max() <= bound and made.sums["projection"].abs().max() <= bound
    assert made.sums["projection"].std().item() == pytest.approx(layer.weight.std().item(), rel=0.1)
    p = made.sums["projection"].double()
    theirs = acils_code(p, [(rows[:, 0], labels) for rows, labels in batches], asked[:, 0], 0.1)
    assert close(made.logits(asked), theirs, 1e-8)
    wrong = acils_code(2 * p, [(rows[:, 0], labels) for rows, labels in batches], asked[:, 0], 0.1)
    assert not close(made.logits(asked), wrong, 1e-3)
    assert RecursiveRidge().width == RanPAC().width == 2000


def test_random_features_are_those_of_the_seed() -> None:
    f, y = samples()
    made = RanPAC(30, strength=2.0)
    made.seed = 5
    made.update(0, f, y)
    p = torch.randn(6, 30, generator=generator("projection", 5)).double()
    expected = sklearns_ridge(relu(f[:, 0].double() @ p), y, relu(f[:, 0].double() @ p), 2.0, intercept=False)
    assert close(made.logits(f), expected)
    assert not close(taught(lambda: RanPAC(30, strength=2.0), (f, y)).logits(f), expected, 1e-3)


def by_validation(h: Tensor, y: Tensor) -> float:
    """The strength that RanPAC should choose, by the errors themselves."""
    held = torch.arange(len(y)) % 5 == 4
    onehot = torch.nn.functional.one_hot(y).double()
    errors = {}
    for strength in STRENGTHS:
        weight = solved(h[~held].T @ h[~held], h[~held].T @ onehot[~held], strength)
        errors[strength] = (h[held] @ weight - onehot[held]).square().mean().item()
    return min(errors, key=errors.__getitem__)


@pytest.mark.parametrize("batch", [1, 7, 120])
def test_ranpac_chooses_as_held_out_data_say_however_they_come(batch: int) -> None:
    chosen = set()
    for width, seed in ((6, 0), (6, 3), (3, 4)):
        f, y = samples(width=width, seed=seed)
        made = RanPAC(50)
        for one, labels in zip(f.split(batch), y.split(batch), strict=True):
            made.update(0, one, labels)
        made.close(0)
        h = made.see(f)
        assert made.strength == by_validation(h, y)
        assert close(made.logits(f), h @ solved(h.T @ h, h.T @ torch.nn.functional.one_hot(y).double(), made.strength))
        assert not made._sums_of["held"]  # nothing of a closed task's choice is kept
        chosen.add(made.strength)
    assert len(chosen) > 1


def test_ease_is_its_definition_written_as_loops() -> None:
    """Two classes in each of three tasks; a class of task t has samples under modules 0 .. t alone."""
    parts = []
    for task in range(3):
        f, y = samples(n=20, classes=2, seed=task)
        views = [f * (1 + k) + torch.sin(f * k) for k in range(task + 1)]
        parts.append((torch.cat(views, dim=1), y + 2 * task))
    made = taught(EASE, *parts)
    real = {
        (c, k): f[y == c, k].double().mean(0) for f, y in parts for c in y.unique().tolist() for k in range(f.shape[1])
    }
    prototypes = dict(real)
    for c in range(6):
        for k in range(c // 2 + 1, 3):
            donors = [d for d in range(6) if (d, k) in real]
            own = c // 2
            similar = torch.stack([cosine_similarity(real[c, own], real[d, own], dim=0) for d in donors]).softmax(0)
            prototypes[c, k] = sum((s * real[d, k] for s, d in zip(similar, donors, strict=True)), torch.zeros(6))
    asked = parts[2][0].double()
    cosines = [[cosine_similarity(asked[:, k], prototypes[c, k], dim=1) for k in range(3)] for c in range(6)]
    expected = [sum(row[k] * (1.0 if k == c // 2 else 0.05) for k in range(3)) for c, row in enumerate(cosines)]
    assert close(made.logits(asked), torch.stack([torch.as_tensor(column) for column in expected], dim=1))
    whole = torch.stack([torch.cat([prototypes[c, k] for k in range(3)]) for c in range(6)])
    side_by_side = taught(lambda: EASE(alpha=None), *parts).logits(asked)
    assert close(side_by_side, cosine_similarity(asked.flatten(1).unsqueeze(1), whole.unsqueeze(0), dim=2))


def test_ease_with_one_module_is_the_nearest_mean() -> None:
    f, y = samples()
    assert close(taught(EASE, (f, y)).logits(f), taught(NearestClassMean, (f, y)).logits(f))


class KeepsSamples(NearestClassMean):
    def update(self, task: int, features: Tensor, labels: Tensor) -> None:
        super().update(task, features, labels)
        self.sums["old"] = torch.cat([self.sums.get("old", torch.empty(0)), features.flatten()])


class OfTheBatch(NearestClassMean):
    """The break: features are centred by the mean of whatever is asked together."""

    def score(self, features: Tensor, solved: Any) -> Tensor:
        return super().score(features.double() - features.double().mean(0), solved)


class AllCompete(NearestClassMean):
    def logits(self, features: Tensor) -> Tensor:
        return self.score(features, self.stored())


class NothingRestored(NearestClassMean):
    def restore(self, tensors: Any, values: Any) -> None:
        super().restore({name: torch.ones_like(t) for name, t in tensors.items()}, values)


class MeanOfBatches(NearestClassMean):
    """The break: the mean of the batches' means, each batch alike."""

    def update(self, task: int, features: Tensor, labels: Tensor) -> None:
        batch: dict[str, Tensor] = {}
        add_samples(batch, self.see(features), labels)
        some = batch["y"] > 0
        super().update(task, means(batch).T[some].unsqueeze(1), some.nonzero().flatten())


class DividedByNothing(NearestClassMean):
    def solve(self) -> dict[str, Tensor]:
        return {"means": means(self.sums) / 0}


@pytest.mark.parametrize(
    ("kind", "check", "words"),
    [
        (LastBatchAlone, contract.tells_distant_classes_apart, "mixed up"),
        (MeanOfBatches, contract.batches_are_nothing, "move a logit"),
        (LastBatchAlone, contract.the_order_of_samples_moves_no_answer, "moves an answer"),
        (OfTheBatch, contract.answers_each_sample_for_itself, "changes an answer"),
        (AllCompete, contract.unseen_classes_do_not_compete, "MASK marks others"),
        (KeepsSamples, contract.keeps_no_samples, "three times as many"),
        (DividedByNothing, contract.stores_what_answers, "not finite"),
        (NothingRestored, contract.state_holds_all, "answers otherwise"),
    ],
)
def test_a_broken_promise_is_found(kind: type[Classifier], check: Check, words: str) -> None:
    check(Plugin("classifier", "ncm", NearestClassMean))
    with pytest.raises(AssertionError, match=words):
        check(Plugin("classifier", "broken", kind))


TINY = """
name: tiny
scenario: {name: split_digits, setting: class-incremental, n_tasks: 5}
model: {name: mlp, hidden: [32]}
protocol: {budget: {epochs: 2}}
train: {lr: 1e-2, batch_size: 32}
references: [ridge]
strategies:
  - {name: alone, classifier: {name: ridge, strength: 1e-3}}
  - {classifier: slda, isolation: {name: adapter, sites: [mlp.in]}}
  - {classifier: ease, isolation: {name: adapter, sites: [mlp.in]}}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    file = tmp_path_factory.mktemp("classifiers") / "tiny.yaml"
    file.write_text(TINY)
    experiment = load(file)
    return [experiment.run(entry, 0) for entry in experiment.entries]


def context(run: Run) -> Context:
    scenario = one_run.load_scenario(run)
    return Context(run, scenario, to_benchmark(scenario), torch.device("cpu"))


def test_the_reference_and_the_strategy_are_one(runs: list[Run]) -> None:
    reference, strategy = (one_run.run(run) for run in runs[:2])
    assert reference.accuracy == strategy.accuracy
    assert reference.counts == strategy.counts
    assert (reference.metrics["average_accuracy"] or 0) > 0.7
    assert reference.counts["per_task"]["trainable"] == [33 * classes for classes in (2, 4, 6, 8, 10)]
    assert reference.counts["total"]["memory_bytes"] == 8 * (32 * 32 + 32 * 10 + 32 + 10)


@pytest.mark.parametrize("place", [2, 3])
def test_modules_of_the_first_task_or_of_each_are_trained_and_frozen(runs: list[Run], place: int) -> None:
    given = context(runs[place])
    learner = ClosedForm()
    learner.prepare(given)
    bare = {name: t.clone() for name, t in given.backbone().state_dict().items()}
    learner.learn(0)
    first = {name: t.clone() for name, t in learner.task_tensors(0).items()}
    asked = given.scenario.tasks[0].test.x[:8]
    seen = learner.features(asked)[:, 0]
    assert not torch.equal(seen, given.backbone()(asked).double())  # the module was trained, and is asked
    for task in (1, 2):
        learner.learn(task)
    modules = {2: 1, 3: 3}[place]
    assert learner.features(asked).shape == (8, modules, 32)
    assert torch.equal(learner.features(asked)[:, 0], seen)
    assert all(torch.equal(t, first[name]) for name, t in learner.task_tensors(0).items())
    assert all(name.startswith("module.") for name in first) and first
    assert bool(learner.task_tensors(2)) == (modules == 3)
    backbone = learner.current_backbone()
    assert backbone is not None and all(torch.equal(t, bare[name]) for name, t in backbone.state_dict().items())
    own = sum(t.nbytes for task in range(3) for t in learner.task_tensors(task).values())
    answers = sum(t.nbytes for t in learner.classifier.stored().values())
    assert learner.counts.stored_bytes == sum(t.nbytes for t in bare.values()) + own + answers
    assert [steps > 0 for steps in learner.counts.updates] == [True, modules == 3, modules == 3]


def test_a_told_task_leaves_only_its_own_classes_to_compete(runs: list[Run]) -> None:
    given = context(runs[1])
    told = replace(given, scenario=replace(given.scenario, task_known_at_test=True))
    scores = []
    for one in (given, told):
        learner = ClosedForm()
        learner.prepare(one)
        assert learner.evaluate(0) is None
        for task in range(3):
            learner.learn(task)
        assert learner.evaluate(3) is None
        scores.append([(learner.evaluate(task) or {})["accuracy"] for task in range(3)])
    assert all(b >= a for a, b in zip(*scores, strict=True)) and scores[0] != scores[1]


class Listens(NearestClassMean):
    def update(self, task: int, features: Tensor, labels: Tensor) -> None:
        self.told = task
        super().update(task, features, labels)


def test_where_no_boundary_is_told_no_task_is(runs: list[Run]) -> None:
    given = context(runs[1])
    listens = Listens()
    for known, expected in ((True, 1), (False, UNKNOWN)):
        learner = ClosedForm(listens)
        learner.prepare(replace(given, scenario=replace(given.scenario, boundaries_known=known)))
        learner.learn(1)
        assert listens.told == expected
