"""Where a replayed batch joins the new one: one batch goes through the model, new samples first."""

from __future__ import annotations

import torch
from torch import Tensor

from forgetlab.batch import Batch


def joined(new: Batch, drawn: Batch, inputs: Tensor) -> list[Tensor]:
    """Inputs (n + m, ...), labels and tasks (n + m,) of n new and m drawn samples.

    ``inputs`` (m, ...) are what the drawn ones put through the model: themselves, or what stands for them where kept
    samples enter it further up.
    """
    return [torch.cat(pair) for pair in ((new.x, inputs), (new.y, drawn.y), (new.task, drawn.task))]
