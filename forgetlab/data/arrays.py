"""The user's own arrays: read from .npz and .npy files, checked, and made tensors."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from forgetlab.data.mapped_rows import open_npy
from forgetlab.data.table import Table, named_rows
from forgetlab.plugins.options import OptionError, suggestion

if TYPE_CHECKING:
    import numpy as np

NAMES = ("x", "y", "x_test", "y_test", "domain", "domain_test")
ROWS_AT_ONCE = 10_000  # of an array that may be larger than memory

T = TypeVar("T")


def read(path: Path | None, files: Mapping[str, Path | None]) -> dict[str, np.ndarray]:
    """Arrays by name: those of an .npz file or of a folder of .npy files, and single .npy files.

    .npy files are not read before they are used, so they may be larger than memory. Python objects are never loaded.

    Raises:
        OptionError: a file or an array is missing, or arrays do not fit together.
    """
    import numpy as np

    found: dict[str, np.ndarray] = {}
    single = {name: file for name, file in files.items() if file is not None}
    if path is not None and path.is_dir():
        single = {file.stem: file for file in sorted(path.glob("*.npy"))} | single
    elif path is not None:
        found |= _loaded(path, "path", lambda: _members(path))
    for name, file in single.items():
        option = name if files.get(name) else "path"
        found[name] = _loaded(file, option, lambda file=file: np.load(file, mmap_mode="r", allow_pickle=False))
    if unknown := sorted(found.keys() - set(NAMES)):
        hint = suggestion(unknown[0], NAMES) or f"; what is read: {', '.join(NAMES)}"
        raise OptionError(f"an array is named {unknown[0]!r}{hint}", "path")
    _check_all(found)
    return found


def tables(arrays: Mapping[str, np.ndarray]) -> tuple[Table, Table | None]:
    """The labels and domains of the training and, where there are, of the test rows, counted from 0."""
    import pandas as pd

    def part(suffix: str) -> Table:
        columns = {name: arrays[name + suffix] for name in ("y", "domain") if name + suffix in arrays}
        return Table(f"x{suffix}", pd.DataFrame(columns, index=pd.RangeIndex(len(arrays["y" + suffix]), name="row")))

    return part(""), part("_test") if "x_test" in arrays else None


def as_tensor(array: np.ndarray) -> Tensor:
    """Bytes (N, H, W) or (N, H, W, 1 or 3) as images (N, C, H, W), other bytes as they are; the rest as float32.

    What is too large for memory stays in its .npy file.
    """
    import numpy as np

    if isinstance(array, np.memmap):
        return open_npy(str(array.filename), as_inputs)
    return as_inputs(torch.from_numpy(array))


def as_inputs(x: Tensor) -> Tensor:
    """Of each row alone what `as_tensor` says."""
    if x.dtype != torch.uint8:
        return x.float()
    if x.ndim == 3:
        return x.unsqueeze(1)
    channels_last = x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3)
    return x.permute(0, 3, 1, 2) if channels_last else x


def _members(path: Path) -> dict[str, np.ndarray]:
    import numpy as np

    with path.open("rb") as file:
        members = np.load(file, allow_pickle=False)
        if isinstance(members, np.ndarray):
            raise ValueError("it holds one array; give it as 'x'")
        return dict(members)


def _loaded(file: Path, option: str, load: Callable[[], T]) -> T:
    if not file.is_file():
        raise OptionError(f"no such file: {file}", option)
    try:
        return load()
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if "pickle" in str(error) or "Python objects" in str(error):
            why = "Python objects are not loaded, for they may run code; save numbers with numpy.save or numpy.savez"
            raise OptionError(f"{file.name} is no file of arrays: {why}", option) from error
        raise OptionError(f"{file.name} cannot be read: {error}", option) from error


def _check_all(arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse what is missing or does not fit together."""
    parts = ("", "_test") if {"x_test", "y_test", "domain_test"} & arrays.keys() else ("",)
    kinds = ("x", "y", "domain") if {"domain", "domain_test"} & arrays.keys() else ("x", "y")
    for name in (kind + part for part in parts for kind in kinds):
        if name not in arrays:
            raise OptionError(f"{name!r} is missing: there is {', '.join(arrays) or 'no array'}", name)
    for part in parts:
        _check_inputs(f"x{part}", arrays[f"x{part}"])
        for name in (kind + part for kind in kinds[1:]):
            _check_labels(name, arrays[name], len(arrays[f"x{part}"]))
    shapes = [arrays[f"x{part}"].shape[1:] for part in parts]
    if shapes[0] != shapes[-1]:
        raise OptionError(f"a sample of 'x' has the shape {shapes[0]}, one of 'x_test' {shapes[-1]}", "x_test")


def _check_inputs(name: str, array: np.ndarray) -> None:
    import numpy as np
    import pandas as pd

    if array.dtype.kind not in "biuf" or array.ndim < 2 or 0 in array.shape:
        raise OptionError(f"{name!r} must be numbers (N, ...), not {array.dtype} {array.shape}", name)
    wrong: list[int] = []
    if array.dtype.kind == "f":
        for start in range(0, len(array), ROWS_AT_ONCE):
            rows = array[start : start + ROWS_AT_ONCE]
            wrong += (start + np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1))).tolist()
    if wrong:
        raise OptionError(
            f"{name!r} is NaN or infinite in {named_rows(pd.Index(wrong, name='row'))} (counted from 0)", name
        )


def _check_labels(name: str, array: np.ndarray, n: int) -> None:
    if array.dtype.kind not in "iuU" or array.ndim != 1:
        raise OptionError(f"{name!r} must be whole numbers or text (N,), not {array.dtype} {array.shape}", name)
    if len(array) != n:
        raise OptionError(f"{name!r} has {len(array)} rows where 'x' has {n}", name)
