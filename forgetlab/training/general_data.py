"""General data: a fixed set from elsewhere, trained on beside every batch so that what it taught is kept.

By default it is what the backbone was pretrained on, under the head and the objective of the pretraining; any other
labelled data set gets a head of its own, which is trained with the network and never answers a test sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche.api import SupervisedPlugin
from forgetlab.backbones.batch_norm import kept_statistics_for_one
from forgetlab.data import datasets
from forgetlab.data.datasets import Samples, as_input
from forgetlab.experiment import ResolvedSpec
from forgetlab.seeding import generator
from forgetlab.training.heads import Head
from forgetlab.training.network import Network
from forgetlab.training.pretraining import Start

Loss = Callable[[nn.Module, Tensor, Tensor, int], Tensor]  # backbone, x (B, ...), y (B,), step -> scalar, a mean


class General(SupervisedPlugin):
    """The loss becomes the mean over new, replayed and general samples; ``ratio`` general ones for each new one.

    To replace new data rather than add to it, make the batch smaller by as many.
    """

    def __init__(self, data: Samples, loss: Loss, ratio: float) -> None:
        super().__init__()
        self.data, self.loss, self.ratio = data, loss, ratio
        self.seed = 0
        self.replayed = 0  # samples drawn in this task
        self._generator = generator("general", self.seed, 0)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is kept beside the network: the set itself."""
        return {"x": self.data.x, "y": self.data.y}, {}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._generator = generator("general", self.seed, strategy.clock.train_exp_counter)
        self.replayed = 0

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        fresh = len(strategy.dataloader.rows) if hasattr(strategy.dataloader, "rows") else len(strategy.mb_y)
        apart = sum(getattr(plugin, "apart", 0) for plugin in strategy.plugins)
        n, beside = max(1, round(self.ratio * fresh)), len(strategy.mb_y) + apart
        rows = torch.randint(len(self.data.y), (n,), generator=self._generator)
        x, y = (as_input(column[rows]).to(strategy.device) for column in self.data)
        with kept_statistics_for_one(strategy.model, n):
            loss = self.loss(strategy.model.backbone, x, y, strategy.clock.train_iterations)
        strategy.loss = (beside * strategy.loss + n * loss) / (beside + n)
        self.replayed += n


def from_start(start: Start, ratio: float, device: torch.device) -> General:
    """What was pretrained on, under the frozen head of the pretraining."""
    x, y = (torch.cat([getattr(t.train, part) for t in start.tasks]) for part in ("x", "y"))
    return General(Samples(x, y), start.loss(device), ratio)


def from_data(spec: ResolvedSpec, ratio: float, network: Network, seed: int) -> General:
    """A labelled data set under a head of its own."""
    data = datasets.dataset(spec, "replay.general.data").train
    head = Head(network.n_features, seed)
    head.grow(range(int(data.y.max()) + 1))
    network.general = head.to(next(network.parameters()).device)
    return General(data, lambda backbone, x, y, _: F.cross_entropy(head(backbone(x)), y), ratio)
