"""The real data sets: their sizes and labels, what they say when they are not there, and the streams made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from forgetlab.avalanche.tensor_data import TensorTask, to_benchmark
from forgetlab.data.datasets import Dataset, as_input
from forgetlab.plugins import registry
from forgetlab.streams.scenario import Scenario
from helpers.commands import invoke
from helpers.data import existing


def built(name: str, seed: int = 0, **options: object) -> Scenario:
    return registry.build("scenario", name, options, seed=seed)


@pytest.fixture(scope="module")
def fashion() -> Dataset:
    return existing("fashion_mnist")


@pytest.fixture(scope="module")
def mnist() -> Dataset:
    return existing("mnist_5k")


def test_fashion_mnist_is_whole(fashion: Dataset) -> None:
    assert fashion.train.x.shape == (60_000, 1, 28, 28) and fashion.train.x.dtype == torch.uint8
    assert fashion.train.y.bincount().tolist() == [6000] * 10
    assert fashion.test.y.bincount().tolist() == [1000] * 10


def test_mnist_5k_is_divided_class_by_class(mnist: Dataset) -> None:
    assert mnist.train.y.bincount().tolist() == [400] * 10
    assert mnist.test.y.bincount().tolist() == [100] * 10
    train = {row.numpy().tobytes() for row in mnist.train.x}
    assert not any(row.numpy().tobytes() in train for row in mnist.test.x)


@pytest.mark.slow
@pytest.mark.usefixtures("fashion")
def test_bytes_become_numbers_between_0_and_1_on_every_path() -> None:
    task = built("split_fashion_mnist").tasks[0]
    data = TensorTask.of(task.test, 0)
    batch = data.__getitems__([0, 1]).columns[0]
    assert batch.dtype == torch.float32 and batch.min() >= 0 and batch.max() == 1
    assert torch.equal(batch[1], data[1][0]), "sample by sample as in a batch"
    assert torch.equal(batch, as_input(task.test.x[:2]))


@pytest.mark.slow
@pytest.mark.usefixtures("fashion")
def test_permuted_tasks_hold_the_same_pixels_in_another_order() -> None:
    stream = built("permuted_fashion_mnist", n_tasks=3)
    original, first, second = (task.test.x[:50].flatten(1) for task in stream.tasks)
    for shuffled in (first, second):
        assert not torch.equal(shuffled, original)
        assert torch.equal(shuffled.sort(dim=1).values, original.sort(dim=1).values)
    same_pixel_everywhere = (first == first[:, :1]).all(0)
    assert not torch.equal(first, second) and not same_pixel_everywhere.all()
    again, other = built("permuted_fashion_mnist", n_tasks=3), built("permuted_fashion_mnist", seed=1, n_tasks=3)
    assert torch.equal(again.tasks[1].test.x, stream.tasks[1].test.x)
    assert not torch.equal(other.tasks[1].test.x, stream.tasks[1].test.x)
    assert {task.classes for task in stream.tasks} == {tuple(range(10))}


@pytest.mark.slow
@pytest.mark.usefixtures("fashion")
def test_a_quarter_turn_is_exact() -> None:
    stream = built("rotated_fashion_mnist", n_tasks=3, max_angle=180.0)
    upright, quarter, half = (task.test.x[:50] for task in stream.tasks)
    assert torch.equal(quarter, upright.rot90(1, (2, 3)))
    assert torch.equal(half, upright.rot90(2, (2, 3)))
    assert stream.tasks[1].name == "90 degrees"


@pytest.mark.slow
@pytest.mark.usefixtures("fashion")
def test_a_domain_stream_in_the_class_incremental_setting_has_new_labels_in_every_task() -> None:
    stream = built("permuted_fashion_mnist", n_tasks=2, setting="class-incremental")
    assert [task.classes for task in stream.tasks] == [tuple(range(10)), tuple(range(10, 20))]
    assert sorted(stream.tasks[1].train.y.unique().tolist()) == list(range(10, 20))
    assert stream.n_classes == 20 and stream.class_names[10] == "t-shirt permutation 1"


@pytest.mark.usefixtures("mnist")
def test_split_mnist_5k_becomes_a_benchmark() -> None:
    benchmark = to_benchmark(built("split_mnist_5k"))
    assert [len(e.dataset) for e in benchmark.streams["train"]] == [800] * 5


def test_missing_data_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    factory = registry.find("data", "fashion_mnist").factory
    monkeypatch.setitem(factory.__globals__, "FOLDERS", (tmp_path,))
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        factory()


@pytest.mark.slow
def test_data_is_found_in_the_users_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fashion: Dataset) -> None:
    factory = registry.find("data", "fashion_mnist").factory
    real = factory.__globals__["FOLDERS"]
    source = next(folder for folder in real if (folder / "train-images-idx3-ubyte.gz").is_file())
    (tmp_path / "fashion-mnist").symlink_to(source)
    monkeypatch.setitem(factory.__globals__, "FOLDERS", (tmp_path / "fashion-mnist",))
    assert torch.equal(factory().test.y, fashion.test.y)


OWN = ("arrays", "hugging_face", "image_folder", "joined", "table", "text_files", "torchvision")  # the user's data


@pytest.mark.parametrize("name", sorted(set(registry.available("data")) - set(OWN)))
def test_every_data_set_tells_its_licence(name: str) -> None:
    result = invoke("show", "data", name)
    assert "Licence: " in result.output
