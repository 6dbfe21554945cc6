"""The order in which a task's samples come: one for all strategies of a seed."""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator

from forgetlab.seeding import generator


def data_order(seed: int, task: int) -> Callable[[int], Generator]:
    """For each epoch the generator that shuffles the task's samples.

    It hangs on seed, task and epoch alone, never on what a strategy draws beside: so all of them see the same order.
    """
    return lambda epoch: generator("order", seed, task, epoch)
