"""Where batches become one: a replayed batch joins the new one behind it, and both go through the model together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from forgetlab.batch import Batch


def joined(new: Batch, drawn: Batch, inputs: Tensor) -> list[Tensor]:
    """Inputs (n + m, ...), labels and tasks (n + m,) of n new and m drawn samples.

    ``inputs`` (m, ...) are what the drawn ones put through the model: themselves, or what stands for them where kept
    samples enter it further up.
    """
    return [torch.cat(pair) for pair in ((new.x, inputs), (new.y, drawn.y), (new.task, drawn.task))]


def in_a_row(batches: Sequence[Batch]) -> Batch:
    """Batches as one, in their order; they hold the same things beside their samples."""
    if len(batches) == 1:
        return batches[0]
    x, y, task = (torch.cat(column) for column in list(zip(*batches, strict=True))[:3])
    extra = {name: torch.cat([batch.extra[name] for batch in batches]) for name in batches[0].extra}
    return Batch(x, y, task, extra)
