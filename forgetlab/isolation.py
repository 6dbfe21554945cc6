"""Parameter isolation: a frozen backbone, and for each task a module of its own and a head of its own.

A method is a final subclass of `Isolation`: it says to which roles it attaches, makes one small part per site, and
says what the part does there. A `Router` says whose module answers a sample when the task is not told.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from forgetlab.avalanche_api import SupervisedPlugin
from forgetlab.batch import UNKNOWN, Batch
from forgetlab.data import batches
from forgetlab.network import MASK, Head, Network
from forgetlab.plugins import OptionError
from forgetlab.seeding import drawn_from
from forgetlab.sites import LinearRole, Role, Site, find_sites

__all__ = ["IsolatedNetwork", "Isolation", "IsolationPlugin", "LinearRole", "Role", "Router", "Site"]


class Isolation(nn.Module, ABC):
    """One task's module: it owns only that task's tensors, and works on the backbone from outside."""

    needs: ClassVar[frozenset[str]] = frozenset({"boundaries"})  # "passes" too where `begin` or `end` reads its data
    identity_at_birth: ClassVar[bool] = True  # an untrained module leaves the backbone's features as they are

    def __init__(self, sites: Sequence[Role]) -> None:
        super().__init__()
        self.roles = tuple(sites)
        self.sites: list[Site] = []
        self.parts = nn.ModuleDict()

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
        """The keys and values attended to, at role attn.kv. (B, heads, T, head_dim) each"""
        return k, v

    def delta(self, part: Any, site: Site) -> Tensor | None:
        """The change of the site's weight that the part amounts to, (out_dim, in_dim), where there is one."""
        return None

    def begin(self, data: Iterable[Batch], previous: Sequence[Isolation], shared: dict[str, Tensor]) -> None:
        """Called before a task is trained; ``previous`` is read-only, ``shared`` belongs to the strategy."""

    def end(self, data: Iterable[Batch], previous: Sequence[Isolation], shared: dict[str, Tensor]) -> None:
        """Called after a task was trained."""

    def materialise(self) -> None:
        """Drop what only training needs and keep what is stored, with the same answers to the bit; called after `end`.

        Also called on a new, attached module, to make room for stored tensors: it may rely on no data.
        """

    def attach(self, backbone: nn.Module) -> None:
        """Find the sites and make a part for each.

        Raises:
            OptionError: the backbone has no such site.
        """
        self.sites = find_sites(backbone, self.roles)
        if not self.sites:
            raise OptionError("a module must attach somewhere", "sites")
        self.parts = nn.ModuleDict({site.key: self.make(site) for site in self.sites})

    @contextmanager
    def active(self, backbone: nn.Module) -> Iterator[None]:
        """Inside, the backbone's forward pass includes this module; afterwards it is bare again."""
        handles: list[Any] = []
        try:
            for site in self.sites:
                handles += self._hooks(backbone.get_submodule(site.path), site)
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, target: nn.Module, site: Site) -> list[Any]:
        part, kind = self.parts[site.key], type(self)
        if site.role == "attn.kv":

            def extended(_: nn.Module, __: Any, pair: Any) -> tuple[Tensor, Tensor]:
                return self.keys_values(part, site, *pair)

            return [target.register_forward_hook(extended)]
        hooks: list[Any] = []

        def entering(_: nn.Module, entered: Any) -> tuple[Any, ...]:
            return (self.before(part, site, entered[0]), *entered[1:])

        def leaving(_: nn.Module, entered: Any, left: Any) -> Tensor:
            return self.after(part, site, entered[0], left)

        if kind.before is not Isolation.before:
            hooks.append(target.register_forward_pre_hook(entering))
        if kind.after is not Isolation.after:
            hooks.append(target.register_forward_hook(leaving))
        return hooks


class Router(ABC):
    """Infers the task of a sample from the bare backbone's features, each sample for itself."""

    needs: ClassVar[frozenset[str]] = frozenset({"boundaries", "passes"})  # "passes": where `fit` reads features

    @abstractmethod
    def fit(self, task: int, features: Tensor, labels: Tensor) -> None:
        """Learn a task from its training data, at its end. (N, d), (N,)"""

    @abstractmethod
    def route(self, features: Tensor, answers: Callable[[int], Tensor]) -> Tensor:
        """(B, d) -> (B,) tasks; ``answers(task)`` gives that task's logits for the same samples (B, its classes)."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was learned: tensors and plain values."""
        return {}, {}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:  # noqa: B027 - may be empty
        """Take back what `state` gave."""


class IsolatedNetwork(Network):
    """A frozen backbone with a module and a head per task; old tasks' tensors are never touched again."""

    def __init__(
        self,
        backbone: nn.Module,
        make: Callable[[], Isolation],
        *,
        router: Router | None = None,
        task_known: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone.requires_grad_(False), task_known=task_known, seed=seed)
        self.make, self.router = make, router
        self.modules_of = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self.current = UNKNOWN
        self.routes: Tensor | None = None  # (B,) where the last batch was sent

    def open(self, task: int, classes: Sequence[int]) -> None:
        """Make the task's module and head, and close all others."""
        if task in self.classes_of:
            return
        device = next(self.backbone.parameters()).device
        with drawn_from("module", self.seed, task):
            module = self.make()
            module.attach(self.backbone)
        head = Head(self.n_features, self.seed)
        head.grow(sorted(classes))
        for closed in (*self.modules_of.values(), *self.heads.values()):
            closed.requires_grad_(False)
        self.modules_of[str(task)], self.heads[str(task)] = module.to(device), head.to(device)
        self.classes_of[task], self.current = sorted(classes), task

    def train(self, mode: bool = True) -> IsolatedNetwork:
        """The backbone and closed modules stay in evaluation mode: their buffers are frozen too."""
        super().train(mode)
        self.backbone.eval()
        for task, module in self.modules_of.items():
            module.train(mode and int(task) == self.current)
        return self

    def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
        """(B, ...), (B,) tasks or UNKNOWN -> (B, width)"""
        if self.training:
            return self._spread(self.answer(self.current, x), self.current)
        task = task_labels if self.router is None else self.route(x)
        self.routes = task
        logits = x.new_full((len(x), self.width), MASK)
        for one in task.unique().tolist():
            rows = (task == one).nonzero().squeeze(1)
            logits[rows] = self._spread(self.answer(one, x[rows]), one)
        return logits

    def route(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B,) tasks, by the router"""
        assert self.router is not None
        with torch.no_grad():
            return self.router.route(self.backbone(x), lambda task: self.answer(task, x))

    def answer(self, task: int, x: Tensor) -> Tensor:
        """One task's own logits. (B, ...) -> (B, its classes)"""
        with self.module_of(task).active(self.backbone):
            features = self.backbone(x)
        return self.heads[str(task)](features)

    def module_of(self, task: int) -> Isolation:
        module = self.modules_of[str(task)]
        assert isinstance(module, Isolation)
        return module

    def task_tensors(self, task: int) -> dict[str, Tensor]:
        """All that one task owns: its module's and its head's tensors."""
        parts = {"module": self.modules_of[str(task)], "head": self.heads[str(task)]}
        return {f"{a}.{name}": t.detach() for a, part in parts.items() for name, t in part.state_dict().items()}

    def _spread(self, logits: Tensor, task: int) -> Tensor:
        """(B, the task's classes) -> (B, width)"""
        columns = torch.tensor(self.classes_of[task], device=logits.device)
        return logits.new_full((len(logits), self.width), MASK).index_copy(1, columns, logits)


class IsolationPlugin(SupervisedPlugin):
    """Tells an `IsolatedNetwork`'s modules and router when a task begins and ends."""

    def __init__(self) -> None:
        super().__init__()
        self.shared: dict[str, Tensor] = {}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        network: IsolatedNetwork = strategy.model
        module, previous = self._modules(network)
        module.begin(self._data(strategy), previous, self.shared)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        network: IsolatedNetwork = strategy.model
        module, previous = self._modules(network)
        module.end(self._data(strategy), previous, self.shared)
        module.materialise()
        if network.router is not None:
            with torch.no_grad():
                parts = [(network.backbone(batch.x), batch.y) for batch in self._data(strategy)]
            features, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            network.router.fit(network.current, features, labels)

    def _modules(self, network: IsolatedNetwork) -> tuple[Isolation, list[Isolation]]:
        *previous, module = (network.module_of(task) for task in network.classes_of)
        return module, previous

    def _data(self, strategy: Any) -> Iterator[Batch]:
        return batches(strategy.experience.dataset, strategy.train_mb_size, strategy.device)
