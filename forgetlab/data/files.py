"""The user's own files read as rows: tables, and folders with a folder per class."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from forgetlab.data.table import DataFrame, Table, in_order
from forgetlab.plugins.options import OptionError

Separator = Literal[",", ";", "\t", "|"]

SEPARATORS = {".csv": ",", ".tsv": "\t"}
COMPRESSED = re.compile(r"\.(gz|bz2|xz|zip)$")
LAYOUT = "a folder per class, under a folder per domain with 'domains: true', and all under train/ and test/ or neither"


def read_table(path: Path, separator: Separator | None = None, option: str = "path") -> Table:
    """A CSV or TSV file, also a compressed one, by its lines as a spreadsheet numbers them, or a Parquet file.

    Raises:
        OptionError: there is no such file, or it is no table.
    """
    import pandas as pd

    if not path.is_file():
        raise OptionError(f"no such file: {path}", option)
    ending = Path(COMPRESSED.sub("", path.name.lower())).suffix
    try:
        if ending == ".parquet":
            rows, first, counted = pd.read_parquet(path), 1, "row"
            rows = rows.reset_index(drop=all(name is None for name in rows.index.names))
        elif ending in SEPARATORS:
            rows, first, counted = _read_text(path, separator or SEPARATORS[ending]), 2, "line"
        else:
            raise OptionError(f"{path.name}: a table's name ends in .csv, .tsv or .parquet", option)
    except (ValueError, OSError, Warning) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"{path.name} cannot be read: {str(error).strip()}", option) from error
    rows = rows.set_axis(pd.RangeIndex(first, first + len(rows), name=counted)).set_axis(map(str, rows.columns), axis=1)
    rows = rows.dropna(how="all")  # blank lines
    if rows.empty:
        raise OptionError(f"{path.name} holds no rows", option)
    return Table(path.name, rows)


def _read_text(path: Path, separator: str) -> DataFrame:
    import pandas as pd

    settings: dict[str, Any] = {"sep": separator, "encoding": "utf-8-sig", "skip_blank_lines": False}
    names = pd.read_csv(path, header=None, nrows=1, dtype=str, **settings).iloc[0].dropna()
    if (twice := names[names.duplicated()]).any():
        raise OptionError(f"{path.name} has two columns {twice.iloc[0]!r}", "path")
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # more values than names
        return pd.read_csv(path, index_col=False, low_memory=False, **settings)


def read_folder(folder: Path, endings: Collection[str], domains: bool = False) -> tuple[Table, Table | None]:
    """The files of a folder per class, as rows with file, class and domain, for training and, where told, for testing.

    Raises:
        OptionError: there is no such folder, or files lie elsewhere than in a class's folder.
    """
    if not folder.is_dir():
        raise OptionError(f"no such folder: {folder}", "path")
    parts = [folder / "train", folder / "test"]
    if all(part.is_dir() for part in parts):
        _refuse_files(folder, endings, folder)
        train, test = (_listed(part, endings, domains, folder) for part in parts)
        return train, test
    return _listed(folder, endings, domains, folder), None


def _listed(top: Path, endings: Collection[str], domains: bool, folder: Path) -> Table:
    import pandas as pd

    found = []
    sources = _folders(top, endings, folder) if domains else [top]
    for source in sources:
        for group in _folders(source, endings, folder):
            files = _files(group, endings)
            if not files:
                inside = "folders" if any(part.is_dir() for part in group.iterdir()) else "nothing"
                what = f"{group.relative_to(folder)}/ holds {inside}, no {' or '.join(endings)} file"
                raise OptionError(f"{folder.name}: {what}; what is read: {LAYOUT}", "path")
            found += [(file, group.name, source.name) for file in files]
    rows = pd.DataFrame(found, columns=["file", "class", "domain"])
    rows.index = pd.Index([file.relative_to(folder).as_posix() for file in rows["file"]], name="file")
    return Table(folder.name, rows)


def _folders(folder: Path, endings: Collection[str], top: Path) -> list[Path]:
    _refuse_files(folder, endings, top)
    names = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if not names:
        raise OptionError(f"{top.name}: no folder in {folder}; what is read: {LAYOUT}", "path")
    return [folder / name for name in in_order(names)]


def _files(folder: Path, endings: Collection[str]) -> list[Path]:
    names = [path.name for path in folder.iterdir() if path.suffix.lower() in endings and path.is_file()]
    return [folder / name for name in in_order(names) if not name.startswith(".")]


def _refuse_files(folder: Path, endings: Collection[str], top: Path) -> None:
    if stray := _files(folder, endings):
        what = f"{stray[0].relative_to(top)} lies in no class's folder"
        raise OptionError(f"{top.name}: {what}; what is read: {LAYOUT}", "path")


def with_texts(table: Table) -> Table:
    """The rows of a folder with the texts in their files.

    Raises:
        OptionError: a file that is empty, or no text in UTF-8.
    """
    found = []
    for name, file in table.rows["file"].items():
        try:
            found.append(file.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise OptionError(f"{table.name}: {name} is no text in UTF-8: {error.reason}", "path") from error
        if not found[-1].strip():
            raise OptionError(f"{table.name}: {name} is empty", "path")
    return Table(table.name, table.rows.assign(text=found))
