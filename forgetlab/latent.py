"""Samples as they are inside of a network: what enters a block, and the way up from there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from forgetlab.attachment import skipped
from forgetlab.batch import Batch
from forgetlab.frozen import entering
from forgetlab.plugins import OptionError
from forgetlab.sites import blocks

IDS = "ids"  # beside a text that is kept inside: its ids, which tell padding


def freeze(backbone: nn.Module, depth: int) -> None:
    """Freeze all that lies below a block; its embedding, where there is one, and BatchNorm's statistics too.

    Raises:
        OptionError: there is no such block.
    """
    layers = blocks(backbone)
    if not 0 < depth < len(layers):
        blocks_there = f"block 1 to {len(layers) - 1}" if len(layers) > 1 else "no block"
        raise OptionError(f"kept samples can enter {blocks_there} of this model", "depth")
    above = {id(p) for layer in layers[depth:] for p in layer.parameters()}
    path = next(name for name, module in backbone.named_modules() if module is layers[0])
    last = max(i for i, (name, _) in enumerate(backbone.named_parameters()) if name.startswith(f"{path}."))
    stems = {id(p) for i, (_, p) in enumerate(backbone.named_parameters()) if i <= last}  # what comes before the blocks
    below = {id(p) for layer in layers[:depth] for p in layer.parameters()}
    for parameter in backbone.parameters():
        if id(parameter) in stems | below and id(parameter) not in above:
            parameter.requires_grad_(False)
    for layer in layers[:depth]:
        layer.eval()
        layer.train = lambda mode=True, layer=layer: layer  # type: ignore[method-assign]


@torch.no_grad()
def encode(backbone: nn.Module, batch: Batch, depth: int) -> Batch:
    """A batch as what enters the block; a text keeps its ids beside, as the blocks have to know what is padding."""
    beside = {} if batch.x.is_floating_point() else {IDS: batch.x}
    return batch._replace(x=entering(backbone, batch.x, depth), extra={**batch.extra, **beside})


def features(backbone: nn.Module, drawn: Batch, depth: int, like: Tensor) -> Tensor:
    """The way up from a block; ``like`` is an input of the shape that the backbone reads. (B, T, d) -> (B, d)"""
    x = drawn.extra.get(IDS, like.new_zeros(len(drawn.x), *like.shape[1:]))
    with skipped(backbone, depth, drawn.x):
        return backbone(x)
