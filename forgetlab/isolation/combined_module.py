"""Several modules that act as one: each keeps its own parts, and its own share of what belongs to the strategy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from forgetlab.backbones.sites import Site
from forgetlab.batch import Batch
from forgetlab.isolation.module import Isolation, Shared
from forgetlab.plugins.options import OptionError

FLAGS = {  # what a combination says of itself, from what its members say
    "identity_at_birth": all,
    "siteless": all,
    "draws": any,
    "delta_learns": all,
    "asks": any,
    "tokens_stay": any,
    "speaks_for_all": any,
}


class Combination(Isolation):
    """Members act in their order. What one learns of the data when a task begins or ends, it learns alone."""

    def __init__(self, members: Sequence[Isolation]) -> None:
        super().__init__(())
        if not members:
            raise OptionError("name at least one module", "parts")
        self.members: Any = nn.ModuleList(members)
        for flag, of in FLAGS.items():
            setattr(self, flag, of(getattr(member, flag) for member in members))
        vars(self)["needs"] = frozenset().union(*(member.needs for member in members))
        if len(members) > 1 and any("side" in member.acts for member in members):
            raise OptionError("a side network stands alone: no gradient reaches what acts below it", "parts")
        if sum(_runs_its_own_way(member) for member in members) > 1:
            raise OptionError("two modules that each run the backbone in a way of their own do not combine", "parts")

    def make(self, site: Site) -> nn.Module:
        raise NotImplementedError("its members make their own parts")

    def attach(self, backbone: nn.Module) -> None:
        for i, member in enumerate(self.members):
            try:
                member.attach(backbone)
            except OptionError as error:
                where = ".".join(filter(None, ("parts", str(i), error.option)))
                raise OptionError(str(error), where) from error
        self.sites = list({site.key: site for member in self.members for site in member.sites}.values())
        standing_in = [member for member in self.members if "weights" in member.acts]
        if self._meet(standing_in):
            raise OptionError("two modules put weights in the place of the same ones", "parts")

    def features(self, backbone: nn.Module, x: Tensor) -> Tensor:
        """One member may run the backbone in its own way, inside of the others."""
        *others, inner = sorted(self.members, key=_runs_its_own_way)
        with self._all_active(others, backbone, x):
            inner.query = self.query
            return inner.features(backbone, x)

    @contextmanager
    def active(self, backbone: nn.Module, x: Tensor | None = None) -> Iterator[None]:
        with self._all_active(self.members, backbone, x):
            yield

    @contextmanager
    def _all_active(self, members: Iterable[Any], backbone: nn.Module, x: Tensor | None) -> Iterator[None]:
        with ExitStack() as stack:
            for member in members:
                member.query = self.query
                stack.enter_context(member.active(backbone, x))
            yield

    def side(self, taps: Sequence[Tensor], real: Tensor | None) -> Tensor:
        return self.members[0].side(taps, real)

    def lowest(self) -> int:
        return min((member.lowest() for member in self.members if not member.siteless), default=-1)

    def changes(self) -> dict[str, Tensor]:
        """None where two members touch one weight: what both make of it is in general not the sum."""
        members = [member for member in self.members if not member.siteless]
        found = [member.changes() for member in members]
        if not all(found) or self._meet(members):
            return {}
        return {key: change for changes in found for key, change in changes.items()}

    def changed_weights(self) -> dict[str, Tensor]:
        """The sum of what the members change; where one scales what another adds to, their product is left out."""
        found: dict[str, Tensor] = {}
        for member in self.members:
            for key, change in member.changed_weights().items():
                found[key] = found[key] + change if key in found else change
        return found

    def _meet(self, members: Iterable[Any]) -> bool:
        paths = [{f"{site.path}.".removeprefix(".") for site in member.sites} for member in members]
        pairs = ((a, b) for one, other in combinations(paths, 2) for a in one for b in other)
        return any(a.startswith(b) or b.startswith(a) for a, b in pairs)

    def penalty(self) -> Tensor | None:
        found = [penalty for member in self.members if (penalty := member.penalty()) is not None]
        return torch.stack(found).sum() if found else None

    def step(self, done: float) -> None:
        for member in self.members:
            member.step(done)

    def step_of_epoch(self, behind: int, batches: int) -> None:
        for member in self.members:
            member.step_of_epoch(behind, batches)

    def materialise(self) -> None:
        for member in self.members:
            member.materialise()

    def begin(self, data: Iterable[Batch], previous: Sequence[Any], shared: Shared, backbone: nn.Module) -> None:
        for member, earlier, own in self._each(previous, shared):
            member.begin(data, earlier, own, backbone)

    def end(self, data: Iterable[Batch], previous: Sequence[Any], shared: Shared, backbone: nn.Module) -> None:
        for member, earlier, own in self._each(previous, shared):
            member.end(data, earlier, own, backbone)

    def recall(self, previous: Sequence[Any], shared: Shared) -> None:
        for member, earlier, own in self._each(previous, shared):
            member.recall(earlier, own)

    def _each(self, previous: Sequence[Any], shared: Shared) -> Iterator[tuple[Any, list[Any], Shared]]:
        """Each member, the earlier tasks' members of its place, and its own of the shared tensors."""
        for i, member in enumerate(self.members):
            own = {key.removeprefix(f"{i}."): shared.pop(key) for key in list(shared) if key.startswith(f"{i}.")}
            yield member, [module.members[i] for module in previous], own
            shared.update({f"{i}.{key}": tensor for key, tensor in own.items()})


def _runs_its_own_way(member: Any) -> bool:
    if isinstance(member, Combination):
        return any(map(_runs_its_own_way, member.members))
    return type(member).features is not Isolation.features
