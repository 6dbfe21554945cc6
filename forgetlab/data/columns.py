"""The columns of a table as numbers, by what the training rows hold."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from forgetlab.data.datasets import Dataset
from forgetlab.data.table import TOLD, Labelled, Series, Table, name_of, named_rows, names_of
from forgetlab.plugins.options import OptionError

if TYPE_CHECKING:
    import numpy as np

Missing = Literal["refuse", "mean"]
Statistics = Literal["all", "first_domain"]
ColumnKind = Literal["number", "flag", "category"]

FEW = 0.1  # up to this share of a column, text among numbers is taken for a mistake
DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ].*)?")


def numbers(
    parts: Labelled,
    columns: Sequence[str],
    *,
    categorical: Collection[str] = (),
    missing: Missing = "refuse",
    max_categories: int = 100,
    statistics: Statistics = "all",
) -> Dataset:
    """x (N, D) float32 is what the columns become, by the training rows, or by those of the first domain alone.

    Numbers are standardised, constant ones are 0; true and false are 1 and 0; each value of a category has a column,
    and an unknown one at test is 0 in all of them. With ``missing="mean"`` no value is the mean of the others.

    Raises:
        OptionError: a column that cannot become numbers, or a value that is missing or infinite.
    """
    import numpy as np

    tables = [parts.train, parts.test]
    if missing == "refuse":
        _refuse_missing(tables, columns)
    fitted = parts.train
    if statistics == "first_domain" and parts.domains is not None:
        fitted = Table(fitted.name, fitted.rows[(parts.domains[0] == 0).numpy()])
    fits = [_fit(name, fitted, name in categorical, max_categories) for name in columns]
    if not fits:
        raise OptionError(f"{parts.train.name} has no column left for x")
    train, test = (torch.from_numpy(np.concatenate([fit.block(table) for fit in fits], axis=1)) for table in tables)
    return parts.dataset(train, test)


def _refuse_missing(tables: Sequence[Table], columns: Sequence[str]) -> None:
    import pandas as pd

    for file in dict.fromkeys(table.name for table in tables):
        of_file = [table for table in tables if table.name == file]
        gaps: dict[str, Series] = {
            name: pd.concat([table.column(name).isna() for table in of_file]).sort_index() for name in columns
        }
        found = [f"{name!r} in {named_rows(gap.index[gap])}" for name, gap in gaps.items() if gap.any()]
        if found:
            what = "; ".join(found[:TOLD])
            raise OptionError(f"{file}: no value of {what}: fill them in, drop the column, or say 'missing: mean'")


class Fit(NamedTuple):
    """What the training rows say of a column."""

    name: str
    kind: ColumnKind
    categories: Sequence[str]
    mean: np.ndarray  # (k,)
    scale: float  # 0 where the numbers are constant

    def block(self, table: Table) -> np.ndarray:
        """(N, k) float32: what the column becomes."""
        import numpy as np

        other = self.kind
        if self.kind != "category" and table.column(self.name).notna().any():
            other = _kind(table, self.name, categorical=False)
        if other != self.kind:
            raise OptionError(f"{table.name}: {self.name!r} is a {other} here, a {self.kind} in the training rows")
        x = _encoded(table, self.name, self.kind, self.categories)
        x = np.where(np.isnan(x), self.mean, x)
        if self.kind == "number":
            x = (x - self.mean) / self.scale if self.scale else np.zeros_like(x)
        return x.astype(np.float32)


def _fit(name: str, table: Table, categorical: bool, max_categories: int) -> Fit:
    import numpy as np

    values = table.column(name).dropna()
    if values.empty:
        raise OptionError(f"{table.name}: {name!r} has no value at all in the training rows; name it in 'drop'")
    kind = _kind(table, name, categorical)
    categories = names_of(values) if kind == "category" else []
    if len(categories) > max_categories:
        many = f"{len(categories)} different values, more than max_categories ({max_categories})"
        raise OptionError(f"{table.name}: {name!r} has {many}: name it in 'drop', or allow more", "max_categories")
    x = _encoded(table, name, kind, categories)
    constant = np.nanmin(x) == np.nanmax(x)  # told from the values: the deviation of equal ones may be rounded
    return Fit(name, kind, categories, np.nanmean(x, axis=0), 0.0 if constant else float(np.nanstd(x)))


def _encoded(table: Table, name: str, kind: ColumnKind, categories: Sequence[str]) -> np.ndarray:
    """(N, k) with NaN for no value."""
    import numpy as np
    import pandas as pd

    values = table.column(name)
    if kind != "category":
        x = values.to_numpy(dtype=float, na_value=np.nan)[:, None]
        if (infinite := np.isinf(x[:, 0])).any():
            raise OptionError(f"{table.name}: {name!r} is infinite in {named_rows(values.index[infinite])}")
        return x
    codes, distinct = pd.factorize(values)  # -1 for no value
    position = {category: i for i, category in enumerate(categories)}
    columns = np.array([*(position.get(name_of(value), -1) for value in distinct), -1])[codes]
    x = np.vstack([np.eye(len(categories)), np.zeros(len(categories))])[columns]
    x[codes < 0] = np.nan
    return x


def _kind(table: Table, name: str, categorical: bool) -> ColumnKind:
    """What a column is taken for.

    Raises:
        OptionError: something that cannot become numbers.
    """
    import pandas as pd
    from pandas.api import types

    values, where = table.column(name), f"{table.name}: {name!r}"
    present = values.dropna()
    held = {type(value) for value in present} if values.dtype == object else set()
    if name.startswith("Unnamed: "):
        raise OptionError(f"{where} has no name in the file, as row numbers have: name it there or in 'drop'")
    if types.is_datetime64_any_dtype(values) or (not types.is_numeric_dtype(values) and _dates(present)):
        raise OptionError(f"{where} holds dates: split them into numbers, or name it as 'domain' or in 'drop'")
    if not held <= {str, bool, int, float}:
        raise OptionError(
            f"{where} holds values of type {', '.join(sorted(t.__name__ for t in held))}: name it in 'drop'"
        )
    if categorical or isinstance(values.dtype, pd.CategoricalDtype):
        return "category"
    if types.is_bool_dtype(values) or held == {bool}:
        return "flag"
    if types.is_numeric_dtype(values):
        return "number"
    _refuse_mistyped(where, present)
    return "category"


def _dates(present: Series) -> bool:
    return len(present) > 0 and all(DATE.fullmatch(str(value)) for value in present)


def _refuse_mistyped(where: str, present: Series) -> None:
    import pandas as pd

    wrong = present[pd.isna(pd.to_numeric(present, errors="coerce"))]
    if 0 < len(wrong) <= FEW * len(present):
        what = f"{wrong.iloc[0]!r} in {named_rows(wrong.index)}"
        raise OptionError(
            f"{where} holds numbers, but {what}: correct it, or name the column in 'categorical' or 'drop'"
        )
