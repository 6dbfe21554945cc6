"""Merging: what several tasks changed in the frozen weights becomes one change, which answers without a router."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Changes = Mapping[str, Tensor]  # by the place in the backbone: a weight's or bias' change, theta_t - theta_0


class Merger(ABC):
    """Makes one change of the tasks'; it keeps nothing from one merge to the next, and draws nothing of the run's."""

    @abstractmethod
    def merge(self, changes: Sequence[Changes]) -> dict[str, Tensor]:
        """The tasks' changes, first task first, as one; a place that a task leaves alone is missing in its changes."""


def by_place(changes: Sequence[Changes], combine: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """What ``combine`` makes of each place's changes, task by task: (T, ...) -> (...), zeros where one is missing."""
    shapes = {place: change for one in reversed(changes) for place, change in one.items()}
    places = dict.fromkeys(place for one in changes for place in one)
    return {
        place: combine(torch.stack([one.get(place, torch.zeros_like(shapes[place])) for one in changes]))
        for place in places
    }
