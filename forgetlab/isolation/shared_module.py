"""One module that all tasks train: a frozen backbone and the module stand where a backbone stands.

So replay, penalties and projections act on the module's tensors as they would on a network's weights.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from forgetlab.avalanche.api import SupervisedPlugin
from forgetlab.isolation.attachment import placed
from forgetlab.isolation.module import Isolation
from forgetlab.plugins.options import OptionError
from forgetlab.training.loop import progress, progress_of_epoch

HOOKS = ("begin", "end", "step", "materialise")  # what a module may do in the course of a task


class Adapted(nn.Module):
    """A frozen backbone under a module that is trained; of what else it is asked, the backbone answers."""

    def __init__(self, backbone: nn.Module, module: Isolation) -> None:
        super().__init__()
        self.backbone, self.module = backbone.requires_grad_(False), module
        self.module.attach(backbone)
        self.n_features: int = backbone.n_features  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, d)"""
        return self.module.features(self.backbone, x)

    def states(self, ids: Tensor) -> Tensor:
        """What the last layer says of each token, where the backbone reads text. (B, L) -> (B, L, d)"""
        with self.module.active(self.backbone, ids):
            return self.backbone.states(ids)  # type: ignore[operator]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "backbone" not in vars(self).get("_modules", {}):
                raise
            return getattr(self.backbone, name)

    def train(self, mode: bool = True) -> Adapted:
        """The backbone stays in evaluation mode: its buffers are frozen too."""
        super().train(mode)
        self.backbone.eval()
        return self

    def dense(self) -> dict[str, Tensor]:
        """The tensors that the module changes as it makes them, by the backbone's names; gradients reach the module.

        For a module whose `changes` are told.
        """
        pairs = []
        for member in _members(self.module):
            for site in member.sites:
                change: Any = member.delta(member.parts[site.key], site)
                named = {"weight": change} if isinstance(change, Tensor) else change
                pairs.append((site, {name: site.tensors[name] + one for name, one in named.items()}))
        return placed(self.backbone, pairs)

    def merged(self) -> nn.Module:
        """A copy of the backbone with the module's change in its weights; what changed asks for gradients."""
        merged = copy.deepcopy(self.backbone)
        for name, tensor in self.dense().items():
            parameter = merged.get_parameter(name)
            parameter.data = tensor.detach().clone()
            parameter.requires_grad_()
        return merged


def _members(module: Any) -> list[Isolation]:
    """A module itself, or those that act as one."""
    if not hasattr(module, "members"):
        return [module]
    return [inner for member in module.members for inner in _members(member)]


def refuse_unshareable(module: Isolation) -> None:
    """Refuse what is made for one task.

    Raises:
        OptionError: with the reason.
    """
    for kind in map(type, _members(module)):
        does = {hook for hook in HOOKS if getattr(kind, hook) is not getattr(Isolation, hook)}
        prunes = {"step", "materialise"} <= does  # once, for the task at hand
        if does & {"begin", "end"} or prunes or kind.asks or kind.speaks_for_all:
            told = "it acts when a task begins or ends"
            raise OptionError(f"this module is made for one task and cannot be shared: {told}")


class ModulePlugin(SupervisedPlugin):
    """Tells the module of an `Adapted` of each step, and adds its penalty."""

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        module = strategy.model.backbone.module
        module.step(progress(strategy))
        module.step_of_epoch(*progress_of_epoch(strategy))

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        penalty = strategy.model.backbone.module.penalty()
        if penalty is not None:
            strategy.loss = strategy.loss + penalty
