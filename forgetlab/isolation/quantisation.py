"""Frozen weights in 4 bits (NF4 with double quantisation) or 8 (by row), and their product with what enters.

NF4: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314; rows in 8 bits: Dettmers et al. 2022,
https://arxiv.org/abs/2208.07339, without its outliers; the 8 bits for scales: https://arxiv.org/abs/1511.04561.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, linspace
from torch.autograd import Function
from torch.nn import functional as F

BLOCK, SCALES = 64, 256  # values with one scale; scales with one scale of theirs

_OUTERMOST = 0.9677083  # quantile
_BELOW, _ABOVE = (torch.special.ndtri(linspace(0.5, _OUTERMOST, n).double()) for n in (8, 9))
_STEPS = torch.cat([10.0 ** (i - 6) * (linspace(0.1, 1, 2**i + 1)[:-1] + 0.45 / 2**i) for i in range(7)])
NF4 = (
    torch.cat([0.0 - _BELOW.flip(0), _ABOVE[1:]]) / _ABOVE[-1]
).float()  # 16 values, as likely as each other for normal weights
DYNAMIC = torch.cat([_STEPS, -_STEPS, torch.tensor([0.0, 1.0])]).sort().values  # 256 values, finer near 0
LINEAR8 = linspace(-1, 1, 255)


def quantised(weight: Tensor, bits: int) -> dict[str, Tensor]:
    """A weight (out_dim, in_dim) in 4 or 8 bits: codes, scales and, at 4 bits, the scales' own scales and mean."""
    if bits == 8:
        codes, scales = _coded(weight.flatten(), LINEAR8, weight.shape[1])
        return {"codes": codes, "scales": scales}
    codes, scales = _coded(weight.flatten(), NF4, BLOCK)
    mean = scales.mean()
    coded, sizes = _coded(scales - mean, DYNAMIC, SCALES)
    packed = codes[:, ::2] << 4 | codes[:, 1::2]
    return {"codes": packed, "scales": coded.flatten()[: len(scales)].clone(), "sizes": sizes, "mean": mean}


def dequantised(tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
    """What `quantised` kept of a weight of this shape."""
    codes, scales = tensors["codes"], tensors["scales"]
    if "mean" not in tensors:
        return LINEAR8.to(scales)[codes.long()] * scales.unsqueeze(1)
    mean = tensors["mean"]
    scales = DYNAMIC.to(mean)[scales.long()] * tensors["sizes"].repeat_interleave(SCALES)[: len(scales)] + mean
    codes = torch.stack([codes >> 4, codes & 15], dim=-1).flatten(1)
    values = NF4.to(mean)[codes.long()] * scales.unsqueeze(1)
    return values.flatten()[: shape[0] * shape[1]].view(shape)


def quantised_linear(x: Tensor, tensors: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None) -> Tensor:
    """F.linear with the weight that the tensors stand for; no dense copy of it waits for the backward pass."""
    product: Tensor = _Product.apply(x, tensors, shape)  # type: ignore[assignment]
    return product if bias is None else product + bias


class _Product(Function):
    """x W^T; W is made anew for the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        ctx.tensors, ctx.shape = tensors, shape
        return F.linear(x, dequantised(tensors, shape))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0] @ dequantised(ctx.tensors, ctx.shape), None, None


def _coded(values: Tensor, table: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The nearest table entry of each value over its block's largest: (N,) -> (blocks, block) uint8, (blocks,)"""
    blocks = F.pad(values, (0, -len(values) % block)).view(-1, block)
    scales = blocks.abs().amax(1)
    relative = blocks / scales.clamp(min=torch.finfo(scales.dtype).tiny).unsqueeze(1)
    table = table.to(values)
    return torch.bucketize(relative, (table[1:] + table[:-1]) / 2).byte(), scales
