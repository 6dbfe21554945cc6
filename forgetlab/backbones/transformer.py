"""A small text transformer without pretrained weights, for token ids of the packaged WordPiece tokenizer."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from forgetlab.backbones.layers import Block, Positions
from forgetlab.backbones.tokenizer import PADDING, TOKENIZER
from forgetlab.plugins.options import OptionError
from forgetlab.plugins.registry import register

READS = "a transformer reads token ids, as a text data set gives them with 'form: ids'"
VOCABULARY = 30522  # ids that the tokenizer gives
UNKNOWN_ID, MASK_ID = 100, 103  # [UNK] and [MASK]; after the latter only pieces of text follow, frequent ones first


@register("model", "transformer")
class Transformer(nn.Module):
    """Layers normalised before each part, averaged over the tokens that are no padding; where causal, the last one.

    Ids from ``vocabulary`` on are read as [UNK]: rare pieces come last, and the embedding is most of a small model.
    """

    tokenizer = TOKENIZER
    mask = MASK_ID

    def __init__(
        self,
        input_shape: tuple[int, ...],
        width: PositiveInt = 64,
        depth: PositiveInt = 4,
        heads: PositiveInt = 4,
        vocabulary: Annotated[int, Field(gt=MASK_ID + 1, le=VOCABULARY)] = VOCABULARY,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise OptionError(f"{READS}; not inputs of shape {input_shape}")
        if width % heads:
            raise OptionError(f"width {width} does not divide into {heads} heads", "heads")
        self.vocabulary, self.causal, self.n_features = vocabulary, causal, width
        self.embed = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embed.weight, std=0.02)  # small, as it may be the output layer of the pretraining
        self.positions = Positions(input_shape[0], width)
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width, causal) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, width)"""
        states, real = self.states(ids), self.real(ids)
        if self.causal:
            last = (real * torch.arange(ids.shape[1], device=ids.device)).amax(1)
            return states[torch.arange(len(ids), device=ids.device), last]
        weight = real.unsqueeze(-1).to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1).clamp(min=1)

    def states(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, L, width): what the last layer says of each token"""
        length = len(self.positions.weight)
        if ids.is_floating_point() or ids.shape[1:] != (length,):
            given = f"{str(ids.dtype).removeprefix('torch.')} of shape {tuple(ids.shape)}"
            raise OptionError(f"{READS}, {length} a text here; not {given}")
        real = self.real(ids)
        x = self.positions(self.embed(self.known(ids)))
        for block in self.blocks:
            x = block(x, real)
        return self.norm(x)

    def averaged(self, states: Tensor) -> Tensor:
        """The features of some positions that leave the last block, as their mean. (B, n, width) -> (B, width)"""
        return self.norm(states).mean(1)

    def real(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, L) bool: what is no padding"""
        return ids.ne(PADDING)

    def known(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, L): the ids with [UNK] for what is not in the vocabulary"""
        return ids.where(ids < self.vocabulary, UNKNOWN_ID)

    def pieces(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, L) bool: pieces of text in the vocabulary; not padding, [CLS], [SEP], [MASK] or [UNK]"""
        return self.known(ids) > self.mask
