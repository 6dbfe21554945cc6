"""One module that all tasks train: a frozen backbone and the module stand where a backbone stands.

So replay, penalties and projections act on the module's tensors as they would on a network's weights.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from forgetlab.avalanche_api import SupervisedPlugin
from forgetlab.isolation import Isolation
from forgetlab.loop import progress
from forgetlab.plugins import OptionError


class Adapted(nn.Module):
    """A frozen backbone under a module that is trained."""

    def __init__(self, backbone: nn.Module, module: Isolation) -> None:
        super().__init__()
        self.backbone, self.module = backbone.requires_grad_(False), module
        self.module.attach(backbone)
        self.n_features: int = backbone.n_features  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, d)"""
        return self.module.features(self.backbone, x)

    def train(self, mode: bool = True) -> Adapted:
        """The backbone stays in evaluation mode: its buffers are frozen too."""
        super().train(mode)
        self.backbone.eval()
        return self


def refuse_unshareable(module: Isolation) -> None:
    """Refuse what is made for one task.

    Raises:
        OptionError: with the reason.
    """
    kind = type(module)
    told = [hook for hook in ("begin", "end") if getattr(kind, hook) is not getattr(Isolation, hook)]
    if told or kind.asks or kind.speaks_for_all:
        raise OptionError("this module is made for one task and cannot be shared: it acts when a task begins or ends")


class ModulePlugin(SupervisedPlugin):
    """Tells the module of an `Adapted` of each step, and adds its penalty."""

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        strategy.model.backbone.module.step(progress(strategy))

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        penalty = strategy.model.backbone.module.penalty()
        if penalty is not None:
            strategy.loss = strategy.loss + penalty
