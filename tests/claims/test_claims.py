"""What the experiments on digits show, over five seeds; and that the same check turns red when something is wrong.

Three deliberate breaks are kept: the freeze is removed, the task id is leaked to the router, and a cached result of
another file is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from forgetlab.avalanche import tensor_data
from forgetlab.config.load import load
from forgetlab.engine import all_runs, one_run
from forgetlab.experiment import Experiment
from forgetlab.isolation.module import Isolation
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.metrics.accuracy_matrix import forgetting, learning_accuracy
from forgetlab.metrics.intervals import disjoint, t_interval
from forgetlab.plugins import registry
from forgetlab.results import run_key
from forgetlab.results.store import Result, Store
from forgetlab.seeding import drawn_from
from helpers.paths import EXPERIMENTS, README

SEEDS = (0, 1, 2, 3, 4)


def experiment(file: str) -> Experiment:
    return load(EXPERIMENTS / file).model_copy(update={"seeds": SEEDS})


def results(file: str, name: str) -> list[Result]:
    one = experiment(file)
    entry = next(entry for entry in one.entries if entry.name == name)
    return [one_run.run(one.run(entry, seed)) for seed in SEEDS]


def finals(found: Sequence[Result]) -> list[float]:
    return [float(result.metrics["average_accuracy"] or 0) for result in found]


def naive_forgets(naive: Sequence[Result]) -> None:
    n_tasks = len(naive[0].task_names)
    assert all(final <= 1 / n_tasks + 0.05 for final in finals(naive))


def isolated_modules_forget_nothing(lora: Sequence[Result], ridge: Sequence[Result]) -> None:
    assert [forgetting(result.accuracy) for result in lora] == [0.0] * len(lora)
    ours, theirs = ([learning_accuracy(result.accuracy) or 0 for result in found] for found in (lora, ridge))
    assert sum(ours) > sum(theirs)


def routes_are_inferred(routed: Sequence[Result]) -> None:
    """The router's accuracy is what nearest class means on the bare backbone's features give, computed here anew."""
    for result in routed:
        assert result.scores["router_accuracy"][-1] == pytest.approx(_nearest_means(result.seed))


def _nearest_means(seed: int) -> list[float]:
    one = experiment("split_digits.yaml")
    run = one.run(one.entries[0], seed)
    scenario = one_run.load_scenario(run)
    with drawn_from("init", seed):
        backbone = registry.built("model", run.model, input_shape=scenario.input_shape)
    means, owner = [], []
    for i, task in enumerate(scenario.tasks):
        features = backbone(task.train.x).detach()
        means += [features[task.train.y == label].mean(0) for label in task.classes]
        owner += [i] * len(task.classes)
    shares = []
    for i, task in enumerate(scenario.tasks):
        cosine = torch.cosine_similarity(backbone(task.test.x).detach()[:, None], torch.stack(means)[None], dim=2)
        shares.append((torch.tensor(owner)[cosine.argmax(1)] == i).double().mean().item())
    return shares


@pytest.mark.slow
def test_replay_lies_between_naive_and_joint() -> None:
    naive, joint, replay = (results("split_digits.yaml", name) for name in ("naive", "joint", "reservoir"))
    naive_forgets(naive)
    assert all(final >= 0.93 for final in finals(joint))
    between = t_interval(finals(replay))
    assert disjoint(between, t_interval(finals(naive)))
    assert disjoint(between, t_interval(finals(joint)))


@pytest.fixture(scope="module")
def ridge() -> list[Result]:
    return results("split_digits_task.yaml", "ridge")


@pytest.mark.slow
def test_lora_per_task_forgets_nothing_and_learns_more_than_ridge(ridge: list[Result]) -> None:
    isolated_modules_forget_nothing(results("split_digits_task.yaml", "lora"), ridge)


@pytest.mark.slow
def test_a_removed_freeze_is_seen(monkeypatch: pytest.MonkeyPatch, ridge: list[Result]) -> None:
    start = IsolatedNetwork.__init__

    def thawed(self: IsolatedNetwork, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        self.backbone.requires_grad_(True)

    monkeypatch.setattr(IsolatedNetwork, "__init__", thawed)
    with pytest.raises(AssertionError):
        isolated_modules_forget_nothing(results("split_digits_task.yaml", "lora"), ridge)


@pytest.mark.slow
def test_a_module_that_stays_open_is_seen(monkeypatch: pytest.MonkeyPatch, ridge: list[Result]) -> None:
    """One module for all tasks is not isolation."""
    modules: list[Isolation] = []
    opened = IsolatedNetwork.open

    def shared(self: IsolatedNetwork, task: int, classes: Sequence[int]) -> None:
        opened(self, task, classes)
        modules.append(self.module_of(task))
        self.modules_of[str(task)] = modules[-task - 1].requires_grad_(True)  # task 0's, in every task of a run

    monkeypatch.setattr(IsolatedNetwork, "open", shared)
    with pytest.raises(AssertionError):
        isolated_modules_forget_nothing(results("split_digits_task.yaml", "lora"), ridge)


@pytest.mark.slow
def test_routes_are_inferred_from_features_alone() -> None:
    routes_are_inferred(results("split_digits.yaml", "lora+prototype"))


@pytest.mark.slow
def test_a_leaked_task_id_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = tensor_data.to_benchmark
    monkeypatch.setattr(one_run, "to_benchmark", lambda scenario, device, told: honest(scenario, device, True))
    monkeypatch.setattr(IsolatedNetwork, "forward", _looks_at_the_task)
    with pytest.raises(AssertionError):
        routes_are_inferred(results("split_digits.yaml", "lora+prototype"))


def _looks_at_the_task(self: IsolatedNetwork, x: torch.Tensor, task_labels: torch.Tensor) -> torch.Tensor:
    task = torch.full_like(task_labels, self.current) if self.training else task_labels.clamp(max=len(self.heads) - 1)
    self.routes = task
    return self._spread({int(task[0]): self.answer(int(task[0]), x)})


@pytest.mark.slow
def test_a_cached_result_of_another_file_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    task_il, class_il = (_only_naive(experiment(file)) for file in ("split_digits_task.yaml", "split_digits.yaml"))
    store = Store(tmp_path)
    all_runs.carry_out(task_il, store)
    real = run_key.run_key
    with monkeypatch.context() as patch:
        patch.setattr(all_runs, "run_key", lambda run, scenario: f"seed {run.seed}")
        all_runs.carry_out(task_il, store, fresh=True)
        with pytest.raises(AssertionError):
            naive_forgets(_stored(all_runs.carry_out(class_il, store)))
    assert run_key.run_key is real
    naive_forgets(_stored(all_runs.carry_out(class_il, store)))


def _only_naive(one: Experiment) -> Experiment:
    naive = tuple(spec for spec in one.references if spec["name"] == "naive")
    return one.model_copy(update={"references": naive, "strategies": ()})


def _stored(folders: Sequence[Any]) -> list[Result]:
    return [folder.result() for folder in folders]


def test_as_many_rates_lie_at_an_edge_as_the_readme_says() -> None:
    """Of the modules' rates that `isolation_rates.yaml` chose, those that are the lowest or the highest tried."""
    import yaml

    def entries(name: str) -> list[tuple[str, float]]:
        document = yaml.safe_load((EXPERIMENTS / name).read_text(encoding="utf-8"))
        return [(entry["name"], float(entry["train"]["lr"])) for entry in document["strategies"]]

    tried: dict[str, list[float]] = {}
    for name, rate in entries("isolation_rates.yaml"):
        tried.setdefault(name.rpartition("-")[0], []).append(rate)
    taken = entries("isolation_48.yaml")
    assert taken == entries("isolation_96.yaml")
    at_an_edge = [name for name, rate in taken if rate in (min(tried[name]), max(tried[name]))]
    told = f"{len(at_an_edge)} of the {len(taken)} rates lie at an edge of their three"
    assert told in README.read_text(encoding="utf-8")
