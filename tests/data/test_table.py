"""Tables: which column becomes what, by which rows, and what is said of a value that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from forgetlab.data.datasets import Dataset, dataset
from forgetlab.data.table import held_out_rows, thinned
from forgetlab.plugins.options import OptionError, OptionsError
from helpers import data

Frame = dict[str, Any]


def written(folder: Path, rows: Frame, name: str = "my.csv") -> Path:
    path = folder / name
    frame = pd.DataFrame(rows)
    if name.endswith(".parquet"):
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if ".tsv" in name else ",")
    return path


def read(path: Path, **options: Any) -> Dataset:
    return dataset({"name": "table", "path": str(path), "label": "species", **options})


def divided(folder: Path, train: Frame, test: Frame, **options: Any) -> Dataset:
    return read(written(folder, train), test_path=str(written(folder, test, "test.csv")), **options)


def refused(path: Path, option: str | None = None, **options: Any) -> str:
    return data.refused("table", option, **{"path": str(path), "label": "species", **options})


def many(n: int = 40) -> Frame:
    """Rows that are known again by their number, in two classes and four years."""
    return {
        "number": range(n),
        "species": ["owl", "auk"] * (n // 2),
        "year": [2010 + (i // 2) % 4 for i in range(n)],
    }


@pytest.mark.parametrize("name", ["my.csv", "my.tsv", "my.parquet", "my.csv.gz"])
def test_numbers_are_standardised_by_the_training_rows(tmp_path: Path, name: str) -> None:
    train = {"width": [1.0, 2.0, 3.0, 6.0], "tall": [True, False, True, True], "species": ["b", "a", "b", "a"]}
    test = {"tall": [False, True], "width": [5.0, 3.0], "species": ["a", "b"]}
    path, test_path = written(tmp_path, train, name), written(tmp_path, test, f"test-{name}")
    data = read(path, test_path=str(test_path))
    deviation = np.std([1, 2, 3, 6])
    expected = torch.tensor([[(v - 3) / deviation, t] for v, t in zip([1, 2, 3, 6], [1, 0, 1, 1], strict=True)])
    torch.testing.assert_close(data.train.x, expected.float())
    torch.testing.assert_close(data.test.x, torch.tensor([[2 / deviation, 0.0], [0.0, 1.0]], dtype=torch.float32))
    assert data.class_names == ("a", "b")
    assert data.train.y.tolist() == [1, 0, 1, 0] and data.test.y.tolist() == [0, 1]


def test_text_has_a_column_for_each_value_of_the_training_rows(tmp_path: Path) -> None:
    train = {"colour": ["red", "blue", "red"], "species": ["a", "b", "a"]}
    data = divided(tmp_path, train, {"colour": ["green", "blue"], "species": ["a", "b"]})
    assert data.train.x.tolist() == [[0, 1], [1, 0], [0, 1]]
    assert data.test.x.tolist() == [[0, 0], [1, 0]], "green is unknown"


def test_numbers_are_names_where_the_file_says_so(tmp_path: Path) -> None:
    train = {"code": [10, 9, 10], "species": ["a", "b", "a"]}
    data = divided(tmp_path, train, {"code": [9, 8], "species": ["a", "b"]}, categorical=["code"])
    assert data.train.x.tolist() == [[0, 1], [1, 0], [0, 1]] and data.test.x.tolist() == [[1, 0], [0, 0]]


def test_a_constant_column_is_zero_also_where_it_changes_later(tmp_path: Path) -> None:
    train = {"same": [0.1] * 6, "width": range(6), "species": ["a", "b"] * 3}
    data = divided(tmp_path, train, {"same": [0.1, 7.0], "width": [0, 1], "species": ["a", "b"]})
    assert data.train.x[:, 0].tolist() == [0] * 6 and data.test.x[:, 0].tolist() == [0, 0]


def test_a_missing_value_is_refused_with_its_line_or_is_the_mean(tmp_path: Path) -> None:
    train = {
        "width": [1.0, None, 3.0, 5.0],
        "colour": ["red", "blue", None, "red"],
        "tall": [True, None, False, False],
        "species": ["a", "b", "a", "b"],
    }
    test = {"width": [None, 3.0], "colour": ["red", None], "tall": [True, False], "species": ["a", "b"]}
    with pytest.raises(OptionError, match=r"my.csv.*'width' in line 3; 'colour' in line 4; 'tall' in line 3"):
        divided(tmp_path, train, test)
    data = divided(tmp_path, train, test, missing="mean")
    third = pytest.approx(1 / 3)
    assert data.train.x[1].tolist() == [0, 1, 0, third], "3.0 is the mean of the others"
    assert data.train.x[2, 1:].tolist() == [third, pytest.approx(2 / 3), 0]
    assert data.test.x[0, 0] == 0
    complete = {key: [values[0], values[3]] for key, values in train.items()}
    with pytest.raises(OptionError, match=r"test.csv.*'width' in line 2; 'colour' in line 3"):
        divided(tmp_path, complete, test)


def test_lines_are_those_of_a_spreadsheet_after_blank_lines_too(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    path.write_text("width,species\n1,a\n\n2,b\n,a\n4,b\n\n", encoding="utf-8")
    assert "'width' in line 5:" in refused(path)
    path.write_text("width,species\n1,3\n\n2,1\n5,3\n4,1\n", encoding="utf-8")
    assert read(path).class_names == ("1", "3"), "whole numbers stay whole"


def test_many_lines_are_counted(tmp_path: Path) -> None:
    rows = many() | {"width": [None] * 8 + [1.5] * 32}
    assert "'width' in lines 2, 3, 4, 5, 6 and 3 more" in refused(written(tmp_path, rows))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, 2, 10, 9, 2], ("2", "9", "10")),
        ([0.5, 1.0, 0.5, 1.0, 1.0, 0.5], ("0.5", "1")),
        (["day 10", "day 9"] * 3, ("day 9", "day 10")),
        ([True, False] * 3, ("False", "True")),
    ],
)
def test_classes_are_in_the_order_of_their_names(tmp_path: Path, labels: list[Any], names: tuple[str, ...]) -> None:
    data = read(written(tmp_path, {"width": range(6), "species": labels}))
    assert data.class_names == names


def test_rows_are_held_out_class_by_class_in_each_domain_and_stay_together(tmp_path: Path) -> None:
    path = written(tmp_path, many())
    data = read(path, domain="year", categorical=["number"], test_share=0.4)
    assert data.domain_names == ("2010", "2011", "2012", "2013")
    assert data.domains is not None and data.test.x.shape == (16, 24)
    for part, source, share in ((data.train, data.domains[0], 3), (data.test, data.domains[1], 2)):
        assert (source * 2 + part.y).bincount().tolist() == [share] * 8
    whole = many()
    known = data.train.x.argmax(1)  # a training row's number, by its place among those of the training rows
    numbers = [i for i in range(40) if i not in held_numbers(path)]
    for place, y, source in zip(known.tolist(), data.train.y.tolist(), data.domains[0].tolist(), strict=True):
        assert whole["species"][numbers[place]] == data.class_names[y]
        assert whole["year"][numbers[place]] == 2010 + source
    again = read(path, domain="year", categorical=["number"], test_share=0.4)
    assert torch.equal(again.train.x, data.train.x) and torch.equal(again.test.y, data.test.y)


def held_numbers(path: Path) -> set[int]:
    """Which numbers are for testing, told by the labels alone."""
    rows = pd.read_csv(path)
    y = torch.tensor((rows["species"] == "owl").astype(int).to_numpy())
    return set(held_out_rows(y, 0.4, torch.tensor(rows["year"].to_numpy() - 2010)).nonzero().squeeze(1).tolist())


def test_one_of_two_rows_at_least_is_for_testing_and_one_for_training() -> None:
    y = torch.tensor([0] * 2 + [1] * 3 + [2] * 100 + [3])
    for share, counts in ((0.01, [1, 1, 1, 0]), (0.99, [1, 2, 99, 0]), (0.25, [1, 1, 25, 0])):
        assert y[held_out_rows(y, share)].bincount(minlength=4).tolist() == counts


def test_domains_are_sorted_or_in_the_order_of_appearance(tmp_path: Path) -> None:
    rows = {"width": range(12), "species": ["a", "b"] * 6, "place": ["north"] * 4 + ["east"] * 4 + ["10 km"] * 4}
    path = written(tmp_path, rows)
    assert read(path, domain="place").domain_names == ("10 km", "east", "north")
    assert read(path, domain="place", domain_order="appearance").domain_names == ("north", "east", "10 km")
    assert read(path, domain="place").train.x.shape[1] == 1, "the domain is no input"


def test_dates_may_be_domains_and_are_in_the_order_of_time(tmp_path: Path) -> None:
    days = pd.to_datetime(["2020-10-01"] * 4 + ["2020-09-30"] * 4)
    rows = {"width": range(8), "species": ["a", "b"] * 4, "day": days}
    for name in ("my.parquet", "my.csv"):
        path = written(tmp_path, rows, name)
        assert read(path, domain="day").domain_names == ("2020-09-30", "2020-10-01")
        assert "'day' holds dates" in refused(path)


def test_later_domains_may_be_unknown_to_the_statistics(tmp_path: Path) -> None:
    rows = {
        "width": [0.0, 2.0, 0.0, 2.0, 10.0, 12.0, 10.0, 12.0],
        "colour": ["red"] * 4 + ["blue"] * 4,
        "species": ["a", "b"] * 4,
        "year": [1] * 4 + [2] * 4,
        "part": ["train", "train", "test", "test"] * 2,
    }
    path = written(tmp_path, rows)
    data = read(path, domain="year", split="part", statistics="first_domain")
    assert data.train.x.tolist() == [[-1, 1], [1, 1], [9, 0], [11, 0]]
    whole = read(path, domain="year", split="part")
    assert whole.train.x.mean(0).tolist() == [pytest.approx(0, abs=1e-6), 0.5, 0.5]


def test_a_column_may_say_what_is_for_testing(tmp_path: Path) -> None:
    rows = many(8) | {"part": ["Train", "train", "train", "train", "test", "test ", "train", "train"]}
    data = read(written(tmp_path, rows), split="part", drop=["year"])
    assert data.test.y.tolist() == [1, 0] and len(data.train.y) == 6 and data.train.x.shape == (6, 1)
    rows["part"][2] = "val"
    assert "'val' in line 4" in refused(written(tmp_path, rows), "split", split="part")
    message = refused(written(tmp_path, rows | {"part": ["test"] * 8}), "split", split="part")
    assert "'part' says test in every row" in message
    refused(written(tmp_path, rows), "split", split="part", test_path=str(written(tmp_path, rows, "test.csv")))


def test_a_text_column_becomes_token_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGETLAB_CACHE", str(tmp_path / "cache"))
    said = {"owl": "hello world", "auk": "good night"}
    rows: Frame = many(16) | {"said": [said[name] for name in many(16)["species"]]}
    data = read(written(tmp_path, rows), text="said", domain="year", max_length=6)
    assert data.tokenizer == "minilm" and data.train.x.shape == (8, 6) and data.domain_names[0] == "2010"
    owls = data.train.x[data.train.y == 1]
    assert owls[0].tolist() == [101, 7592, 2088, 102, 0, 0] and (owls == owls[0]).all()
    assert data.domains is not None and len(data.domains[1]) == 8
    rows["said"][3] = None
    assert "'said' has no value in line 5" in refused(written(tmp_path, rows), "text", text="said")


def test_a_column_that_is_not_there_is_told_with_the_nearest_one(tmp_path: Path) -> None:
    path = written(tmp_path, {"width": range(4), "Species": ["a", "b"] * 2})
    message = refused(path, "label")
    assert message == "my.csv has no column 'species'; did you mean 'Species'?"
    assert "it has width, Species" in refused(path, "domain", label="Species", domain="zzz")
    assert "did you mean 'width'" in refused(path, "drop", label="Species", drop=["widht"])
    assert "did you mean 'width'" in refused(path, "text", label="Species", text="wdth")
    with pytest.raises(OptionsError, match="'label' is missing"):
        dataset({"name": "table", "path": str(path)})


def test_a_test_file_lacks_a_column(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"test.csv has no column 'width'; did you mean 'width_cm'"):
        divided(tmp_path, {"width": [1, 2], "species": ["a", "b"]}, {"width_cm": [1, 2], "species": ["a", "b"]})
    with pytest.raises(OptionError, match=r"test.csv: 'width' holds numbers|test.csv: 'width' is a category here"):
        divided(tmp_path, {"width": [1, 2], "species": ["a", "b"]}, {"width": ["x", "y"], "species": ["a", "b"]})


def test_labels_that_cannot_be_learned_or_tested_are_refused(tmp_path: Path) -> None:
    rows: Frame = {"width": range(5), "species": ["a", "a", "b", "b", "c"]}
    assert "no test row has 'species' c" in refused(written(tmp_path, rows))
    train, test = {"width": [1, 2], "species": ["a", "b"]}, {"width": [1, 2, 3], "species": ["a", "b", "d"]}
    with pytest.raises(OptionError, match=r"test.csv: 'species' 'd' in line 4 has no training row"):
        divided(tmp_path, train, test)
    with pytest.raises(OptionError, match=r"no test row has 'species' b"):
        divided(tmp_path, train, {"width": [1], "species": ["a"]})
    rows["species"][1] = None
    assert "'species' has no value in line 3" in refused(written(tmp_path, rows), "label")
    sparse = {"width": range(5), "species": ["a", "b", "a", "b", "a"], "year": [1, 1, 1, 1, 2]}
    assert "no test row has 'year' 2" in refused(written(tmp_path, sparse), domain="year")


def test_columns_that_cannot_become_numbers_are_refused_with_advice(tmp_path: Path) -> None:
    def message(values: Any, option: str | None = None, name: str = "my.csv") -> str:
        return refused(written(tmp_path, {"odd": values, "species": ["a", "b"] * 20}, name), option)

    assert "'odd' has 32 different values" in refused(
        written(tmp_path, {"odd": [f"n{i}" for i in range(40)], "species": ["a", "b"] * 20}),
        "max_categories",
        max_categories=30,
    )
    assert "'odd' holds numbers, but '4,5' in line 5" in message(["1.5", "2", "3.5", "4,5"] + ["1"] * 36)
    assert "'odd' is infinite in lines 3, 5" in message([1, np.inf, 2, -np.inf] + [0] * 36)
    assert "values of type ndarray" in message([np.zeros(2)] * 40, name="my.parquet")
    assert "'odd' has no value at all" in refused(
        written(tmp_path, {"odd": [None] * 40, "species": ["a", "b"] * 20}), missing="mean"
    )
    assert "no column left" in refused(written(tmp_path, {"species": ["a", "b"] * 20}))


def test_row_numbers_that_pandas_wrote_are_no_input(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    pd.DataFrame({"width": range(20), "species": ["a"] * 10 + ["b"] * 10}).to_csv(path)
    assert "'Unnamed: 0' has no name in the file" in refused(path)
    assert read(path, drop=["Unnamed: 0"]).train.x.shape == (16, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "No columns"),
        (b"width,species\n", "holds no rows"),
        (b"width,species\n1,a\n2,b,3\n", "line 3, saw 3"),
        (b"width,species\n1,a,3\n2,b,3\n", "Length of header"),
        (b"width,width,species\n1,2,a\n", "two columns 'width'"),
        (b"width,species\n1,\xff\n", "'utf-8' codec"),
        (b"width;species\n1;a\n2;b\n", "no column 'species'"),
    ],
)
def test_a_file_that_is_no_table_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "my.csv"
    path.write_bytes(content)
    option = "label" if b";" in content else "path"
    found = refused(path, option)
    assert found.startswith("my.csv") and message in found


def test_a_separator_may_be_told(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    path.write_text("\ufeffwidth;species\n1;a\n2;b\n3;a\n4;b\n", encoding="utf-8")
    assert read(path, separator=";", test_share=0.5).train.x.shape == (2, 1)


def test_a_file_that_is_not_there_or_is_something_else(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.csv", "path")
    (tmp_path / "my.xlsx").write_bytes(b"PK")
    assert "ends in .csv, .tsv or .parquet" in refused(tmp_path / "my.xlsx", "path")
    (tmp_path / "my.parquet").write_bytes(b"PK")
    assert refused(tmp_path / "my.parquet", "path").startswith("my.parquet cannot be read")
    path = written(tmp_path, many())
    assert "no such file" in refused(path, "test_path", test_path=str(tmp_path / "none.csv"))


def test_an_index_of_a_parquet_file_is_a_column(tmp_path: Path) -> None:
    pd.DataFrame(many()).set_index("species").to_parquet(tmp_path / "my.parquet")
    assert read(tmp_path / "my.parquet").class_names == ("auk", "owl")


def test_thinned_rows_stay_in_order_and_are_the_same_again() -> None:
    rows = pd.DataFrame(many())
    few = thinned(rows, "year", 3)
    assert few["year"].value_counts().to_dict() == dict.fromkeys(range(2010, 2014), 3)
    assert few["number"].is_monotonic_increasing and few.equals(thinned(rows, "year", 3))
    assert len(thinned(rows, "year", 1000)) == 40
