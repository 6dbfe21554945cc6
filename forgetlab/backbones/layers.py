"""What our own transformers are built of: attention, feed-forward, blocks, positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KeysValues(nn.Module):
    """Passes keys and values on unchanged: the place where a prefix is put before them."""

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, heads, T, d/heads) each"""
        return keys, values


class Attention(nn.Module):
    """Multi-head self-attention with separate projections: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.keys_values = KeysValues()

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """(B, T, d) -> (B, T, d); real (B, up to T) where a sequence has padding, see `visible`"""
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.q, self.k, self.v))
        k, v = self.keys_values(k, v)
        mask = visible(q.shape[2], k.shape[2], real, self.causal, x.device)
        attended = F.scaled_dot_product_attention(q, k, v, mask)  # (B, heads, T, d/heads)
        return self.out(attended.transpose(1, 2).flatten(2))


def visible(
    queries: int, keys: int, real: Tensor | None, causal: bool, device: torch.device | str = "cpu"
) -> Tensor | None:
    """Which keys each query attends to, (queries, keys) or (B, 1, queries, keys) of bool; None for all.

    What is put in front, as keys alone or as a part of the sequence, is real. Every position sees itself, so that
    one of padding alone has an answer, too.
    """
    if real is None and not causal:
        return None
    key = torch.arange(keys, device=device)
    query = key[keys - queries :].unsqueeze(1)
    seen = key <= query if causal else torch.ones(queries, keys, dtype=torch.bool, device=device)
    if real is None:
        return seen
    real = torch.cat([real.new_ones(len(real), keys - real.shape[1]), real], 1)
    return seen & real[:, None, None, :] | (key == query)


class FeedForward(nn.Module):
    """Two layers with GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)"""
        return self.outer(F.gelu(self.inner(x)))


class Block(nn.Module):
    """One transformer layer, normalised before each part (Xiong et al. 2020, https://arxiv.org/abs/2002.04745)."""

    def __init__(self, width: int, heads: int, hidden: int, causal: bool = False) -> None:
        super().__init__()
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.feed_forward = FeedForward(width, hidden)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """(B, T, d) -> (B, T, d); real (B, up to T) where a sequence has padding"""
        x = x + self.attention(self.norm_attention(x), real)
        return x + self.feed_forward(self.norm_feed_forward(x))


class Positions(nn.Module):
    """Adds a learned vector to each position."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(length, width))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)"""
        return x + self.weight
