"""What a frozen backbone computes is computed once per sample, and kept over epochs, evaluations and strategies.

Values are made in fixed chunks of a data set's own order, whoever asks first, so that no number depends on what ran
before. Beyond ``mapped_rows.bound()`` bytes they lie in files, and beyond eight times that the oldest go.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from forgetlab import cache
from forgetlab.avalanche.tensor_data import Source
from forgetlab.backbones.sites import blocks
from forgetlab.data import mapped_rows
from forgetlab.data.datasets import as_input
from forgetlab.data.digests import marks
from forgetlab.isolation.attachment import tapped

CHUNK = 64  # samples that go through the backbone together
ON_DISK = 8  # times the bound on memory
Make = Callable[[Tensor], Tensor]


class Kept:
    """One value per sample, made when first asked for; in memory, or in a file where that would be too much."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.done = torch.zeros(-(-n // CHUNK), dtype=torch.bool)
        self.values: Tensor | None = None
        self.file: Any = None

    @property
    def bytes(self) -> int:
        return 0 if self.values is None else self.values.nbytes

    def of(self, source: Source, make: Make) -> Tensor:
        """(B, ...) of the rows at hand; ``make`` computes what is missing."""
        rows = source.rows.cpu()
        for chunk in (rows // CHUNK).unique().tolist():
            if not self.done[chunk]:
                start = chunk * CHUNK
                made = make(as_input(source.x[start : start + CHUNK])).cpu()
                if self.values is None:
                    self.values = self._room(made)
                self.values[start : start + len(made)] = made
                self.done[chunk] = True
        assert self.values is not None
        return self.values.index_select(0, rows).to(source.x.device)

    def _room(self, made: Tensor) -> Tensor:
        shape = (self.n, *made.shape[1:])
        size = self.n * made[:1].nbytes
        if size + in_memory() <= mapped_rows.bound():
            return torch.empty(shape, dtype=made.dtype)
        folder = cache.folder() / "frozen"
        folder.mkdir(parents=True, exist_ok=True)
        self.file = tempfile.NamedTemporaryFile(dir=folder, suffix=".bin")  # noqa: SIM115 - lives as long as this
        return torch.from_numpy(np.memmap(self.file.name, str(made.dtype).removeprefix("torch."), "w+", shape=shape))


_kept: OrderedDict[tuple[str, ...], Kept] = OrderedDict()  # of this process, the one longest unused first


def in_memory() -> int:
    """Bytes kept in memory by all of this process."""
    return sum(kept.bytes for kept in _kept.values() if kept.file is None)


def kept_bytes() -> int:
    """Bytes kept by all of this process, in memory and on disk."""
    return sum(kept.bytes for kept in _kept.values())


def forget() -> None:
    """Keep nothing any more."""
    _kept.clear()


class FrozenWork:
    """Keeps what one backbone computes; ``name`` tells backbones with equal weights apart."""

    def __init__(self, backbone: nn.Module, name: str = "") -> None:
        self.key = _digest(name, backbone.state_dict().values())
        self._known: MutableMapping[Any, str] = WeakIdKeyDictionary()

    def __deepcopy__(self, memory: Any) -> FrozenWork:
        return self

    def features(self, backbone: nn.Module, source: Source) -> Tensor:
        """(B, d)"""
        return self._of("features", source, backbone)

    def entering(self, backbone: nn.Module, source: Source, depth: int) -> Tensor:
        """What enters a block. (B, T, d)"""
        return self._of(f"entering {depth}", source, lambda x: entering_block(backbone, x, depth))

    def taps(self, backbone: nn.Module, source: Source) -> list[Tensor]:
        """What enters each block, then what leaves the last. (B, T, d) each"""

        def make(x: Tensor) -> Tensor:
            with tapped(backbone) as found:
                backbone(x)
            return torch.stack(found, dim=1)

        return list(self._of("taps", source, make).unbind(1))

    def _of(self, what: str, source: Source, make: Make) -> Tensor:
        if source.x not in self._known:
            self._known[source.x] = _digest(f"{source.x.dtype} {tuple(source.x.shape)}", [source.x])
        key = (self.key, self._known[source.x], what)
        kept = _kept.setdefault(key, Kept(len(source.x)))
        _kept.move_to_end(key)
        values = kept.of(source, torch.no_grad()(make))
        while len(_kept) > 1 and kept_bytes() > ON_DISK * mapped_rows.bound():
            _kept.popitem(last=False)
        return values


class _Enough(Exception):
    """What was wanted is there."""


def entering_block(backbone: nn.Module, x: Tensor, depth: int) -> Tensor:
    """What enters a block; what lies above it is not computed. (B, ...) -> (B, T, d)"""
    found: list[Tensor] = []

    def stop(_: nn.Module, entered: tuple[Any, ...]) -> None:
        found.append(entered[0].detach())
        raise _Enough

    handle = blocks(backbone)[depth].register_forward_pre_hook(stop)
    try:
        backbone(x)
    except _Enough:
        return found[0]
    finally:
        handle.remove()
    raise AssertionError("the block is not part of the forward pass")


def _digest(name: str, tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256(name.encode())
    for tensor in tensors:
        for some in marks(tensor.cpu()):
            digest.update(some)
    return digest.hexdigest()
