"""Memories that are fed samples which hold their own number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from forgetlab.batch import Batch
from forgetlab.replay.memory import Memory
from forgetlab.seeding import generator

Kept = TypeVar("Kept", bound=Memory)


def fill(memory: Kept, labels: Sequence[int], batch_size: int = 10, seed: int = 0, tasks: Sequence[int] = ()) -> Kept:
    """Send samples by; sample i of the stream holds the number i, and is of task 0 where no tasks are given."""
    draw, y = generator("memories", seed), torch.tensor(labels)
    task = torch.tensor(tasks) if tasks else torch.zeros_like(y)
    for rows in torch.arange(len(y)).split(batch_size):
        batch = Batch(rows.float().unsqueeze(1), y[rows], task[rows])
        memory.store(batch, torch.zeros(len(rows), 1), draw)
    return memory


def contents(memory: Memory) -> list[int]:
    """The numbers of the samples that are kept."""
    assert len(memory.slots) <= memory.slots.capacity
    return sorted(int(x) for x in memory.slots.read(torch.arange(len(memory.slots))).x[:, 0])
