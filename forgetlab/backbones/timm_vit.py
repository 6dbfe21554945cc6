"""timm's vision transformers, by name: Wightman 2019, https://github.com/huggingface/pytorch-image-models (Apache-2.0).

timm fuses attention's projections and leaves no place for more keys and values; the attention is replaced by one that
has a place, under the same parameter names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab import torchvision_ops
from forgetlab.backbones.attention import widen
from forgetlab.backbones.encoders import ImageEncoder, ImagePool
from forgetlab.backbones.layers import KeysValues
from forgetlab.plugins.options import OptionError, suggestion
from forgetlab.plugins.registry import register
from forgetlab.seeding import drawn_from

PARTS = ("qkv", "q_norm", "k_norm", "norm", "proj")


class FusedAttention(nn.Module):
    """timm's attention, from its own layers, with a place for keys and values."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.q_norm, self.k_norm, self.norm, self.proj = (getattr(attention, part) for part in PARTS)
        self.num_heads: int = attention.num_heads
        self.keys_values = KeysValues()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, T, d) -> (B, T, d)"""
        fused = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = fused.unbind(0)  # (B, heads, T, d/heads) each
        k, v = self.keys_values(self.k_norm(k), v)
        if attn_mask is not None and k.shape[2] > q.shape[2]:
            attn_mask = widen(attn_mask, k.shape[2] - q.shape[2])
        attended = F.scaled_dot_product_attention(self.q_norm(q), k, v, attn_mask=attn_mask, is_causal=is_causal)
        return self.proj(self.norm(attended.transpose(1, 2).flatten(2)))


@register("model", "timm")
def timm(
    input_shape: tuple[int, ...],
    model: str,  # timm's name, such as vit_tiny_patch16_224
    weights: Path | None = None,  # a safetensors file with timm's names; null: timm's random start
    size: PositiveInt | None = None,  # pixels, of a side; null: the model's own
    pool: ImagePool | None = None,  # null: the model's own
) -> ImageEncoder:
    """A ``VisionTransformer`` of timm: images of one or three channels, features before its head.

    Raises:
        OptionError: timm is not installed, has no such model, or the weights do not fit.
    """
    if len(input_shape) != 3:
        raise OptionError(f"timm's models read images (channels, height, width), not inputs of shape {input_shape}")
    made = _created(model, size)
    if weights is not None:
        _load(made, weights)
    settings = made.pretrained_cfg
    own: ImagePool = "mean" if made.global_pool == "avg" else "first"
    return timm_encoder(made, pool or own, settings["mean"], settings["std"])


def timm_encoder(
    vit: Any, pool: ImagePool = "first", mean: tuple[float, ...] = (0.5,), std: tuple[float, ...] = (0.5,)
) -> ImageEncoder:
    """A ``VisionTransformer`` of timm as a backbone; its attention is replaced.

    Raises:
        OptionError: its layers are not those of an ordinary vision transformer.
    """
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import Block, VisionTransformer

    blocks: Any = vit.blocks if type(vit) is VisionTransformer else [None]
    plain = all(type(block) is Block and type(block.attn) is Attention for block in blocks)
    if not plain or any(block.attn.gate is not None for block in blocks):
        raise OptionError("this is no plain VisionTransformer of timm's, with fused attention in each block", "model")
    for block in blocks:
        block.attn = FusedAttention(block.attn)
    vit.reset_classifier(0)
    return ImageEncoder(vit, vit.patch_embed.img_size[0], pool, mean, std)


def _created(model: str, size: int | None) -> Any:
    torchvision_ops.ensure()  # timm imports torchvision
    try:
        import timm as library
    except ModuleNotFoundError as error:
        raise OptionError(f"{error.name} is not installed: install forgetlab[timm]", "model") from error
    if not library.is_model(model):
        names = library.list_models(module="vision_transformer")
        raise OptionError(f"timm has no model {model!r}{suggestion(model, names)}", "model")
    sized: dict[str, Any] = {} if size is None else {"img_size": size}
    with drawn_from("timm", model):
        return library.create_model(model, pretrained=False, **sized)


def _load(vit: Any, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from timm.models.vision_transformer import checkpoint_filter_fn

    try:
        told = load_file(path)
    except (OSError, SafetensorError) as error:
        raise OptionError(f"{path.name} cannot be read as safetensors: {error}", "weights") from error
    vit.reset_classifier(0)
    held = vit.state_dict()
    fitting = {name: value for name, value in checkpoint_filter_fn(told, vit).items() if not name.startswith("head")}
    odd = sorted(held.keys() ^ fitting.keys()) or [n for n, v in held.items() if v.shape != fitting[n].shape]
    if odd:
        raise OptionError(f"{path.name} does not fit this model: {odd[0]} and {len(odd) - 1} more", "weights")
    vit.load_state_dict(fitting)
