"""The contract of rehearsals: the loss on new and drawn samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from forgetlab.batch import Batch
from forgetlab.replay.slots import Slots


class Rehearsal(ABC):
    """The loss on new and drawn samples, where it is not the cross-entropy over both."""

    keeps_logits: ClassVar[bool] = False  # whether samples are to be stored with their logits of that moment
    always: ClassVar[bool] = False  # whether it stands also where nothing is drawn; the drawn batch is empty then
    from_scratch: ClassVar[bool] = False  # whether each task is the memory's samples alone, for a model started anew
    reads_kept: ClassVar[bool] = False  # whether it puts samples through a network: they must be as they came
    draws: int = 1  # batches that are drawn for a step, each by itself; the drawn batch holds one after the other

    @abstractmethod
    def loss(self, model: nn.Module, new: Batch, drawn: Batch, output: Tensor) -> Tensor:
        """A scalar; ``output`` holds the logits of the new samples, then of the drawn ones."""

    def parts(self, model: nn.Module, new: Batch, drawn: Batch, output: Tensor) -> tuple[Tensor, Tensor]:
        """The loss on new and on drawn samples apart, each a mean, which `replay: {weight: ...}` then weighs.

        Only where a loss of its own has such parts: beside another one a weight is refused.

        Raises:
            NotImplementedError: the loss is one of both, or has weights of its own.
        """
        raise NotImplementedError(f"{type(self).__name__} weighs new and drawn samples by itself")

    def begin(self, model: nn.Module) -> None:  # noqa: B027 - may be empty
        """Called before a task's first step, when the model has grown for it."""

    def end(self, model: nn.Module, slots: Slots) -> None:  # noqa: B027 - may be empty
        """Called at a task's end, when the memory is that of after the task; the model is in evaluation mode."""

    def answer(self, model: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """What is answered at test instead of the model's logits. (B, ...), (B, C) -> (B, C)"""
        return output

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is kept beside the samples: tensors and plain values."""
        return {}, {}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:  # noqa: B027 - may be empty
        """Take back what `state` gave."""
