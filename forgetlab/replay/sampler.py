"""The contract of samplers: which of the kept samples are drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Generator, Tensor, nn

from forgetlab.batch import Batch
from forgetlab.replay.slots import Slots


class Sampler(ABC):
    """Which of the kept samples are drawn, where not each is equally likely."""

    reads_kept: ClassVar[bool] = False  # whether it puts kept samples through the network: they must be as they came
    tells_tasks: bool = False  # whether it asks in which task a sample came: ``slots.tensors["experience"]`` says it

    @staticmethod
    def needs_of(options: Mapping[str, Any]) -> frozenset[str]:
        """What it has to be told with these options: "boundaries" where it asks for tasks."""
        return frozenset()

    @abstractmethod
    def choose(self, slots: Slots, n: int, new: Batch, model: nn.Module, rate: float, generator: Generator) -> Tensor:
        """The places of at most n kept samples, for a step on the ``new`` ones at this learning rate. -> (n,)"""
