"""Cutting a data set into tasks: the right rows, the right labels, the same for the same seed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from forgetlab.data.datasets import Dataset, Samples, held_out
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError
from forgetlab.streams.build import split
from forgetlab.streams.scenario import Scenario, Setting

NAMES = tuple("abcdef")
CUTS: tuple[Setting, ...] = ("class-incremental", "task-incremental", "domain-incremental")


def dataset(per_class: int = 4) -> Dataset:
    """Six classes; a sample's x holds its number and its class, so that it is known again wherever it goes."""
    y = torch.arange(len(NAMES)).repeat(per_class)
    number = torch.arange(len(y))
    train = Samples(torch.stack([number, y], dim=1).float(), y)
    test = Samples(torch.stack([number + 1000, y], dim=1).float()[: len(NAMES) * 2], y[: len(NAMES) * 2])
    return Dataset(train, test, NAMES)


def digits(seed: int = 0, **options: object) -> Scenario:
    return registry.build("scenario", "split_digits", options, seed=seed)


@pytest.mark.parametrize("setting", CUTS)
def test_every_sample_is_in_one_task_and_keeps_its_class(setting: Setting) -> None:
    data = dataset()
    stream = split(data, setting=setting, n_tasks=3, seed=0)
    for part in ("train", "test"):
        samples = [getattr(task, part) for task in stream.tasks]
        x = torch.cat([s.x for s in samples])
        assert sorted(x[:, 0].tolist()) == sorted(getattr(data, part).x[:, 0].tolist())
        for task, own in zip(stream.tasks, samples, strict=True):
            assert set(own.y.tolist()) == set(task.classes)
            for label, old in zip(own.y.tolist(), own.x[:, 1].long().tolist(), strict=True):
                assert NAMES[old] in stream.class_names[label].split("/")
                assert NAMES[old] in task.name.split(",")


@pytest.mark.parametrize("setting", ["class-incremental", "task-incremental"])
def test_labels_are_numbered_in_the_order_of_appearance(setting: Setting) -> None:
    stream = split(dataset(), setting=setting, n_tasks=3, seed=1)
    assert [task.classes for task in stream.tasks] == [(0, 1), (2, 3), (4, 5)]
    assert ",".join(task.name for task in stream.tasks) == ",".join(stream.class_names)
    assert stream.task_known_at_test == (setting == "task-incremental")


def test_classes_that_do_not_divide_evenly_make_unequal_tasks() -> None:
    stream = split(dataset(), setting="class-incremental", n_tasks=4, seed=0)
    assert [task.classes for task in stream.tasks] == [(0, 1), (2, 3), (4,), (5,)]


def test_domain_incremental_labels_are_the_positions_within_a_task() -> None:
    stream = split(dataset(), setting="domain-incremental", n_tasks=3, seed=0)
    assert [task.classes for task in stream.tasks] == [(0, 1)] * 3
    assert (stream.n_classes, stream.task_known_at_test) == (2, False)
    by_label = list(zip(*(task.name.split(",") for task in stream.tasks), strict=True))
    assert stream.class_names == tuple("/".join(column) for column in by_label)


@pytest.mark.parametrize(
    ("setting", "n_tasks"), [("class-incremental", 7), ("domain-incremental", 7), ("domain-incremental", 4)]
)
def test_a_cut_that_cannot_be_made_names_the_option(setting: Setting, n_tasks: int) -> None:
    with pytest.raises(OptionError, match=str(n_tasks)) as refused:
        split(dataset(), setting=setting, n_tasks=n_tasks, seed=0)
    assert refused.value.option == "n_tasks"


def test_the_seed_draws_the_order_of_the_classes_and_nothing_else() -> None:
    orders = {split(dataset(), setting="class-incremental", n_tasks=3, seed=s).class_names for s in range(8)}
    assert len(orders) > 4
    assert all(sorted(order) == list(NAMES) for order in orders)
    assert digits(3).checksum() == digits(3).checksum() != digits(4).checksum()
    rows = [sorted(torch.cat([t.test.x for t in digits(s).tasks]).flatten(1).tolist()) for s in (3, 4)]
    assert rows[0] == rows[1]


def test_digits_are_all_there_and_no_image_is_in_both_parts() -> None:
    stream = digits()
    train, test = (torch.cat([getattr(t, part).x for t in stream.tasks]) for part in ("train", "test"))
    assert (len(train), len(test)) == (1347, 450)
    assert stream.input_shape == (1, 8, 8) and train.dtype == torch.float32
    assert (float(train.min()), float(train.max())) == (0, 1)
    images = [{tuple(row) for row in part.flatten(1).tolist()} for part in (train, test)]
    assert not images[0] & images[1]
    shares = [len(t.test.y) / (len(t.test.y) + len(t.train.y)) for t in stream.tasks]
    assert all(abs(share - 0.25) < 0.01 for share in shares)


def test_held_out_takes_the_same_share_of_every_class() -> None:
    y = torch.tensor([0] * 8 + [1] * 4 + [2] * 40)
    x = torch.arange(len(y)).unsqueeze(1)
    data = held_out(x, y, ["a", "b", "c"], test_share=0.25, seed=0)
    assert data.test.y.bincount().tolist() == [2, 1, 10]
    assert sorted(torch.cat([data.train.x, data.test.x]).flatten().tolist()) == x.flatten().tolist()
    assert torch.equal(y[data.test.x.flatten()], data.test.y)
    other = held_out(x, y, ["a", "b", "c"], test_share=0.25, seed=1)
    assert not torch.equal(data.test.x, other.test.x)


def test_the_checksum_covers_validation_data_and_what_is_held_back() -> None:
    stream = split(dataset(), setting="class-incremental", n_tasks=2, seed=0, held_back=2).with_validation(0.2)
    last, held = stream.tasks[-1], stream.held_back
    assert last.validation is not None and held is not None
    x, y = last.validation
    changed = [
        replace(stream, tasks=(*stream.tasks[:-1], replace(last, validation=Samples(x + 1, y)))),
        replace(stream, tasks=(*stream.tasks[:-1], replace(last, validation=Samples(x, y.flip(0))))),
        replace(stream, tasks=(*stream.tasks[:-1], replace(last, validation=None))),
        replace(stream, held_back=replace(held, train=Samples(held.train.x + 1, held.train.y))),
        replace(stream, held_back=None),
    ]
    assert len({one.checksum() for one in [stream, *changed]}) == 6


def test_the_checksum_covers_every_value_and_name() -> None:
    stream = split(dataset(), setting="class-incremental", n_tasks=3, seed=0)
    last = stream.tasks[-1]
    pixel, label = last.test.x.clone(), last.train.y.clone()
    pixel[-1, -1] += 1
    label[-1] = last.classes[0] if label[-1] != last.classes[0] else last.classes[1]
    changed = [
        replace(last, test=Samples(pixel, last.test.y)),
        replace(last, train=Samples(last.train.x, label)),
        replace(last, train=Samples(last.train.x.double(), last.train.y)),
        replace(last, name="other"),
    ]
    streams = [replace(stream, tasks=(*stream.tasks[:-1], task)) for task in changed]
    streams += [replace(stream, task_known_at_test=True), replace(stream, class_names=tuple("fedcba"))]
    assert len({one.checksum() for one in [stream, *streams]}) == 7
