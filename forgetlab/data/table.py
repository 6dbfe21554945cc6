"""The user's own rows as a data set: which column is the label, which the domain, and what the others become.

A row keeps the number or name under which its file shows it, so that an error says where to look.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from forgetlab.data.datasets import Dataset, Samples
from forgetlab.data.text import Form, Texts, as_dataset
from forgetlab.plugins.options import OptionError, suggestion
from forgetlab.seeding import generator

Share = Annotated[float, Field(gt=0, lt=1)]
DomainOrder = Literal["sorted", "appearance"]
DataFrame = Any  # pandas', imported late; its own hints do not tell what an index gives
Series = Any

TOLD = 5  # rows that an error names one by one


class Table(NamedTuple):
    """Rows and the name of what they were read from; the index's name says what it counts: line, row, file."""

    name: str
    rows: DataFrame

    def column(self, name: str, option: str | None = None) -> Series:
        """
        Raises:
            OptionError: there is no such column.
        """
        known = list(self.rows.columns)
        if name not in known:
            hint = suggestion(name, known) or f"; it has {', '.join(known[:20])}"
            raise OptionError(f"{self.name} has no column {name!r}{hint}", option)
        return self.rows[name]


@dataclass(frozen=True)
class Labelled:
    """Training and test rows with their labels and domains; what x is, is still to be said."""

    train: Table
    test: Table
    y: tuple[Tensor, Tensor]
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...] = ()
    domains: tuple[Tensor, Tensor] | None = None

    def dataset(self, train_x: Tensor, test_x: Tensor) -> Dataset:
        """With inputs in the order of the rows."""
        train, test = Samples(train_x, self.y[0]), Samples(test_x, self.y[1])
        return Dataset(train, test, self.class_names, self.domain_names, self.domains)

    def taken_from(self, x: Tensor) -> Dataset:
        """With the rows of x that the tables count from 0."""
        train, test = (x[torch.tensor(table.rows.index.tolist())] for table in (self.train, self.test))
        return self.dataset(train, test)


def labelled(
    train: Table,
    test: Table | None,
    label: str,
    *,
    domain: str | None = None,
    class_names: Sequence[str] = (),
    domain_names: Sequence[str] = (),
    domain_order: DomainOrder = "sorted",
    test_share: float = 0.2,
) -> Labelled:
    """The rows with the labels and domains of their columns, numbered in order; without test rows a share is held out.

    Where names are given, the column holds their positions.

    Raises:
        OptionError: a column or a value is missing, or a class or domain has no training or no test row.
    """
    tables = [train] if test is None else [train, test]
    y, classes = _numbered(tables, label, "label", class_names, "sorted")
    domains, sources = _numbered(tables, domain, "domain", domain_names, domain_order) if domain else (None, ())
    if test is None:
        is_test = held_out_rows(y[0], test_share, domains[0] if domains else None)
        parts = [(~is_test).nonzero().squeeze(1), is_test.nonzero().squeeze(1)]
        tables = [Table(train.name, train.rows.iloc[rows.numpy()]) for rows in parts]
        y, domains = [y[0][rows] for rows in parts], domains and [domains[0][rows] for rows in parts]
    _need_both(tables, y, classes, f"{label!r}")
    if domains:
        _need_both(tables, domains, sources, f"{domain!r}")
    origins = (domains[0], domains[1]) if domains else None
    return Labelled(tables[0], tables[1], (y[0], y[1]), classes, sources, origins)


def held_out_rows(y: Tensor, share: float, domains: Tensor | None = None) -> Tensor:
    """(N,) whether a row is for testing: the same share of each class in each domain, drawn once by a fixed seed.

    Of two rows or more one at least is for testing.
    """
    groups = y if domains is None else domains * (int(y.max()) + 1) + y
    draw, is_test = generator("held_out", 0), torch.zeros(len(y), dtype=torch.bool)
    for group in groups.unique().tolist():
        rows = (groups == group).nonzero().squeeze(1)
        n = min(max(round(share * len(rows)), 1), len(rows) - 1)
        is_test[rows[torch.randperm(len(rows), generator=draw)[:n]]] = True
    return is_test


def thinned(rows: DataFrame, column: str, n: int) -> DataFrame:
    """At most n rows of each value of a column, drawn by a fixed seed, in their order."""
    draw = generator("thinned", 0)
    places = [torch.from_numpy(places) for _, places in sorted(rows.groupby(column).indices.items())]
    drawn = torch.cat([of[torch.randperm(len(of), generator=draw)[:n]] for of in places])
    return rows.iloc[drawn.sort().values.numpy()]


def by_column(table: Table, column: str) -> tuple[Table, Table]:
    """The training and the test rows, as a column with the values train and test says.

    Raises:
        OptionError: the column holds something else, or only one of the two.
    """
    values = complete(table, column, "split").astype(str).str.strip().str.lower()
    other = ~values.isin(["train", "test"])
    if other.any():
        where = f"{values[other].iloc[0]!r} in {named_rows(values.index[other])}"
        raise OptionError(f"{table.name}: {column!r} says train or test, but {where}", "split")
    if values.nunique() < 2:
        raise OptionError(f"{table.name}: {column!r} says {values.iloc[0]} in every row", "split")
    return Table(table.name, table.rows[values == "train"]), Table(table.name, table.rows[values == "test"])


def texts(parts: Labelled, column: str, *, form: Form = "ids", max_length: int = 64) -> Dataset:
    """x is a column's texts, as token ids or as features."""
    tables = parts.train, parts.test
    read = [complete(table, column, "text").astype(str).tolist() for table in tables]
    domains = [of.tolist() for of in parts.domains] if parts.domains else [None, None]
    train, test = (Texts(*part) for part in zip(read, [y.tolist() for y in parts.y], domains, strict=True))
    return as_dataset(train, test, parts.class_names, form=form, max_length=max_length, domain_names=parts.domain_names)


def named_rows(rows: Any) -> str:
    """Rows in an error, by their index: ``lines 3, 4, 5, 6, 7 and 12 more``."""
    few, more = ", ".join(str(row) for row in rows[:TOLD]), len(rows) - TOLD
    return f"{rows.name or 'row'}{'s' * (len(rows) > 1)} {few}{f' and {more} more' if more > 0 else ''}"


def in_order(names: Collection[str]) -> list[str]:
    """Sorted, with the numbers inside by size.

    >>> in_order(["day 10", "day 9", "10", "2"])
    ['2', '10', 'day 9', 'day 10']
    """
    return sorted(names, key=lambda name: [int(p) if i % 2 else p for i, p in enumerate(re.split(r"(\d+)", name))])


def _numbered(
    tables: Sequence[Table], column: str, option: str, names: Sequence[str], order: DomainOrder
) -> tuple[list[Tensor], tuple[str, ...]]:
    """The values of each table's rows as positions in their names."""
    import pandas as pd

    values = [complete(table, column, option) for table in tables]
    known = [str(i) for i in range(len(names))] or names_of(values[0], order)
    position, found = {name: i for i, name in enumerate(known)}, []
    for table, of in zip(tables, values, strict=True):
        codes, distinct = pd.factorize(of)
        ids = torch.tensor([position.get(name_of(value), -1) for value in distinct])[torch.from_numpy(codes)]
        if (ids < 0).any():
            wrong = of[(ids < 0).numpy()]
            why = f"is not one of 0 to {len(names) - 1}, the positions of the names" if names else "has no training row"
            raise OptionError(f"{table.name}: {column!r} {name_of(wrong.iloc[0])!r} in {named_rows(wrong.index)} {why}")
        found.append(ids)
    return found, tuple(names) or tuple(known)


def names_of(values: Series, order: DomainOrder = "sorted") -> list[str]:
    """The names of the different values; numbers and dates by size."""
    from pandas.api import types

    distinct = values.drop_duplicates()
    if order == "appearance":
        return list(dict.fromkeys(map(name_of, distinct)))
    if types.is_numeric_dtype(distinct) or types.is_datetime64_any_dtype(distinct):
        return list(dict.fromkeys(map(name_of, distinct.sort_values())))
    return in_order(dict.fromkeys(map(name_of, distinct)))


def name_of(value: Any) -> str:
    """
    >>> name_of(3.0), name_of(0.5), name_of("setosa")
    ('3', '0.5', 'setosa')
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).removesuffix(" 00:00:00")  # a date that pandas keeps as a moment


def complete(table: Table, column: str, option: str) -> Series:
    values = table.column(column, option)
    if (gaps := values.isna()).any():
        also = "; NA, None and null count as no value too"
        raise OptionError(f"{table.name}: {column!r} has no value in {named_rows(values.index[gaps])}{also}", option)
    return values


def _need_both(tables: Sequence[Table], ids: Sequence[Tensor], names: Sequence[str], column: str) -> None:
    for table, of, part in zip(tables, ids, ("training", "test"), strict=True):
        absent = [name for name, n in zip(names, of.bincount(minlength=len(names)).tolist(), strict=True) if not n]
        if absent:
            raise OptionError(f"{table.name}: no {part} row has {column} {', '.join(absent[:TOLD])}")
