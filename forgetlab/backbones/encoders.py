"""Transformers of other libraries as backbones: token ids or images in, features out.

A wrapper holds the library's own model as ``encoder``, with the library's own names, and takes all chance out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.backbones import attention
from forgetlab.plugins.options import OptionError

TextPool = Literal["mean", "first", "last"]
ImagePool = Literal["first", "mean", "first+mean"]

WITH_TOKEN_TYPES = ("BertModel", "RobertaModel")
LAST_NORMS = (
    "ln_f",
    "layernorm",
    "norm",
)  # of GPT-2, of transformers' vision models, of timm; BERT's lies in its layers
CHANCES = ("p", "prob", "drop_prob", "attention_dropout")  # of dropout, of paths, patches and attention


class TextEncoder(nn.Module):
    """A text model of transformers, pooled over the tokens that are no padding."""

    encoder: Any

    def __init__(self, encoder: Any, tokenizer: str | None, pool: TextPool = "mean", padding: int = 0) -> None:
        super().__init__()
        self.encoder = without_chance(encoder)
        attention.use(encoder)
        self.tokenizer, self.pool, self.padding = tokenizer, pool, padding
        self.kind = type(encoder).__name__
        self.causal: bool = self.kind == "GPT2Model" or getattr(encoder.config, "is_decoder", False)
        self.n_features: int = encoder.config.hidden_size

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, d)"""
        if ids.is_floating_point() or ids.dim() != 2:
            told = f"{str(ids.dtype).removeprefix('torch.')} of shape {tuple(ids.shape)}"
            raise OptionError(f"this model reads token ids; not {told}")
        ids = ids.long()
        real = self.real(ids)
        given: dict[str, Any] = {"attention_mask": self._mask(real), "position_ids": self._positions(real)}
        if self.kind in WITH_TOKEN_TYPES:
            given["token_type_ids"] = torch.zeros_like(ids)
        if self.causal:
            given["use_cache"] = False
        return self._pooled(self.encoder(ids, **given).last_hidden_state, real)

    def averaged(self, states: Tensor) -> Tensor:
        """The features of some positions that leave the last layer, as their mean. (B, n, d) -> (B, d)"""
        return normalised_last(self.encoder, states).mean(1)

    def real(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, L) bool: which are no padding"""
        return ids.ne(self.padding)

    def _mask(self, real: Tensor) -> Tensor:
        """(B, L) -> (B, 1, 1, L), or (B, 1, L, L) where causal: what is added to the attention's logits.

        Made here, because transformers leaves it out where a batch has no padding, and asks the tensor for that.
        """
        seen = real[:, None, None]
        if self.causal:
            seen = seen & attention.causal_mask(real.shape[1], device=real.device)
        dtype = self.encoder.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=real.device).masked_fill(~seen, torch.finfo(dtype).min)

    def _positions(self, real: Tensor) -> Tensor:
        """(B, L) -> (B, L), as each model counts them."""
        if self.kind == "RobertaModel":  # padding has the padding's number, the first token the next
            return real.cumsum(1) * real + self.encoder.embeddings.padding_idx
        return torch.arange(real.shape[1], device=real.device).expand_as(real)

    def _pooled(self, hidden: Tensor, real: Tensor) -> Tensor:
        """(B, L, d), (B, L) -> (B, d)"""
        if self.pool == "first":
            return hidden[:, 0]
        if self.pool == "last":
            last = (real * torch.arange(real.shape[1], device=real.device)).argmax(1)
            return hidden[torch.arange(len(hidden), device=real.device), last]
        weight = real.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


class ImageEncoder(nn.Module):
    """A vision transformer of transformers or timm, on images that it scales and normalises itself."""

    encoder: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Any,
        size: int,
        pool: ImagePool = "first",
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__()
        self.encoder = without_chance(encoder)
        self.size, self.pool = size, pool
        self.of_timm = not hasattr(encoder, "config")
        if not self.of_timm:
            attention.use(encoder)
        self.special = _special(encoder)  # tokens that stand for no patch, in front
        if "first" in pool and not self.special:
            raise OptionError("this model has no token that stands for the whole image; pool by 'mean'", "pool")
        self.channels, width = _channels_and_width(encoder)
        self.n_features: int = width * (2 if pool == "first+mean" else 1)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, d)"""
        x = self.scaled(x)
        tokens = self.encoder.forward_features(x) if self.of_timm else self.encoder(x).last_hidden_state
        pooled = {"first": lambda: tokens[:, 0], "mean": lambda: tokens[:, self.special :].mean(1)}
        return self._joined([pooled[part]() for part in self.pool.split("+")])

    def averaged(self, states: Tensor) -> Tensor:
        """The features of some positions that leave the last layer, as their mean. (B, n, width) -> (B, d)"""
        mean = normalised_last(self.encoder, states).mean(1)
        return self._joined([mean for _ in self.pool.split("+")])

    def _joined(self, features: list[Tensor]) -> Tensor:
        """(B, width) each -> (B, d)"""
        if self.of_timm:
            features = [self.encoder.fc_norm(part) for part in features]
        return torch.cat(features, 1)

    def real(self, x: Tensor) -> None:
        """Every token is real."""

    def scaled(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels, size, size): what the encoder reads"""
        if x.dim() != 4 or not x.is_floating_point() or x.shape[1] not in (1, self.channels):
            told = f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
            raise OptionError(f"this model reads images of {self.channels} channels or 1, as numbers; not {told}")
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return (x.expand(-1, self.channels, -1, -1) - self.mean) / self.std


def normalised_last(encoder: Any, states: Tensor) -> Tensor:
    """What the encoder does to each position after its last layer: a layer norm, or nothing. (B, n, d)"""
    norms = [getattr(encoder, name) for name in LAST_NORMS if hasattr(encoder, name)]
    return norms[0](states) if norms else states


def without_chance(encoder: nn.Module) -> nn.Module:
    """The same model, where training drops nothing."""
    for module in encoder.modules():
        for name in CHANCES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return encoder


@torch.no_grad()
def at_size(encoder: Any, size: int) -> None:
    """Bring the positions of a vision transformer of transformers to another image size, once, as it would each time.

    Raises:
        OptionError: the size does not divide into patches.
    """
    embeddings, config = encoder.embeddings, encoder.config
    if size % config.patch_size:
        raise OptionError(f"images of {size} pixels do not divide into patches of {config.patch_size}", "size")
    patches = (size // config.patch_size) ** 2
    tokens = torch.zeros(1, _special(encoder) + patches, config.hidden_size)
    embeddings.position_embeddings = nn.Parameter(embeddings.interpolate_pos_encoding(tokens, size, size).clone())
    for part in (embeddings, embeddings.patch_embeddings):
        part.image_size = (size, size)
    embeddings.patch_embeddings.num_patches, config.image_size = patches, size


def _special(encoder: Any) -> int:
    if not hasattr(encoder, "config"):
        return encoder.num_prefix_tokens
    return 2 if type(encoder).__name__ == "DeiTModel" else 1


def _channels_and_width(encoder: Any) -> tuple[int, int]:
    if hasattr(encoder, "config"):
        return encoder.config.num_channels, encoder.config.hidden_size
    return encoder.patch_embed.proj.in_channels, encoder.embed_dim
