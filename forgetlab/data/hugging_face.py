"""Data sets in Hugging Face's format, read by the package datasets, which a user installs for them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from forgetlab.data.images import Mode, decoded
from forgetlab.data.table import Table
from forgetlab.plugins.options import OptionError, suggestion

Split = Any  # a datasets.Dataset

WITHOUT_SCRIPTS = 4  # the first version of datasets that runs no code of a data set


def splits(path: Path | None, hub: str | None, config: str | None, revision: str | None) -> dict[str, Split]:
    """The splits of a folder that ``save_to_disk`` wrote, or of a data set on the hub; without a name: one split alone.

    Raises:
        OptionError: datasets is not installed or too old, or there is no such folder.
    """
    datasets = _datasets()
    if (path is None) == (hub is None):
        raise OptionError("name either a folder, by 'path', or a data set on the hub, by 'hub'", "path")
    if path is None:
        return dict(datasets.load_dataset(hub, config, revision=revision))
    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise OptionError(f"{path} is no folder that save_to_disk wrote: {error}", "path") from error
    return dict(found) if isinstance(found, dict) else {"": found}


def chosen_splits(found: dict[str, Split], train: str, test: str | None) -> list[Split]:
    """The split to train on and, where there is one, that to test on.

    Raises:
        OptionError: there is no such split.
    """
    if "" in found:
        return [found[""]]
    for option, name in (("train_split", train), ("test_split", test)):
        if name is not None and name not in found:
            without = "; null divides the training split" if option == "test_split" else ""
            raise OptionError(f"no split {name!r}: there is {', '.join(found)}{without}", option)
    return [found[name] for name in (train, test) if name is not None]


def as_table(split: Split, columns: Sequence[str]) -> Table:
    """Some columns, by rows counted from 0.

    Raises:
        OptionError: there is no such column.
    """
    for name in columns:
        _known(split, name)
    rows = split.with_format(None).select_columns(list(columns)).to_pandas()
    rows.index.name = "row"
    return Table(str(split.split or "the data set"), rows)


def label_names(split: Split, column: str | None) -> list[str]:
    """What a column's numbers stand for, where the data set says it."""
    return list(getattr(split.features.get(column), "names", None) or ())


def pictures(
    split: Split, column: str, rows: Sequence[int], size: int, mode: Mode, resize: int | None = None
) -> Tensor:
    """(N, C, size, size) bytes of some rows' images.

    Raises:
        OptionError: the column holds no images, or one cannot be read.
    """
    if type(_known(split, column)).__name__ != "Image":
        raise OptionError(f"{column!r} holds no images; {_listed(split)}", "image")
    files = split.with_format(None).cast_column(column, _datasets().Image(decode=False))

    def content(i: int) -> bytes:
        file = files[rows[i]][column]
        if file is None:
            raise OptionError(f"{column!r} has no image in row {rows[i]}", "image")
        return file["bytes"] or Path(file["path"]).read_bytes()

    return decoded([f"row {row}" for row in rows], content, size, mode, resize)


def _known(split: Split, column: str) -> Any:
    if column not in split.features:
        hint = suggestion(column, split.features) or f"; {_listed(split)}"
        raise OptionError(f"the data set has no column {column!r}{hint}")
    return split.features[column]


def _listed(split: Split) -> str:
    kinds = ((name, getattr(kind, "dtype", None) or type(kind).__name__) for name, kind in split.features.items())
    return f"it has {', '.join(f'{name} ({kind})' for name, kind in kinds)}"


def _datasets() -> ModuleType:
    try:
        module = importlib.import_module("datasets")
    except ImportError as error:
        raise OptionError("Hugging Face's format needs the package datasets: pip install datasets") from error
    if int(module.__version__.split(".")[0]) < WITHOUT_SCRIPTS:
        raise OptionError(f"datasets {module.__version__} may run a data set's code: pip install 'datasets>=4'")
    return module
