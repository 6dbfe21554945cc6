"""Inputs larger than memory: .npy files that stay on disk, of which a task holds row numbers alone.

`Rows` is a tensor to all who ask for its shape, for some of its rows, or for a batch of them. Whatever else is done to
it needs it whole, which is refused past the bound.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from forgetlab import cache

GIB = 2**30
BOUND = GIB  # bytes of one array; the environment variable FORGETLAB_MEMORY, in GiB, goes before it

Change = Callable[[Tensor], Tensor]


class FileChanged(RuntimeError):
    """A mapped file is not what it was when it was opened."""


def bound() -> int:
    """How many bytes of one array are held in memory."""
    named = os.environ.get("FORGETLAB_MEMORY")
    try:
        return BOUND if named is None else int(float(named) * GIB)
    except ValueError:
        raise ValueError(f"FORGETLAB_MEMORY is a number of GiB, not {named!r}") from None


def unchanged(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True, eq=False)
class File:
    """A mapped .npy file, and what it was when it was opened."""

    path: str
    size: int  # bytes
    modified: int  # ns
    change: Change  # what is done to rows (n, ...) that are read
    data: Tensor = field(repr=False)  # memory that cannot be written to: it is never handed out

    @cached_property
    def none(self) -> Tensor:
        """No rows: their kind alone."""
        return self.change(self.data[:0].clone())

    def __len__(self) -> int:
        return len(self.data)

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """
        Raises:
            FileChanged: it is not as it was; to read past the end of a shortened file would kill the process.
        """
        if _state(self.path) != (self.size, self.modified):
            raise FileChanged(f"{self.path} was changed, or is gone, while it was in use")
        return self.change(self.data.index_select(dim, rows))

    @property
    def mark(self) -> str:
        """What stands for its content: without the bytes, and with the code that changes them."""
        return repr((self.path, self.size, self.modified, inspect.getsource(self.change)))

    def __reduce__(self) -> Any:
        return _opened, (self.path, self.change, (self.size, self.modified))


def _state(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _opened(path: str, change: Change, expected: tuple[int, int] | None = None) -> File:
    state = _state(path)
    array = np.lib.format.open_memmap(path, mode="r")
    if state is None or _state(path) != state or expected not in (None, state):
        raise FileChanged(f"{path} was changed before it was opened")
    try:
        with warnings.catch_warnings(action="ignore"):  # that it cannot be written to
            return File(path, *state, change, torch.from_numpy(np.asarray(array)))
    except TypeError:
        raise ValueError(f"{path} holds {array.dtype}, which is no tensor") from None


Piece = Tensor | File


class Rows(Tensor):
    """Rows of mapped files, or of tensors, one part after another; a batch of them is read when it is asked for."""

    parts: tuple[Piece, ...]
    rows: Tensor | None  # (N,) places in all parts together; None: each of them once
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, parts: Sequence[Piece], rows: Tensor | None = None, device: torch.device | str = "cpu") -> Rows:
        kind, n = _none(parts[0]), int(_ends(parts)[-1]) if rows is None else len(rows)
        shape, device = (n, *kind.shape[1:]), torch.device(device)
        made: Rows = Tensor._make_wrapper_subclass(cls, shape, dtype=kind.dtype, device=device)  # type: ignore
        made.parts, made.rows = tuple(parts), rows
        return made

    def numbers(self) -> Tensor:
        """(N,) places in all parts together."""
        return torch.arange(len(self)) if self.rows is None else self.rows

    def index_select(self, dim: int, index: Tensor) -> Tensor:  # type: ignore[override]
        """A tensor of these rows alone, read in the order in which they lie on disk."""
        if dim != 0:
            return self.whole().index_select(dim, index)
        rows, place = (index.cpu() if self.rows is None else self.rows.index_select(0, index.cpu())).sort()
        ends = _ends(self.parts)
        if len(rows) and not 0 <= rows[0] <= rows[-1] < ends[-1]:
            raise IndexError(f"rows {rows[0]} to {rows[-1]} of {ends[-1]}")
        pieces = rows.tensor_split(torch.searchsorted(rows, ends[:-1]).tolist())
        asked = zip(self.parts, pieces, [0, *ends[:-1].tolist()], strict=True)
        read = [part.index_select(0, piece - start) for part, piece, start in asked if len(piece)]
        found = torch.cat(read) if read else _none(self.parts[0])
        return found.index_select(0, place.argsort()).to(self.device)

    def read(self) -> Tensor:
        """All of them, in memory."""
        return self.index_select(0, torch.arange(len(self)))

    def whole(self) -> Tensor:
        """
        Raises:
            MemoryError: this is more than the bound.
        """
        if self.nbytes > bound():
            size = f"{self.nbytes / GIB:.3g} GiB"
            raise MemoryError(f"{size} would be read into memory; work on parts, or set FORGETLAB_MEMORY (GiB) higher")
        return self.read()

    def __getitem__(self, item: Any) -> Tensor:
        if isinstance(item, int) or (isinstance(item, Tensor) and item.ndim == 0 and item.dtype != torch.bool):
            return self.index_select(0, torch.tensor([range(len(self))[int(item)]]))[0]
        if isinstance(item, slice | list) or (isinstance(item, Tensor | np.ndarray) and item.ndim == 1):
            return Rows(self.parts, self.numbers()[item.cpu() if isinstance(item, Tensor) else item], self.device)
        return self.whole()[item]

    def split(self, split_size: int | list[int], dim: int = 0) -> tuple[Tensor, ...]:  # type: ignore[override]
        if dim != 0:
            return self.whole().split(split_size, dim)
        return tuple(Rows(self.parts, rows, self.device) for rows in self.numbers().split(split_size))

    def to(self, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Batches come to the other device; the files stay where they are."""
        asked = torch.empty(0, dtype=self.dtype, device=self.device).to(*args, **kwargs)
        if asked.dtype != self.dtype:
            return self.whole().to(*args, **kwargs)
        return Rows(self.parts, self.rows, asked.device)

    def detach(self) -> Rows:
        return self

    def numpy(self, **kwargs: Any) -> Any:
        return self.whole().numpy(**kwargs)

    def tolist(self) -> Any:
        return self.whole().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Rows(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device}, parts={self.parts})"

    def __deepcopy__(self, memory: Any) -> Rows:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Rows, (self.parts, self.rows, self.device)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.cat.default and (joined := _joined(*args, **kwargs)) is not None:
            return joined
        if func._schema.is_mutable and isinstance(args[0], Rows):
            raise TypeError(f"mapped data cannot be written to: {func}")
        args, kwargs = tree_map_only(Rows, Rows.whole, (args, kwargs))
        return func(*args, **kwargs)


def _none(part: Piece) -> Tensor:
    return part.none if isinstance(part, File) else part[:0]


def _ends(parts: Sequence[Piece]) -> Tensor:
    """(parts,) the number of rows up to each part's end."""
    return torch.tensor([len(part) for part in parts]).cumsum(0)


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> Rows | None:
    """One after another with nothing read; None where their rows differ in kind or are not what is joined."""
    kinds = {(one.dtype, one.shape[1:], one.device) for one in tensors}
    if dim != 0 or len(kinds) > 1:
        return None
    parts: list[Piece] = []
    index = [torch.empty(0, dtype=torch.int64)]
    for one in tensors:
        own = one.parts if isinstance(one, Rows) else (one.cpu(),)
        parts += [part for part in own if not any(part is known for known in parts)]
        rows = one.numbers() if isinstance(one, Rows) else torch.arange(len(one))
        index.append(_counted_anew(rows, own, parts))
    return Rows(parts, torch.cat(index), tensors[0].device)


def _counted_anew(rows: Tensor, own: Sequence[Piece], parts: Sequence[Piece]) -> Tensor:
    """Rows of their own parts as rows of all parts."""
    start, ends = [0, *_ends(parts).tolist()], _ends(own)
    moved = [next(start[i] for i, known in enumerate(parts) if known is part) for part in own]
    shift = torch.tensor(moved) - torch.cat([ends.new_zeros(1), ends[:-1]])
    return rows + shift[torch.searchsorted(ends, rows.contiguous(), right=True)]


def open_npy(path: Path | str, change: Change = unchanged) -> Tensor:
    """The array in a .npy file: `Rows` where it is past the bound, else in memory.

    ``change`` is done to rows (n, ...) when they are read: a module's function, which looks at each row alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut short, or holds no array of numbers.
    """
    if "<" in change.__qualname__:
        raise TypeError(f"{change.__qualname__} cannot be found again by its name; give a module's function")
    file = _opened(os.path.abspath(path), change)
    rows = Rows([file])
    return rows if rows.nbytes > bound() else change(file.data.clone(memory_format=torch.contiguous_format))


def write_npy(path: Path, parts: Iterable[Tensor]) -> None:
    """Tensors of one kind, one after another, as one array; the file appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    kind, n = None, 0
    try:
        with partial.open("wb") as out:
            for array in (np.ascontiguousarray(part.numpy()) for part in parts):
                if kind is None:
                    kind = array.dtype, array.shape[1:]
                    _write_header(out, n, *kind)
                if kind != (array.dtype, array.shape[1:]):
                    raise ValueError(f"{array.dtype} {array.shape[1:]} after {kind[0]} {kind[1]}")
                out.write(array.reshape(-1).view(np.uint8).data)
                n += len(array)
            if kind is None:
                raise ValueError("there is nothing to write")
            out.seek(0)
            _write_header(out, n, *kind)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write_header(out: BinaryIO, n: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """As long for one n as for another: the format leaves room for it to grow."""
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n, *shape)}
    np.lib.format.write_array_header_1_0(out, description)


def keep(what: str, key: Mapping[str, Any], parts: Iterable[Tensor]) -> Tensor:
    """What ``parts`` gives, written to disk once for each ``key`` (plain values that determine it), and opened.

    A generator is not begun where the file is there already.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path = cache.folder() / what / f"{digest}.npy"
    try:
        return open_npy(path)
    except (FileNotFoundError, ValueError):  # the second: a file that something cut short
        write_npy(path, parts)
    return open_npy(path)
