"""Output layers that grow with the classes: one for all tasks, or one for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.seeding import generator
from forgetlab.training.competing_classes import nobody


class Head(nn.Module):
    """One linear layer with a row per class; a row's start depends on the seed and its class alone."""

    def __init__(self, n_features: int, seed: int) -> None:
        super().__init__()
        self.n_features, self.seed = n_features, seed
        self.weight = nn.Parameter(torch.empty(0, n_features))
        self.bias = nn.Parameter(torch.empty(0))

    def grow(self, classes: Sequence[int]) -> None:
        """Append rows for these classes, in their order."""
        if not classes:
            return
        bound = self.n_features**-0.5  # as in torch.nn.Linear
        rows = torch.stack(
            [torch.rand(self.n_features + 1, generator=generator("head", self.seed, label)) for label in classes]
        )
        rows = ((2 * rows - 1) * bound).to(self.weight.device)
        self.weight = nn.Parameter(torch.cat([self.weight.data, rows[:, :-1]]))
        self.bias = nn.Parameter(torch.cat([self.bias.data, rows[:, -1]]))

    def forward(self, features: Tensor) -> Tensor:
        """(B, d) -> (B, rows)"""
        return F.linear(features, self.weight, self.bias)


class TaskHeads(nn.ModuleDict):
    """A head of its own for each task."""

    def grow(self, task: int, classes: Sequence[int], empty: Head) -> None:
        """Add rows to a task's head, which is ``empty`` where there is none yet."""
        if str(task) not in self:
            self[str(task)] = empty
        head = self[str(task)]
        assert isinstance(head, Head)
        head.grow(classes)

    def answer(self, features: Tensor, task: Tensor, classes_of: Mapping[int, Sequence[int]], width: int) -> Tensor:
        """(B, d), (B,) -> (B, width); classes of other tasks get MASK"""
        logits = nobody(len(features), width, like=features)
        for one in task.unique().tolist():
            rows = (task == one).nonzero().squeeze(1)
            columns = torch.tensor(classes_of[one], device=task.device)
            logits[rows.unsqueeze(1), columns] = self[str(one)](features[rows])
        return logits
