"""Your own table: a CSV, TSV or Parquet file with a row per sample."""

from __future__ import annotations

from pathlib import Path

from pydantic import PositiveInt

from forgetlab.data import (
    Dataset,
    DomainOrder,
    Missing,
    Separator,
    Share,
    Statistics,
    by_column,
    labelled,
    numbers,
    read_table,
    texts,
)
from forgetlab.plugins import OptionError, register


@register("data", "table")
def table(
    path: Path,
    label: str,  # the column of the classes
    domain: str | None = None,  # the column of the domains, such as a year or a place
    domain_order: DomainOrder = "sorted",
    text: str | None = None,  # a column of texts: x is this one alone
    max_length: PositiveInt = 64,  # of a text, in tokens
    drop: tuple[str, ...] = (),
    categorical: tuple[str, ...] = (),  # columns of numbers that are names
    max_categories: PositiveInt = 100,
    missing: Missing = "refuse",
    statistics: Statistics = "all",  # first_domain: what comes later in a stream is not known beforehand
    test_path: Path | None = None,
    split: str | None = None,  # a column that says train or test
    test_share: Share = 0.2,
    separator: Separator | None = None,  # of a text file: by default what its ending says
) -> Dataset:
    """Rows of a table: x (N, D) float32, or the token ids of a text.

    Numbers are standardised by the training rows, text with few values has a column for each, and x holds neither the
    label nor the domain. Test rows are in a file of their own, or told by a column, or a share of each class in each
    domain, drawn once; rows that belong together (of one person, of one day) need one of the first two.

    Raises:
        OptionError: a column is not there, or a value cannot be used; the error names the lines.
    """
    train, test = read_table(path, separator), None
    if test_path and split:
        raise OptionError("'test_path' and 'split' both say what is for testing: leave one out", "split")
    if test_path:
        test = read_table(test_path, separator, "test_path")
    for option, names in (("drop", drop), ("categorical", categorical)):
        for name in names:
            train.column(name, option)
    left_out = {label, domain, split, *drop}
    columns = [name for name in train.rows.columns if name not in left_out]
    if split:
        train, test = by_column(train, split)
    orders = {"domain": domain, "domain_order": domain_order, "test_share": test_share}
    parts = labelled(train, test, label, **orders)
    if text:
        return texts(parts, text, max_length=max_length)
    options = {"missing": missing, "max_categories": max_categories, "statistics": statistics}
    return numbers(parts, columns, categorical=categorical, **options)
