"""Samples as they are inside of a network: what enters a block, and how it enters there again."""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from forgetlab.backbones.sites import blocks
from forgetlab.batch import Batch
from forgetlab.isolation.frozen_features import entering_block
from forgetlab.isolation.shared_module import Adapted
from forgetlab.plugins.options import OptionError

IDS = "ids"  # beside a text that is kept inside: its ids, which tell padding


def freeze(backbone: nn.Module, depth: int) -> None:
    """Freeze all that lies below a block: its weights, BatchNorm's statistics, and chance (dropout).

    Raises:
        OptionError: there is no such block, or a module that all tasks train acts below it.
    """
    layers = blocks(backbone)
    if not 0 < depth < len(layers):
        blocks_there = f"block 1 to {len(layers) - 1}" if len(layers) > 1 else "no block"
        raise OptionError(f"kept samples can enter {blocks_there} of this model", "depth")
    if isinstance(backbone, Adapted) and _acts_below(backbone, depth):
        raise OptionError(f"the module changes what enters block {depth}: give it 'layers' from {depth} on", "depth")
    path = next(name for name, module in backbone.named_modules() if module is layers[0])
    last = max(i for i, (name, _) in enumerate(backbone.named_parameters()) if name.startswith(f"{path}."))
    above = {id(p) for layer in layers[depth:] for p in layer.parameters()}
    below = {id(p) for layer in layers[:depth] for p in layer.parameters()}
    for i, parameter in enumerate(backbone.parameters()):  # what is made before the blocks is used before them
        if (i <= last or id(parameter) in below) and id(parameter) not in above:
            parameter.requires_grad_(False)
    for part in (*_stem(backbone, layers[0]), *layers[:depth]):
        part.eval()
        part.train = MethodType(_stays, part)  # type: ignore[method-assign] - a bound one: a deep copy has its own


def _acts_below(backbone: Adapted, depth: int) -> bool:
    reads_all = any(site.role == "side" for site in backbone.module.sites)
    return reads_all or backbone.module.lowest() < depth


def _stem(backbone: nn.Module, first: nn.Module) -> Iterator[nn.Module]:
    """The parts that stand before the first block, but for those that hold it."""
    for part in backbone.modules():
        if part is first:
            return
        if all(inner is not first for inner in part.modules()):
            yield part


def _stays(part: nn.Module, mode: bool = True) -> nn.Module:
    """In the place of ``train``: what is frozen stays in evaluation mode."""
    return part


@torch.no_grad()
def encode(backbone: nn.Module, batch: Batch, depth: int) -> Batch:
    """A batch as what enters the block; a text keeps its ids beside, as the blocks have to know what is padding."""
    beside = {} if batch.x.is_floating_point() else {IDS: batch.x}
    return batch._replace(x=entering_block(backbone, batch.x, depth), extra={**batch.extra, **beside})


def enter(backbone: nn.Module, drawn: Batch, depth: int, new: Tensor) -> Tensor:
    """In the next forward pass drawn samples enter the block behind the ``new`` ones, which alone pass those below.

    One pass for both, so that a BatchNorm above sees both. Gives what stands for the drawn ones among the inputs.
    """
    layers, handles, total = blocks(backbone), [], len(new) + len(drawn.y)

    def of_new(value: Any) -> Any:
        return value[: len(new)] if isinstance(value, Tensor) and value.dim() > 1 and len(value) == total else value

    def cut(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return tuple(map(of_new, args)), {name: of_new(value) for name, value in named.items()}

    def join(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        for handle in handles:
            handle.remove()
        return (torch.cat([args[0], drawn.x]), *args[1:])

    handles += [layer.register_forward_pre_hook(cut, with_kwargs=True) for layer in layers[:depth]]
    handles.append(layers[depth].register_forward_pre_hook(join))
    return drawn.extra.get(IDS, new.new_zeros(len(drawn.y), *new.shape[1:]))
