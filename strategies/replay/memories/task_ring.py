"""The memory of GEM: Lopez-Paz & Ranzato 2017, https://arxiv.org/abs/1706.08840, section 3.

The paper divides the capacity by the number of all tasks; here it is shared among those seen so far, so that nothing
lies idle and how many will come need not be known. The authors' code keeps about a task's last samples: it goes on
filling where the task before stopped.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Generator, Tensor

from forgetlab.plugins import register
from forgetlab.replay import Batch, Memory


@register("memory", "task_ring")
class TaskRing(Memory):
    """The last samples of each task (first in, first out), in equal shares of about capacity / tasks.

    With ``per_task`` each task has that many places, with ``share`` that part of its samples; the
    memory then grows with the tasks. As a task's samples come in random order, its last ones are a
    fair sample of it.
    """

    needs = frozenset({"boundaries"})
    kept: ClassVar[tuple[str, ...]] = ("seen",)

    def __init__(
        self,
        capacity: PositiveInt | None = None,
        ratio: PositiveFloat = 1.0,
        per_task: PositiveInt | None = None,
        share: Annotated[float, Field(gt=0.0, le=1.0)] | None = None,
    ) -> None:
        super().__init__(capacity or 1, ratio)
        self.take_size(capacity, per_task=per_task, share=share)
        self.seen = 0

    def store(self, batch: Batch, output: Tensor, generator: Generator) -> None:
        n, device = len(batch.y), batch.y.device
        self.slots.note(batch, of="task")
        self.slots.keep_highest(batch, key=torch.arange(self.seen, self.seen + n, device=device), of="task")
        self.seen += n
