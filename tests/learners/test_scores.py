"""Scores beside accuracy, and what an online stream's samples are answered before they are learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from forgetlab.engine import one_run
from forgetlab.experiment import Protocol, Run, Strategy, Train
from forgetlab.learners.scores import auroc, log_loss, macro_f1, scored
from forgetlab.seeding import generator
from forgetlab.streams.scenario import Scenario
from forgetlab.training.competing_classes import MASK
from helpers import runs

LOGITS = torch.tensor([[2.0, 1.0, MASK], [0.0, 3.0, MASK], [1.0, 0.5, MASK], [0.2, 0.1, MASK]])
Y = torch.tensor([0, 1, 1, 0])


def test_the_area_counts_pairs_in_the_right_order() -> None:
    gap = LOGITS[:, 1] - LOGITS[:, 0]
    pairs = [(gap[i] > gap[j]).double() for i in (1, 2) for j in (0, 3)]
    assert auroc(LOGITS, Y) == pytest.approx(float(torch.stack(pairs).mean())) == 0.75
    assert auroc(LOGITS, torch.zeros(4, dtype=torch.int64)) is None


def test_log_loss_and_f1_by_hand() -> None:
    p = np.exp(LOGITS[:, :2].double().numpy())
    p /= p.sum(1, keepdims=True)
    assert log_loss(LOGITS, Y) == pytest.approx(-np.log(p[np.arange(4), Y.numpy()]).mean())
    assert macro_f1(LOGITS, Y) == pytest.approx(
        (2 * (2 / 3) / (5 / 3) + 2 * (1 / 2) / (3 / 2)) / 2
    )  # P 2/3 R 1; P 1 R 1/2


def test_batches_of_another_width_are_scored_together() -> None:
    whole = scored(("macro_f1", "log_loss"), [(LOGITS, Y)])
    assert scored(("macro_f1", "log_loss"), [(LOGITS[:2, :2], Y[:2]), (LOGITS[2:], Y[2:])]) == whole


def run(strategy: Strategy, **scenario: Any) -> Run:
    given = {"name": "stream", "data": "digits", "n_tasks": 2, **scenario}
    return runs.description(strategy, scenario=given, train=Train(batch_size=32))


NAIVE = Strategy(name="naive", reference={"name": "naive"})
REPLAY = Strategy(name="er", replay={"memory": {"name": "reservoir", "capacity": 50}})  # type: ignore[arg-type]


def test_prequential_accuracy_is_that_of_the_weights_before_each_step() -> None:
    """Against a loop of our own that asks first and trains then."""
    description = run(NAIVE, online=True)
    result = one_run.run(description)
    scenario: Scenario = one_run.load_scenario(description)
    first, last = torch.nn.Linear(64, 16), torch.nn.Linear(16, 10)
    model = torch.nn.Sequential(torch.nn.Flatten(), first, torch.nn.ReLU(), last)
    start = one_run.make_learner(description)
    start.prepare(context(description))
    network = start.network  # type: ignore[attr-defined]
    first.load_state_dict(dict(zip(("weight", "bias"), network.backbone.parameters(), strict=True)))
    with torch.no_grad():
        last.weight[:5], last.bias[:5] = network.head.weight, network.head.bias
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    task, right = scenario.tasks[0], 0
    for rows in torch.randperm(len(task.train.y), generator=generator("order", 0, 0, 0)).split(32):
        logits, y = model(task.train.x[rows])[:, :5], task.train.y[rows]
        right += int((logits.argmax(1) == y).sum())
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, y).backward()
        optimizer.step()
    assert result.prequential_accuracy[0] == pytest.approx(right / len(task.train.y), abs=2 / len(task.train.y))
    weights = [len(one.train.y) for one in scenario.tasks]
    mean = np.average([value or 0.0 for value in result.prequential_accuracy], weights=weights)
    assert result.metrics["prequential_accuracy"] == pytest.approx(mean)


def context(description: Run) -> Any:
    from forgetlab.avalanche.tensor_data import to_benchmark
    from forgetlab.learners.context import Context

    scenario = one_run.load_scenario(description)
    return Context(description, scenario, to_benchmark(scenario), torch.device("cpu"))


def test_replayed_samples_do_not_count_as_new_ones() -> None:
    """The second task's samples alone: no answer of a model that is fixed to the first task's classes is right."""
    description = run(REPLAY.model_copy(update={"train": {"lr": 1e-12}}), online=True)
    learner = one_run.make_learner(description)
    learner.prepare(context(description.model_copy(update={"train": Train(batch_size=32, lr=1e-12)})))
    network = learner.network  # type: ignore[attr-defined]
    with torch.no_grad():
        network.head.bias[:5] = 100.0
    learner.learn(0)
    learner.learn(1)
    assert learner.prequential[1] == 0.0 and learner.counts.samples_replayed[1] > 0


def test_a_stream_that_is_not_online_has_none() -> None:
    result = one_run.run(run(NAIVE))
    assert result.prequential_accuracy == [] and "prequential_accuracy" not in result.metrics


def test_evaluating_on_validation_data_never_touches_test_data(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(NAIVE, validation=0.25)
    chosen = whole.model_copy(update={"protocol": Protocol(evaluate_on="validation")})
    scenario = one_run.load_scenario(whole)
    parts = [task.validation for task in scenario.tasks]
    result = one_run.run(chosen)
    assert result.test_sizes == [len(part.y) for part in parts if part is not None]
    for task, part in zip(one_run.load_scenario(chosen).tasks, parts, strict=True):
        assert part is not None and torch.equal(task.test.x, part.x) and task.validation is None
    assert result.protocol["evaluate_on"] == "validation"
