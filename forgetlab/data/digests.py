"""What stands for data in a checksum: their bytes, or, until these have been read once, the files that hold them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from forgetlab import cache
from forgetlab.data.mapped_rows import File, Rows

CHUNK = 2**24  # bytes that are read at a time


def content(x: Tensor) -> Iterator[Any]:
    """A tensor's bytes, some at a time where they are on disk."""
    if isinstance(x, Rows):
        for some in x.split(max(CHUNK // max(x.nbytes // max(len(x), 1), 1), 1)):
            yield from content(some.read() if isinstance(some, Rows) else some)
    else:
        yield x.contiguous().reshape(-1).numpy().view(np.uint8)


def marks(x: Tensor) -> Iterator[Any]:
    """What stands for a tensor's bytes where they are on disk: the files, as they were when opened, and the rows."""
    if not isinstance(x, Rows):
        yield from content(x)
        return
    for part in x.parts:
        yield from [part.mark.encode()] if isinstance(part, File) else content(part)
    yield from content(x.numbers())


def remembered(key: str, make: Callable[[], str]) -> str:
    """A digest that takes long, made once for each ``key``."""
    path = cache.folder() / "digests" / key
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{key}.{os.getpid()}")
        partial.write_text(make(), encoding="ascii")
        os.replace(partial, path)
    return path.read_text(encoding="ascii")
