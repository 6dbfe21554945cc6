"""Attention of transformers' models, with a place for extra keys and values; the kernel is torch's own.

A model that `use` was called on answers as before, to the bit, until an attention module is extended.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from forgetlab import torchvision_ops

NAME = "forgetlab"  # what transformers knows it by

Extension = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# By module and not on it: a deep copy of a module is another module, without extensions.
_extensions: WeakKeyDictionary[nn.Module, OrderedDict[int, Extension]] = WeakKeyDictionary()


def use(model: Any) -> None:
    """Let a transformers model attend by `attend`."""
    _register()
    model.set_attn_implementation(NAME)


def extend(attention: nn.Module, extension: Extension) -> RemovableHandle:
    """Pass the keys and values of an attention module, (B, heads, T, d/heads) each, through ``extension``.

    It may put more of them in front of the others. Several compose in the order in which they came.

    Raises:
        ValueError: the module does not attend by `attend`.
    """
    if getattr(getattr(attention, "config", None), "_attn_implementation", None) != NAME:
        raise ValueError(
            f"this {type(attention).__name__} does not attend by forgetlab.backbones.attention; call `use` first"
        )
    extensions = _extensions.setdefault(attention, OrderedDict())
    handle = RemovableHandle(extensions)
    extensions[handle.id] = extension
    return handle


def widen(mask: Tensor, added: int) -> Tensor:
    """A mask with columns put in front, for keys that every token sees. (..., T) -> (..., added + T)"""
    return F.pad(mask, (added, 0), value=_seen(mask))


def prepend_mask(mask: Tensor | None, added: int) -> Tensor | None:
    """The mask of a sequence with more tokens in front, which all real tokens see.

    - (B, 1, 1, T) -> (B, 1, 1, added + T): the new tokens see all that the others see;
    - (B, 1, T, T) -> (B, 1, added + T, added + T): the new ones see what stands before them and themselves;
    - None stays None: what is causal without a mask stays so, and what sees all sees the new ones too.
    """
    if mask is None:
        return None
    wide = widen(mask, added)
    if mask.shape[-2] == 1:
        return wide
    rows = wide.new_full((*wide.shape[:-2], added, wide.shape[-1]), _hidden(mask))
    rows[..., :added] = rows[..., :added].masked_fill(causal_mask(added, device=mask.device), _seen(mask))
    return torch.cat([rows, wide], dim=-2)


def causal_mask(length: int, before: int = 0, device: torch.device | None = None) -> Tensor:
    """(1, 1, length, before + length) bool: a token sees the keys before all, itself and what comes before it."""
    return torch.ones(1, 1, length, before + length, dtype=torch.bool, device=device).tril(before)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """transformers' ``sdpa``, on the keys and values that the module's extensions make. (B, heads, T, d/heads) each"""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    length = key.shape[2]
    for extension in _extensions.get(module, {}).values():
        key, value = extension(key, value)
    if added := key.shape[2] - length:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if attention_mask is not None:
            attention_mask = widen(attention_mask, added)
        elif causal and query.shape[2] > 1:
            attention_mask = causal_mask(query.shape[2], added, query.device)
    return sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=is_causal, **settings)


@cache
def _register() -> None:
    torchvision_ops.ensure()  # transformers imports torchvision
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _seen(mask: Tensor) -> float:
    return 1.0 if mask.dtype == torch.bool else 0.0


def _hidden(mask: Tensor) -> float:
    return 0.0 if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
