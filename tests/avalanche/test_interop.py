"""Avalanche's benchmarks as our streams and ours as Avalanche's, compared sample by sample."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from forgetlab.avalanche import streams
from forgetlab.avalanche.api import (
    BaseLogger,
    CLScenario,
    DataAttribute,
    EagerCLStream,
    EvaluationPlugin,
    benchmark_from_datasets,
    split_online_stream,
    stock_plugin,
)
from forgetlab.avalanche.streams import from_avalanche, to_avalanche
from forgetlab.batch import UNKNOWN
from forgetlab.data.datasets import Samples, as_input
from forgetlab.engine import one_run
from forgetlab.experiment import Budget, Protocol, Strategy, Train
from forgetlab.plugins import options as plugins_options
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError
from forgetlab.streams.scenario import Scenario, Task
from helpers.runs import description

SETTINGS = ("class-incremental", "task-incremental", "domain-incremental")
ONLINE = {"data": "digits", "n_tasks": 5, "online": True}


def digits(setting: str) -> Scenario:
    return registry.build("scenario", "split_digits", {"setting": setting, "n_tasks": 5}, seed=0)


def stream(**options: Any) -> Scenario:
    return registry.build("scenario", "stream", {**ONLINE, **options}, seed=0)


def small(one_pass: bool = False, boundaries_known: bool = True) -> Scenario:
    """Two tasks of two classes, 10 samples each; the inputs number the samples."""

    def task(i: int) -> Task:
        train = Samples(20.0 * i + torch.arange(10.0).view(-1, 1), 2 * i + torch.arange(10) % 2)
        test = Samples(20.0 * i + torch.arange(10.0, 14.0).view(-1, 1), 2 * i + torch.arange(4) % 2)
        return Task(f"task {i}", train, test, (2 * i, 2 * i + 1))

    told: Any = {"one_pass": one_pass, "boundaries_known": boundaries_known}
    return Scenario((task(0), task(1)), tuple("abcd"), task_known_at_test=False, **told)


def half_validated() -> Scenario:
    ours = small()
    return replace(ours, tasks=(replace(ours.tasks[0], validation=ours.tasks[0].test), ours.tasks[1]))


def loaded(experiences: Any, group: str | None = None) -> list[list[Tensor]]:
    """x, y and what else a sample has, of each experience, through Avalanche's own data sets and torch's loader."""
    found = []
    for experience in experiences:
        data = experience.dataset if group is None else experience.dataset.with_transforms(group)
        batches = list(DataLoader(data, batch_size=7, collate_fn=data.collate_fn))
        found.append([torch.cat(column) for column in zip(*batches, strict=True)])
    return found


def check_same(samples: Samples, x: Tensor, y: Tensor, labels: dict[int, int] | None = None) -> None:
    assert torch.equal(as_input(samples.x), x) and as_input(samples.x).dtype == x.dtype
    expected = y if labels is None else torch.tensor([labels[int(old)] for old in y])
    assert torch.equal(samples.y, expected) and samples.y.dtype == torch.int64


# Ours, to Avalanche and back


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_stream_goes_to_avalanche_and_back(setting: str) -> None:
    ours = digits(setting)
    benchmark = to_avalanche(ours)
    back = from_avalanche(benchmark)
    assert back.checksum() == ours.checksum()
    assert [task.name for task in back.tasks] == [task.name for task in ours.tasks]
    told = setting == "task-incremental"
    assert back.task_known_at_test is told
    for part, name in (("train", "train_stream"), ("test", "test_stream")):
        for i, (x, y, task) in enumerate(loaded(getattr(benchmark, name))):
            check_same(getattr(ours.tasks[i], part), x, y)
            assert set(task.tolist()) == {i if told or part == "train" else UNKNOWN}
    assert [e.task_name for e in benchmark.streams["train"]] == [task.name for task in ours.tasks]
    assert vars(benchmark)["class_names"] == ours.class_names


@pytest.mark.parametrize("boundaries", [True, False])
def test_an_online_stream_goes_to_avalanche_and_back(boundaries: bool) -> None:
    ours = stream(boundaries=boundaries, validation=0.1, held_back=2, n_tasks=4)
    benchmark = to_avalanche(ours, batch_size=10)
    assert from_avalanche(benchmark).checksum() == ours.checksum()
    assert list(benchmark.streams) == ["train", "test", "valid", "held_back", "held_back_test"]
    parts = loaded(benchmark.streams["train"])
    assert {len(x) for x, _, _ in parts[:10]} == {10}
    check_same(
        Samples(torch.cat([task.train.x for task in ours.tasks]), torch.cat([task.train.y for task in ours.tasks])),
        torch.cat([x for x, _, _ in parts]),
        torch.cat([y for _, y, _ in parts]),
    )
    told = [set(task.tolist()) for _, _, task in parts]
    assert sorted({label for some in told for label in some}) == (list(range(4)) if boundaries else [UNKNOWN])


def test_an_online_experience_tells_its_boundaries_only_where_they_are_known() -> None:
    from avalanche.benchmarks.scenarios.generic_scenario import MaskedAttributeError

    experiences = list(to_avalanche(small(one_pass=True), batch_size=5).streams["train"])
    ends = [(e.train().is_first_subexp, e.train().is_last_subexp) for e in experiences]
    assert ends == [(True, False), (False, True)] * 2
    hidden = to_avalanche(small(one_pass=True, boundaries_known=False), batch_size=5).streams["train"]
    for experience in hidden:
        for name in ("is_last_subexp", "origin_experience", "current_experience"):
            with pytest.raises(MaskedAttributeError):
                getattr(experience.train(), name)


def test_avalanche_does_not_say_where_full_batches_end() -> None:
    """The trap of 0.6.0 that `to_avalanche` steps over."""
    whole = to_avalanche(small()).streams["train"]
    ends = [e.is_last_subexp for e in split_online_stream(whole, 5, shuffle=False, seed=0)]
    assert ends == [False] * 4


def test_a_mapping_that_loses_the_order_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = small(one_pass=True)
    assert from_avalanche(to_avalanche(ours, batch_size=3)).checksum() == ours.checksum()

    def shuffled(*args: Any, shuffle: bool, **kwargs: Any) -> Any:
        return split_online_stream(*args, shuffle=True, **kwargs)

    monkeypatch.setattr(streams, "split_online_stream", shuffled)
    back = from_avalanche(to_avalanche(ours, batch_size=3))
    assert back.checksum() != ours.checksum()
    assert torch.equal(back.tasks[0].train.x.sort(0).values, ours.tasks[0].train.x)


@pytest.mark.parametrize(
    ("ours", "size", "message"),
    [
        (small(one_pass=True), None, "needs 'batch_size'"),
        (small(), 5, "not of one pass"),
        (small(boundaries_known=False), None, "can hide the boundaries"),
        (half_validated(), None, "some tasks have validation samples and some have none"),
    ],
)
def test_what_avalanche_cannot_hold_is_refused(ours: Scenario, size: int | None, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        to_avalanche(ours, batch_size=size)


# Avalanche's, to ours and back


class Pictures(Dataset):
    """Coloured images and whole numbers, as torchvision's data sets give them; of classes 0 to 5 in turn."""

    def __init__(self, n: int, first: int = 0) -> None:
        draw = np.random.default_rng(first)
        self.pixels = draw.integers(0, 256, (n, 6, 5, 3), dtype=np.uint8)
        self.targets = [i % 6 for i in range(n)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        return Image.fromarray(self.pixels[index]), self.targets[index]


def tensors(n: int, first: int = 0) -> TensorDataset:
    """The inputs number the samples; classes 0 to 5 in turn."""
    data: Any = TensorDataset(first + torch.arange(float(n)).view(-1, 1), torch.arange(n) % 6)
    data.targets = data.tensors[1]
    return data


def new_classes(task_labels: bool = False, **options: Any) -> Any:
    from avalanche.benchmarks import nc_benchmark

    order = [4, 1, 0, 5, 2, 3]
    train, test = options.pop("data", (tensors(60), tensors(24, 100)))
    return nc_benchmark(train, test, n_experiences=3, task_labels=task_labels, fixed_class_order=order, **options)


def new_instances(**options: Any) -> Any:
    from avalanche.benchmarks import ni_benchmark

    return ni_benchmark(tensors(60), tensors(24, 100), n_experiences=3, seed=1, balance_experiences=True, **options)


@pytest.mark.parametrize("task_labels", [False, True])
def test_new_classes_go_to_ours_and_back(task_labels: bool) -> None:
    theirs = new_classes(task_labels)
    ours = from_avalanche(theirs)
    assert ours.class_names == ("1", "4", "0", "5", "2", "3")
    assert [task.classes for task in ours.tasks] == [(0, 1), (2, 3), (4, 5)]
    assert ours.task_known_at_test is task_labels and not ours.one_pass and ours.boundaries_known
    new = {int(name): i for i, name in enumerate(ours.class_names)}
    back = to_avalanche(ours)
    for name in ("train", "test"):
        there, here = loaded(theirs.streams[name]), loaded(back.streams[name])
        for i, (old, again) in enumerate(zip(there, here, strict=True)):
            check_same(getattr(ours.tasks[i], name), old[0], old[1], new)
            check_same(getattr(ours.tasks[i], name), again[0], again[1])
            if task_labels:
                assert torch.equal(old[2], again[2]) and set(old[2].tolist()) == {i}


def test_labels_in_the_order_in_which_they_arrive_are_kept() -> None:
    ours = from_avalanche(new_classes(class_ids_from_zero_from_first_exp=True))
    assert ours.class_names == tuple("012345")
    again = from_avalanche(new_classes(task_labels=True, class_ids_from_zero_in_each_exp=True))
    assert [task.classes for task in again.tasks] == [(0, 1)] * 3 and again.task_known_at_test


def test_new_instances_share_their_test_experience() -> None:
    theirs = new_instances()
    assert len(theirs.test_stream) == 1
    ours = from_avalanche(theirs)
    (whole,) = loaded(theirs.test_stream)
    for task, there in zip(ours.tasks, loaded(theirs.train_stream), strict=True):
        check_same(task.train, there[0], there[1])
        check_same(task.test, whole[0], whole[1])
        assert task.classes == tuple(range(6))
    assert not ours.task_known_at_test
    assert from_avalanche(to_avalanche(ours)).checksum() == ours.checksum()


@pytest.mark.parametrize("generator", ["class_incremental_benchmark", "new_instances_benchmark"])
def test_benchmarks_without_task_labels_come_over(generator: str) -> None:
    from avalanche import benchmarks
    from avalanche.benchmarks.utils import as_classification_dataset

    parts: list[Any] = [tensors(60), tensors(24, 100)]
    train, test = (cast(Any, as_classification_dataset(part)) for part in parts)
    if generator == "class_incremental_benchmark":
        data = {"train": train, "test": test}
        theirs = benchmarks.class_incremental_benchmark(data, num_experiences=3, class_order=[4, 1, 0, 5, 2, 3])
    else:
        theirs = benchmarks.new_instances_benchmark(train, test, num_experiences=3, shuffle=False)
    ours = from_avalanche(theirs)
    assert len(ours.tasks) == 3 and not ours.task_known_at_test
    new = {int(name): i for i, name in enumerate(ours.class_names)}
    for task, (x, y) in zip(ours.tasks, loaded(theirs.streams["train"]), strict=True):
        check_same(task.train, x, y, new)


def test_avalanches_validation_stream_comes_over() -> None:
    from avalanche.benchmarks import benchmark_with_validation_stream

    with pytest.warns(UserWarning, match="converted to a list"):
        theirs = benchmark_with_validation_stream(new_classes(), validation_size=0.2)
    ours = from_avalanche(theirs)
    new = {int(name): i for i, name in enumerate(ours.class_names)}
    for task, (x, y, *_) in zip(ours.tasks, loaded(theirs.streams["valid"], "eval"), strict=True):
        assert task.validation is not None and len(y) == 4 and len(task.train.y) == 16
        check_same(task.validation, x, y, new)
    assert from_avalanche(to_avalanche(ours)).checksum() == ours.checksum()


def test_labels_that_training_lacks_are_numbered_too() -> None:
    train, test, valid = (rows((X, label), (X, 7)) for label in (7, 3, 5))
    ours = from_avalanche(made([train, train], [test, test], valid=[valid, valid]))
    assert ours.class_names == ("3", "7", "5") and ours.tasks[0].classes == (0, 1)
    assert ours.tasks[0].validation is not None and ours.tasks[0].validation.y.tolist() == [2, 1]


def test_avalanches_online_scenario_comes_over() -> None:
    from avalanche.benchmarks import OnlineCLScenario

    theirs = new_classes()
    with pytest.warns(UserWarning, match="Deprecated"):
        online = OnlineCLScenario(theirs.streams.values(), experience_size=5, shuffle=False)
    ours, whole = from_avalanche(online), from_avalanche(theirs)
    assert ours.one_pass and not ours.boundaries_known
    for mine, other in zip(ours.tasks, whole.tasks, strict=True):
        check_same(mine.train, other.train.x, other.train.y)
        check_same(mine.test, other.test.x, other.test.y)


@pytest.mark.parametrize("known", [True, False])
def test_an_online_split_is_joined_in_its_own_order(known: bool) -> None:
    theirs = new_classes()
    split = split_online_stream(theirs.train_stream, 7, seed=3, access_task_boundaries=known)
    online = CLScenario([split, theirs.test_stream])
    ours = from_avalanche(online)
    assert ours.one_pass and ours.boundaries_known is known and len(ours.tasks) == 3
    new = {int(name): i for i, name in enumerate(ours.class_names)}
    there = loaded(online.streams["train_online"])
    assert [len(x) for x, *_ in there] == [7, 7, 6] * 3
    for i, task in enumerate(ours.tasks):
        x, y = (torch.cat([part[column] for part in there[3 * i : 3 * i + 3]]) for column in (0, 1))
        check_same(task.train, x, y, new)
        assert not torch.equal(x, loaded(theirs.train_stream)[i][0])  # it was shuffled
    back = loaded(to_avalanche(ours, batch_size=7).streams["train"])
    for old, again in zip(there, back, strict=True):
        assert torch.equal(old[0], again[0])
    assert from_avalanche(to_avalanche(ours, batch_size=4)).checksum() == ours.checksum()


def pictures(**transforms: Any) -> Any:
    return new_classes(data=(Pictures(30), Pictures(12, 1)), **transforms)


def test_images_are_what_the_eval_transform_makes_of_them() -> None:
    from torchvision.transforms import Compose, Normalize, ToTensor

    scaled = Compose([ToTensor(), Normalize((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))])
    theirs = pictures(train_transform=scaled, eval_transform=scaled)
    ours = from_avalanche(theirs)
    for name in ("train", "test"):
        for i, (x, y, *_) in enumerate(loaded(theirs.streams[name], "eval")):
            check_same(getattr(ours.tasks[i], name), x, y, {int(old): new for new, old in enumerate(ours.class_names)})


def test_images_without_a_transform_are_kept_as_bytes() -> None:
    from torchvision.transforms import ToTensor

    bare = from_avalanche(pictures())
    scaled = from_avalanche(pictures(train_transform=ToTensor(), eval_transform=ToTensor()))
    assert bare.tasks[0].train.x.dtype == torch.uint8 and bare.input_shape == (3, 6, 5)
    for ours, theirs in zip(bare.tasks, scaled.tasks, strict=True):
        check_same(ours.train, theirs.train.x, theirs.train.y)
        check_same(ours.test, theirs.test.x, theirs.test.y)


class Jitter:
    """Adds a number that torch, NumPy or Python draws."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw

    def __call__(self, x: Tensor) -> Tensor:
        return x + float(self.draw())


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), np.random.rand, random.random])
def test_random_transforms_are_refused_or_dropped(draw: Any) -> None:
    jittered = new_classes(train_transform=Jitter(draw))
    with pytest.raises(
        OptionError, match=r"training experience 0: its training transforms .* 'train_transforms: drop'"
    ):
        from_avalanche(jittered)
    dropped = from_avalanche(jittered, train_transforms="drop")
    assert dropped.checksum() == from_avalanche(new_classes()).checksum()
    always = new_classes(train_transform=Jitter(draw), eval_transform=Jitter(draw))
    with pytest.raises(OptionError, match="training transforms"):
        from_avalanche(always)
    before = states()
    first = from_avalanche(always, "drop").checksum()
    assert from_avalanche(always, "drop").checksum() == first  # whatever was drawn before
    assert states() == before


def states() -> tuple[Any, ...]:
    """Of the global generators."""
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


def plain(data: Any, **attributes: list[int]) -> Any:
    from avalanche.benchmarks.utils import AvalancheDataset

    return AvalancheDataset([data], data_attributes=[DataAttribute(v, name) for name, v in attributes.items()])


def rows(*values: Any) -> Any:
    return plain(list(values))


X = torch.zeros(2)
ONE = rows((X, 0))


def made(train: list[Any], test: list[Any], **others: list[Any]) -> Any:
    return benchmark_from_datasets(train=train, test=test, **others)


def endless() -> Any:
    from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
    from avalanche.benchmarks.scenarios.generic_scenario import CLStream

    experiences = (DatasetExperience(dataset=ONE, current_experience=i) for i in count())
    return CLScenario([CLStream("train", experiences), made([ONE], [ONE]).streams["test"]])


def mixed() -> Any:
    from avalanche.benchmarks.scenarios.online import split_continuous_linear_decay_stream

    whole = new_classes()
    with torch.random.fork_rng():
        train = list(split_continuous_linear_decay_stream(whole.train_stream, 5, 4, beta=4, shuffle=False))
    return CLScenario([EagerCLStream("train", train), whole.test_stream])


def labelled(*task_labels: list[int]) -> Any:
    data = [plain(tensors(len(t)), targets=[0] * len(t), targets_task_labels=t) for t in task_labels]
    return made(data, data)


REFUSED = {
    "no benchmark": (lambda: [ONE], "a list is no benchmark of Avalanche's"),
    "no test": (lambda: benchmark_from_datasets(train=[ONE]), "one stream named test or original_test; it has: train"),
    "two to train on": (lambda: made([ONE], [ONE], train_online=[ONE]), "one stream named train or train_online"),
    "empty stream": (lambda: made([], [ONE]), "the stream 'train' is empty"),
    "no length": (endless, "the stream 'train' is made as it is asked for"),
    "other numbers": (lambda: made([ONE] * 3, [ONE] * 2), "2 test and 0 validation experiences .* with 3 tasks"),
    "other validation": (lambda: made([ONE] * 2, [ONE], valid=[ONE]), "1 test and 1 validation .* with 2 tasks"),
    "mixed tasks": (mixed, "does not tell which one it is cut from"),
    "no samples": (lambda: made([rows()], [ONE]), "training experience 0 holds no samples"),
    "regression": (lambda: made([ONE, rows((X, 0.5))], [ONE]), "experience 1: a target is no class but 0.5"),
    "several labels": (lambda: made([ONE], [rows((X, torch.zeros(3).long()))]), "test experience 0: a target"),
    "detection": (lambda: made([rows((X, {"boxes": []}))], [ONE]), "no class but {'boxes'"),
    "no target": (lambda: made([rows((X,))], [ONE]), "not an input and its class"),
    "no tensor": (lambda: made([rows(("text", 0))], [ONE]), "an input is a str; an eval transform"),
    "shapes": (lambda: made([rows((X, 0), (X[:1], 0))], [ONE]), "experience 0: the samples differ"),
    "shapes of tasks": (lambda: made([ONE, rows((X[:1], 0))], [ONE]), "of its experiences, the samples differ"),
    "shared test": (
        lambda: made([ONE, rows((X, 1))], [rows((X, 0), (X, 1))]),
        r"training experience 0 lacks classes \[1\]",
    ),
    "mixed task labels": (
        lambda: labelled([0, 0], [0, 1]),
        r"are \[\[0\], \[0, 1\]\], which do not name one task each",
    ),
    "a task label again": (lambda: labelled([0], [1], [0]), "which do not name one task each"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_stream_is_refused(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(OptionError, match=message):
        from_avalanche(make())


def test_task_labels_that_name_one_task_each_are_told() -> None:
    assert from_avalanche(labelled([3, 3], [1])).task_known_at_test
    assert not from_avalanche(labelled([3, 3], [3])).task_known_at_test


# Each trains on the other's


@pytest.mark.slow
@pytest.mark.parametrize("boundaries", [True, False])
def test_a_stock_script_trains_on_our_online_stream(boundaries: bool) -> None:
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.models import SimpleMLP
    from avalanche.training.supervised import Naive

    torch.manual_seed(0)
    ours = stream(boundaries=boundaries, n_tasks=2)
    benchmark = to_avalanche(ours, batch_size=20)
    model = SimpleMLP(num_classes=10, input_size=64, hidden_size=50, drop_rate=0.0)
    script = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=20,
        eval_mb_size=100,
        plugins=[stock_plugin({"plugin": "ReplayPlugin", "mem_size": 100})],
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[BaseLogger()]),
    )
    for experience in benchmark.streams["train"]:
        script.train(experience)
    updates = sum(-(-len(task.train.y) // 20) for task in ours.tasks)
    assert len(benchmark.streams["train"]) == updates
    final = list(script.eval(benchmark.streams["test"]).values())
    assert len(final) == 2 and final[1] > 0.6 and final[0] > 0.1  # guessing gives 0.1


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """MNIST's files as torchvision reads them, of noise with a bright row for each class."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name, n in (("train", 200), ("t10k", 60)):
        y = (np.arange(n) % 10).astype(np.uint8)
        x = draw.integers(0, 100, (n, 28, 28), dtype=np.uint8)
        x[np.arange(n), 2 * y] = 255
        for kind, array in (("images-idx3", x), ("labels-idx1", y)):
            header = b"\x00\x00\x08" + bytes([array.ndim]) + b"".join(k.to_bytes(4, "big") for k in array.shape)
            (folder / f"{name}-{kind}-ubyte").write_bytes(header + array.tobytes())
    return tmp_path


def build(run_seed: int = 0, **options: Any) -> Scenario:
    return registry.build("scenario", "avalanche", options, seed=run_seed)


def split_mnist(root: Path, run_seed: int = 0, **arguments: Any) -> Scenario:
    return build(run_seed, benchmark="SplitMNIST", dataset_root=str(root), arguments=arguments)


def test_a_benchmark_by_its_name(root: Path) -> None:
    ours = split_mnist(root, n_experiences=5)
    assert len(ours.tasks) == 5 and ours.input_shape == (1, 28, 28) and not ours.task_known_at_test
    assert split_mnist(root, n_experiences=5, return_task_id=True).task_known_at_test
    pixels = (root / "MNIST/raw/train-images-idx3-ubyte").read_bytes()[16:]
    x = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(-1, 1, 28, 28).float() / 255
    for task in ours.tasks:
        for label in task.classes:
            theirs = x[int(ours.class_names[label]) :: 10]
            assert torch.equal(task.train.x[task.train.y == label], (theirs - 0.1307) / 0.3081)


@pytest.mark.slow
def test_the_seed_draws_the_order_of_the_classes(root: Path) -> None:
    first = split_mnist(root, n_experiences=5)
    assert split_mnist(root, n_experiences=5).checksum() == first.checksum()
    assert split_mnist(root, 1, n_experiences=5).class_names != first.class_names
    assert split_mnist(root, 1, n_experiences=5, seed=0).checksum() == first.checksum()


def test_the_seed_reaches_avalanche(monkeypatch: pytest.MonkeyPatch) -> None:
    from avalanche import benchmarks

    given: list[Any] = []

    def seeded(seed: int = -1) -> Any:
        given.append(seed)
        return new_classes()

    def unseeded() -> Any:
        given.append(float(torch.rand(1)))
        return new_classes()

    for make in (seeded, unseeded):
        make.__module__ = "avalanche.benchmarks.mine"
        monkeypatch.setattr(benchmarks, make.__name__, make, raising=False)
    build(3, benchmark="seeded")
    build(3, benchmark="seeded", arguments={"seed": 5})
    assert given == [3, 5]
    state = torch.get_rng_state()
    for seed in (3, 3, 4):
        build(seed, benchmark="unseeded")
    assert given[2] == given[3] != given[4] and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"benchmark": "SplitMnist"}, OptionError, "no benchmark 'SplitMnist'; did you mean 'SplitMNIST'"),
        ({"benchmark": "SplitMINST"}, OptionError, "did you mean 'SplitMNIST'"),
        ({"benchmark": "SplitMNIST"}, OptionError, "SplitMNIST needs 'n_experiences'"),
        ({"benchmark": "SplitMNIST", "arguments": {"n_experience": 5}}, OptionError, "did you mean 'n_experiences'"),
        ({"benchmark": "SplitMNIST", "arguments": {"n_experiences": 3}}, OptionError, "cannot be divided"),
        ({"benchmark": "nc_benchmark"}, OptionError, "nc_benchmark needs 'train_dataset'"),
        ({"benchmark": "NCScenario"}, OptionError, "NCScenario needs 'train_dataset'"),
        ({"benchmark": "nowhere"}, FileNotFoundError, "no data for nowhere: put them where 'dataset_root' says"),
        ({"benchmark": "SplitMNIST", "train_transforms": "keep"}, plugins_options.OptionsError, "train_transforms"),
    ],
)
def test_a_benchmark_that_cannot_be_made_is_refused(
    options: dict[str, Any], error: type[Exception], message: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avalanche import benchmarks

    def nowhere(dataset_root: Any = None) -> Any:
        raise RuntimeError("Error downloading")

    nowhere.__module__ = "avalanche.benchmarks.mine"
    monkeypatch.setattr(benchmarks, "nowhere", nowhere, raising=False)
    place = {"dataset_root": str(root)} if options["benchmark"] == "SplitMNIST" else {}
    with pytest.raises(error, match=message):
        registry.build("scenario", "avalanche", {**options, **place}, seed=0)


def test_a_run_trains_on_a_benchmark_of_avalanche(root: Path) -> None:
    arguments = {"n_experiences": 2, "shuffle": False}
    run = description(
        Strategy(name="naive", reference={"name": "naive"}),
        scenario={
            "name": "avalanche",
            "benchmark": "SplitMNIST",
            "arguments": arguments,
            "dataset_root": str(root),
        },
        model={"name": "mlp", "hidden": [20]},
        protocol=Protocol(task_known_at_test=False, budget=Budget(epochs=5)),
        train=Train(batch_size=10, lr=1e-2),
    )
    result = one_run.run(run)
    assert result.accuracy[0][0] is not None and result.accuracy[0][0] > 0.5
    assert result.accuracy[1][1] is not None and result.accuracy[1][1] > 0.5
    assert result.test_sizes == [30, 30]
