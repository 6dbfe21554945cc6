"""Streams: what the cuts and the modifiers of a cut do to rows and labels, and what they refuse."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forgetlab.checks.scenario import ABOUT
from forgetlab.data.datasets import Dataset, Samples
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError
from forgetlab.streams.build import NumpyOrder, assemble, cut
from forgetlab.streams.modifiers import (
    blurred,
    evaluated_on,
    few_shot,
    long_tailed,
    mislabelled,
    repeating,
    sized,
    validated,
)
from forgetlab.streams.scenario import Scenario
from helpers import runs

NAMES = tuple("abcdef")
EACH = 30  # training samples of a class


def dataset() -> Dataset:
    """Six classes, three domains; a sample's x holds its number, its class and its domain."""

    def part(per_class: int, first: int) -> tuple[Samples, torch.Tensor]:
        y = torch.arange(len(NAMES)).repeat_interleave(per_class)
        domain = torch.arange(len(y)) % 3
        number = torch.arange(len(y)) + first
        return Samples(torch.stack([number, y, domain], dim=1).float(), y), domain

    (train, domains), (test, test_domains) = part(EACH, 0), part(9, 1000)
    return Dataset(train, test, NAMES, ("red", "green", "blue"), (domains, test_domains))


def stream(**options: Any) -> Scenario:
    return registry.build("scenario", "stream", {"data": "digits", **options}, seed=0)


def numbers(scenario: Scenario, part: str = "train") -> list[list[int]]:
    return [getattr(task, part).x[:, 0].int().tolist() for task in scenario.tasks]


def made(the_cut: Any) -> Scenario:
    return assemble(dataset(), the_cut, "class-incremental")


def test_a_stream_of_a_data_set_is_its_own_scenario_to_the_bit() -> None:
    assert stream().checksum() == registry.build("scenario", "split_digits", {}, seed=0).checksum()


def test_domains_are_tasks_and_keep_the_labels() -> None:
    scenario = made(cut(dataset(), 0, "domain-incremental"))
    assert [task.name for task in scenario.tasks] == ["red", "green", "blue"]
    for i, task in enumerate(scenario.tasks):
        for samples in (task.train, task.test):
            assert set(samples.x[:, 2].int().tolist()) == {i}
            assert torch.equal(samples.x[:, 1].long(), samples.y)
    merged = made(cut(dataset(), 0, "domain-incremental", n_tasks=2, task_order=("blue", "red", "green")))
    assert [task.name for task in merged.tasks] == ["blue,red", "green"]


def test_chunks_hold_every_sample_once_and_all_classes() -> None:
    scenario = made(cut(dataset(), 0, "data-incremental", n_tasks=4))
    for part, first, n in (("train", 0, 6 * EACH), ("test", 1000, 54)):
        rows = numbers(scenario, part)
        assert sorted(chain.from_iterable(rows)) == list(range(first, first + n))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1
    assert {task.classes for task in scenario.tasks} == {(0, 1, 2, 3, 4, 5)}


def test_class_and_task_order_can_be_listed() -> None:
    options: dict[str, Any] = {"class_order": ("f", "e", "d", "c", "b", "a"), "classes_per_task": (3, 2, 1)}
    scenario = made(cut(dataset(), 0, "class-incremental", **options))
    assert [task.name for task in scenario.tasks] == ["f,e,d", "c,b", "a"]
    assert scenario.class_names == ("f", "e", "d", "c", "b", "a")
    turned = made(cut(dataset(), 0, "class-incremental", task_order=(2, 0, 1), **options))
    assert [task.name for task in turned.tasks] == ["a", "f,e,d", "c,b"]
    assert [task.classes for task in turned.tasks] == [(0,), (1, 2, 3), (4, 5)]


def test_numpy_draws_the_order_that_pycil_and_others_have() -> None:
    """The first entries on 100 classes are those that PyCIL prints as its class order for CIFAR-100."""
    order = NumpyOrder(numpy_seed=1993)
    assert order.of(100)[:10] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]
    state = np.random.get_state()
    np.random.seed(7)
    expected = np.random.permutation(6)
    np.random.set_state(state)
    for seed in (0, 1):
        scenario = made(cut(dataset(), seed, "class-incremental", class_order=NumpyOrder(numpy_seed=7), n_tasks=3))
        assert scenario.class_names == tuple("abcdef"[place] for place in expected)
    turned = cut(dataset(), 0, "class-incremental", class_order="given", task_order=NumpyOrder(numpy_seed=1), n_tasks=3)
    assert [task.name for task in made(turned).tasks] == [
        ("a,b", "c,d", "e,f")[place] for place in np.random.RandomState(1).permutation(3)
    ]


@pytest.mark.parametrize("name", ["stream, data: digits", "split_digits"])
def test_an_order_in_a_file(name: str, tmp_path: Path) -> None:
    text = f"name: it\nscenario: {{name: {name}, class_order: ORDER}}\nmodel: mlp\n"
    experiment = runs.loaded(tmp_path, text, ("ORDER", "{numpy_seed: 1993}"))
    assert experiment.scenario["class_order"] == {"numpy_seed": 1993}
    tasks = registry.built("scenario", experiment.scenario, seed=5).tasks
    order = np.random.RandomState(1993).permutation(10)
    assert [task.name for task in tasks] == [f"{one},{other}" for one, other in order.reshape(5, 2)]
    for wrong, message in {
        "{numpy_seed: -1}": "'numpy_seed': input should be greater than or equal to 0, not -1",
        "{numpy_seed: one}": "'numpy_seed': input should be a valid integer, not 'one'",
        "draw": "'class_order': input should be 'given' or 'drawn', not 'draw'",
        "1993": "'class_order': input should be a valid array, not 1993",
    }.items():
        found = runs.told(tmp_path, text.replace("ORDER", wrong))
        assert [said for _, said in found] == [message]
    found = runs.told(tmp_path, text.replace("ORDER", "{seed: 1993}"))
    assert [said for _, said in found] == ["'numpy_seed' is missing", "unknown key 'seed'"]


def test_transforms_change_each_task_in_its_own_way_and_mix_when_blurred() -> None:
    data = dataset()
    changes = {"as it is": lambda x: x, "negative": lambda x: -x - 1}
    from forgetlab.streams.cuts import by_transform

    the_cut = by_transform(data, "domain-incremental", changes)
    first, second = made(the_cut).tasks
    assert torch.equal(second.train.x, -first.train.x - 1) and torch.equal(second.test.x, -first.test.x - 1)
    mixed = made(blurred(the_cut, 0.5, 0)).tasks
    for task, own in zip(mixed, (1, -1), strict=True):
        share = (task.train.x[:, 0].sign().where(task.train.x[:, 0] != 0, torch.tensor(1.0)) == own).double().mean()
        assert 0.65 < share < 0.85  # half of its samples stay, and of the other half each second one is its own
        assert torch.equal(task.test.x, (first if own > 0 else second).test.x)
        both = torch.where(task.train.x[:, :1] < 0, -task.train.x - 1, task.train.x)
        assert torch.equal(both[:, 1].long(), task.train.y)


def by_classes(**options: Any) -> Any:
    return cut(dataset(), 0, "class-incremental", n_tasks=3, class_order="given", **options)


def test_few_shots_come_after_the_first_task() -> None:
    scenario = made(few_shot(by_classes(base_classes=4), 5, seed=0))
    assert [task.train.y.bincount().tolist()[-2:] for task in scenario.tasks] == [[EACH, EACH], [0, 5], [0, 5]]
    assert [len(task.test.y) for task in scenario.tasks] == [36, 9, 9]


def test_a_long_tail_falls_exponentially() -> None:
    scenario = made(long_tailed(by_classes(), 10.0, seed=0))
    counts = sorted(torch.cat([task.train.y for task in scenario.tasks]).bincount().tolist(), reverse=True)
    assert counts == [round(EACH * 10 ** (-k / 5)) for k in range(6)]


def test_sizes_bound_each_task() -> None:
    assert [len(rows) for rows in numbers(made(sized(by_classes(), (7, 50, 100), seed=0)))] == [7, 50, 60]
    with pytest.raises(OptionError, match="2 sizes for 3 tasks"):
        sized(by_classes(), (7, 8), seed=0)


def test_test_samples_can_be_bounded() -> None:
    scenario = made(evaluated_on(by_classes(), 5, seed=0))
    assert [len(rows) for rows in numbers(scenario, "test")] == [5, 5, 5]
    assert numbers(scenario) == numbers(made(by_classes()))


def test_classes_come_back_with_samples_that_were_not_there_before() -> None:
    scenario = made(repeating(by_classes(), 0.9, seed=0))
    rows = numbers(scenario)
    assert sorted(chain.from_iterable(rows)) == list(range(6 * EACH)), "every sample passes by once"
    assert set(scenario.tasks[2].train.y.tolist()) > {4, 5}
    for task in scenario.tasks:
        assert torch.equal(task.train.x[:, 1].long(), task.train.y)
    assert numbers(scenario, "test") == numbers(made(by_classes()), "test")
    assert numbers(made(repeating(by_classes(), 0.0, seed=0)))[1] != [] and len(rows[0]) < 60


def test_blurring_keeps_sizes_and_tests_and_mixes_the_rest() -> None:
    scenario = made(blurred(by_classes(), 0.3, seed=0))
    assert [len(rows) for rows in numbers(scenario)] == [60, 60, 60]
    assert sorted(chain.from_iterable(numbers(scenario))) == list(range(6 * EACH))
    for i, task in enumerate(scenario.tasks):
        foreign = ~torch.isin(task.train.y, torch.tensor([2 * i, 2 * i + 1]))
        assert 4 <= int(foreign.sum()) <= 18  # of the 18 from the pot, two of three are foreign on average
        assert torch.equal(task.train.x[:, 1].long(), task.train.y)
    assert numbers(scenario, "test") == numbers(made(by_classes()), "test")


def test_wrong_labels_are_as_many_as_asked_and_stay_in_the_task() -> None:
    clean, noisy = made(by_classes()), made(mislabelled(by_classes(), 0.25, seed=0))
    for before, after in zip(clean.tasks, noisy.tasks, strict=True):
        assert torch.equal(before.train.x, after.train.x) and torch.equal(before.test.y, after.test.y)
        assert int((before.train.y != after.train.y).sum()) == 15
        assert set(after.train.y.tolist()) == set(before.train.y.tolist())


def test_validation_is_taken_from_training_data_of_each_class_alike() -> None:
    whole, scenario = made(by_classes()), made(validated(by_classes(), 0.2, seed=0))
    for before, task in zip(whole.tasks, scenario.tasks, strict=True):
        assert task.validation is not None
        assert task.validation.y.unique(return_counts=True)[1].tolist() == [6, 6]
        both = torch.cat([task.train.x[:, 0], task.validation.x[:, 0]]).sort().values
        assert torch.equal(both, before.train.x[:, 0])
        assert torch.equal(task.test.x, before.test.x)


MODIFIED: list[dict[str, Any]] = [
    {"few_shot": {"base_classes": 6, "shots": 5}, "n_tasks": 3},
    {"long_tail": 20.0},
    {"samples_per_task": 20},
    {"repetition": 0.5},
    {"blurry": 0.3},
    {"label_noise": 0.3},
    {"validation": 0.2},
    {"setting": "data-incremental"},
    {"setting": "domain-incremental", "transform": "permutation"},
    {"setting": "task-incremental", "online": True},
    {"blurry": 0.2, "repetition": 0.2, "online": True},
]


@pytest.mark.parametrize("options", MODIFIED, ids=lambda options: " ".join(options))
@pytest.mark.parametrize("check", ABOUT)
def test_every_choice_keeps_the_promises_of_a_scenario(check: Any, options: dict[str, Any]) -> None:
    check(lambda seed: registry.build("scenario", "stream", {"data": "digits", **options}, seed=seed))


@pytest.mark.parametrize("options", MODIFIED, ids=lambda options: " ".join(options))
def test_the_seed_alone_decides(options: dict[str, Any]) -> None:
    assert stream(**options).checksum() == stream(**options).checksum()
    other = registry.build("scenario", "stream", {"data": "digits", **options}, seed=1)
    assert other.checksum() != stream(**options).checksum()


def test_what_the_learner_is_told_follows_from_the_choices() -> None:
    assert stream().boundaries_known and not stream(blurry=0.1).boundaries_known
    assert stream(blurry=0.1, boundaries=True).boundaries_known and not stream(boundaries=False).boundaries_known
    assert stream(online=True).one_pass and not stream().one_pass
    assert stream(setting="task-incremental").task_known_at_test


@pytest.mark.parametrize(
    ("options", "option", "message"),
    [
        ({"by": "chunk"}, "by", "data-incremental' goes with 'by: chunk'"),
        ({"by": "transform"}, "by", "go together"),
        ({"by": "domain"}, "by", "no domains"),
        ({"setting": "domain-incremental", "n_tasks": 3}, "n_tasks", "evenly"),
        ({"n_tasks": 11}, "n_tasks", "11 tasks cannot be cut from 10 classes"),
        ({"held_back": 6}, "n_tasks", r"from 4 classes \(6 of 10 are held back\)"),
        ({"classes_per_task": (4, 4)}, "classes_per_task", "8 classes together; there are 10"),
        ({"class_order": ("0", "1", "seven")}, "class_order", "no 'seven'"),
        ({"class_order": (0, 1, 2)}, "class_order", "each of the 10 once"),
        ({"task_order": (0, 0, 1, 2, 3)}, "task_order", "each of the 5 once"),
        ({"samples_per_task": (5, 5)}, "samples_per_task", "2 sizes for 5 tasks"),
        ({"setting": "task-incremental", "blurry": 0.2}, "blurry", "no meaning"),
        ({"setting": "task-incremental", "repetition": 0.2}, "repetition", "no meaning"),
        ({"setting": "task-incremental", "boundaries": False}, "boundaries", "no meaning"),
        ({"setting": "data-incremental", "held_back": 2}, "held_back", "cut by chunk"),
        (
            {"setting": "data-incremental", "few_shot": {"base_classes": 2, "shots": 1}},
            "few_shot",
            "tasks of different classes",
        ),
        ({"few_shot": {"base_classes": 10, "shots": 5}}, "few_shot", "leave none for later tasks"),
        ({"few_shot": {"base_classes": 5, "shots": 5}, "n_tasks": 1}, "n_tasks", "cannot be cut"),
    ],
)
def test_choices_without_a_meaning_are_refused(options: dict[str, Any], option: str, message: str) -> None:
    with pytest.raises(OptionError, match=message) as refused:
        stream(**options)
    assert refused.value.option == option


def test_show_tells_nested_keys_and_what_names_other_plugins() -> None:
    told = {p.name: p.type for p in registry.parameters(registry.find("scenario", "stream"))}
    assert told["few_shot"] == "{base_classes: int > 0, shots: int > 0} | None"
    assert told["data"] == "data by name, or {name: ..., its options}"


@pytest.mark.parametrize("name", ["split_digits", "permuted_fashion_mnist"])
def test_a_benchmark_of_classes_or_domains_has_no_chunks(name: str) -> None:
    with pytest.raises(OptionError, match="data-incremental' goes with 'by: chunk'"):
        registry.build("scenario", name, {"setting": "data-incremental"}, seed=0)
