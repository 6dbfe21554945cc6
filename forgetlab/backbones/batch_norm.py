"""What BatchNorm asks of batches in training: two samples or more, as one alone may have no variance.

The rule, wherever a network with BatchNorm is trained:

- a last batch of one new sample is joined to the batch before it (`forgetlab.avalanche.tensor_data.TensorLoader`);
  likewise one of what GDumb keeps, and of what a backbone is pretrained on;
- old or general samples that go through the network apart from the new ones (a projection's references, general data)
  are normalised, where there is but one of them, by the statistics that there are, and leave these alone;
- drawn samples that join the new batch need no rule;
- a stream or a batch size that leaves a task nothing but batches of one is refused before anything is trained, if the
  network cannot take one: with two places or more in an image it can.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a layer normalises by the batch, in one, two or three dimensions."""
    return any(isinstance(layer, _BatchNorm) for layer in model.modules())


@contextmanager
def kept_statistics_for_one(model: nn.Module, samples: int) -> Iterator[None]:
    """Inside, BatchNorm uses the statistics that there are and leaves them alone, if ``samples`` is 1."""
    moving = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]
    still = moving if samples == 1 else []
    for layer in still:
        layer.eval()
    try:
        yield
    finally:
        for layer in still:
            layer.train()


@torch.no_grad()
def takes_one_sample(backbone: nn.Module, x: Tensor) -> bool:
    """Whether a backbone can be trained on a batch of one of the samples x (B, ...); it is left as it was."""
    if not has_batch_norm(backbone):
        return True
    kept = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    modes = [(part, part.training) for part in backbone.modules()]
    try:
        backbone.train()(x[:1])
    except ValueError:  # as torch says that it expected more than one value
        return False
    finally:
        backbone.load_state_dict(kept)
        for part, mode in modes:
            part.training = mode
    return True
