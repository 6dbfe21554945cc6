"""The contract of modules: what one task adds to a frozen backbone.

A method is a final subclass of `Isolation`: it says to which roles it attaches, makes one small part per site, and
says what the part does there.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from forgetlab import torchvision_ops
from forgetlab.backbones.sites import LINEAR, Layers, Role, Site, find_sites
from forgetlab.batch import Batch
from forgetlab.isolation import attachment
from forgetlab.plugins.options import OptionError

Shared = dict[str, Tensor]  # what belongs to the strategy rather than to one task: pools, masks, statistics


def library(name: str) -> Any:
    """An optional package, imported when it is asked for; the extra that brings it has its name.

    Raises:
        OptionError: it is not installed.
    """
    torchvision_ops.ensure()  # it may import torchvision
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise OptionError(f"{error.name} is not installed: install forgetlab[{name}]") from error


class Isolation(nn.Module, ABC):
    """One task's module: it owns only that task's tensors, and works on the backbone from outside."""

    needs: ClassVar[frozenset[str]] = frozenset({"boundaries"})  # "passes" too where `begin` or `end` reads its data
    identity_at_birth: ClassVar[bool] = True  # an untrained module leaves the backbone's features as they are
    speaks_for_all: bool = False  # the newest module answers for every task, behind all heads; no router
    asks: ClassVar[bool] = False  # `query` is wanted
    siteless: ClassVar[bool] = False  # attaches nowhere
    draws: bool = False  # training draws at random, so it answers otherwise than evaluation
    tokens_stay: ClassVar[bool] = False  # tokens go through all later blocks; else each block's leave with it
    delta_learns: bool = True  # through `delta` gradients reach the parts
    owns_layers: ClassVar[bool] = False  # it has all that its sites have, buffers too, and they train as layers do
    acts: ClassVar[frozenset[str]] = frozenset()  # what of `attachment.ACTS` a class defines; found by itself

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.acts = frozenset(name for name in attachment.ACTS if getattr(cls, name) is not getattr(Isolation, name))

    def __init__(self, sites: Sequence[Role], layers: Layers = None) -> None:
        super().__init__()
        self.roles, self.layers = tuple(sites), layers
        self.sites: list[Site] = []
        self.parts = nn.ModuleDict()
        self.query: Tensor | None = None  # (B, d) the bare backbone's features of the batch at hand, for who `asks`

    @abstractmethod
    def make(self, site: Site) -> nn.Module:
        """The trainable part for one site."""

    def before(self, part: Any, site: Site, x: Tensor) -> Tensor:
        """What enters the site instead of x. (B, ..., in_dim) -> same shape"""
        return x

    def after(self, part: Any, site: Site, x: Tensor, y: Tensor) -> Tensor:
        """What leaves the site instead of y, given what entered. (B, ..., out_dim) -> same shape"""
        return y

    def keys_values(self, part: Any, site: Site, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values attended to, at role attn.kv; new ones stand in front. (B, heads, T, head_dim) each"""
        return k, v

    def tokens(self, part: Any, site: Site, h: Tensor) -> Tensor:
        """What is put in front of the sequence that enters a block, at role tokens. (B, T, d) -> (n, d) or (B, n, d)"""
        raise NotImplementedError

    def side(self, taps: Sequence[Tensor], real: Tensor | None) -> Tensor:
        """What takes the place of what leaves the last block, at role side.

        ``taps``: what enters each block, then what leaves the last one, (B, T, d) each, without gradients; ``real``:
        which positions are no padding, (B, T), or None where all are. -> (B, T, d)
        """
        raise NotImplementedError

    def weights(self, part: Any, site: Site) -> Mapping[str, Tensor]:
        """The tensors that stand in for the site's own, by their names in ``site.tensors`` and ``site.buffers``."""
        return {}

    def delta(self, part: Any, site: Site) -> Tensor | Mapping[str, Tensor] | None:
        """The change of the site's weight that the part amounts to, (out_dim, in_dim), where there is one.

        Or the changes of several of the site's tensors by name; by default what `weights` changes.
        """
        own = self.weights(part, site)
        return {name: own[name] - tensor for name, tensor in site.tensors.items() if name in own} or None

    def features(self, backbone: nn.Module, x: Tensor) -> Tensor:
        """The backbone's features under this module. (B, ...) -> (B, d)"""
        with self.active(backbone, x):
            return backbone(x)

    def penalty(self) -> Tensor | None:
        """A scalar added to the loss in training."""
        return None

    def step(self, done: float) -> None:
        """Called before each training step; ``done`` is the share of the task's steps that are behind, below 1."""

    def step_of_epoch(self, behind: int, batches: int) -> None:
        """Called after `step`: how many batches of this epoch are behind, and how many it has."""

    def begin(self, data: Iterable[Batch], previous: Sequence[Any], shared: Shared, backbone: nn.Module) -> None:
        """Called before a task is trained; ``previous`` modules are read-only, ``shared`` belongs to the strategy."""

    def end(self, data: Iterable[Batch], previous: Sequence[Any], shared: Shared, backbone: nn.Module) -> None:
        """Called after a task was trained."""

    def recall(self, previous: Sequence[Any], shared: Shared) -> None:
        """Called on a new, attached module before the tensors that it once had are loaded."""

    def materialise(self) -> None:
        """Drop what only training needs and keep what is stored, with the same answers to the bit; called after `end`.

        Also called on a new, attached module, to make room for stored tensors: it may rely on no data.
        """

    def attach(self, backbone: nn.Module) -> None:
        """Find the sites and make a part for each.

        Raises:
            OptionError: the backbone has no such site.
        """
        self.sites = find_sites(backbone, self.roles, self.layers)
        if not self.sites and not self.siteless:
            raise OptionError("a module must attach somewhere", "sites")
        self.parts = nn.ModuleDict({site.key: self.make(site) for site in self.sites})
        if self.owns_layers:
            layers = [backbone.get_submodule(site.path) for site in self.sites]
            self.draws = type(self).draws or any(map(attachment.answers_otherwise_in_training, layers))

    @contextmanager
    def active(self, backbone: nn.Module, x: Tensor | None = None) -> Iterator[None]:
        """Inside, the backbone's forward pass includes this module; afterwards it is bare again.

        ``x`` is what the backbone is about to read, which a network beside it has to know.
        """
        with attachment.attached(self, backbone, x):
            yield

    def lowest(self) -> int:
        """The lowest block that this module changes, or the number of blocks where it changes none."""
        at = [0 if site.role in ("embed", "whole") else site.layer for site in self.sites if site.role != "side"]
        return min(at, default=self.sites[0].layers if self.sites else -1)

    def changes(self) -> dict[str, Tensor]:
        """What the module amounts to as changes of the backbone's weights, by site and name.

        None at all where one of its parts is no such change.
        """
        whole = all(self.delta(self.parts[site.key], site) is not None for site in self.sites)
        return self.changed_weights() if whole else {}

    def changed_weights(self) -> dict[str, Tensor]:
        """By how much the backbone's weights are others while the module acts, by site and name.

        What it computes beside the weights is not in there.
        """
        found: dict[str, Tensor] = {}
        for site in self.sites:
            delta = self.delta(self.parts[site.key], site)
            named = {"weight": delta} if isinstance(delta, Tensor) else delta or {}
            found |= {f"{site.key}.{name}": tensor.detach() for name, tensor in named.items()}
        return found

    def layer_factors(self) -> dict[str, tuple[Tensor, Tensor]] | None:
        """A (r, in) and B (out, r) of whole layers by their paths, where that is how a module holds its change.

        The change of a layer's weight is ``scale`` B A. None where it holds parts for sites, or something else.
        """
        return None

    @torch.no_grad()
    def moments(self, backbone: nn.Module, data: Iterable[Batch]) -> dict[str, Tensor]:
        """The sum of x x^T over all that enters each linear site with this module active. (in_dim, in_dim) each"""
        sums: dict[str, Tensor] = {}

        def add(key: str, x: Tensor) -> None:
            x = x.flatten(0, -2).double()
            sums[key] = sums.get(key, 0) + x.T @ x

        with attachment.watched(backbone, [site for site in self.sites if site.role in LINEAR], add):
            for batch in data:
                self.features(backbone, batch.x)
        return sums
