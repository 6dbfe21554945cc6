"""One tiny backbone of each family, and inputs that it reads: what the checks put modules on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from forgetlab import torchvision_ops
from forgetlab.backbones.encoders import ImageEncoder, TextEncoder
from forgetlab.backbones.mlp import MLP
from forgetlab.backbones.vit import ViT
from forgetlab.seeding import drawn_from, generator

WIDTH, LAYERS, HEADS = 16, 2, 2
VOCABULARY, LENGTH = 50, 8  # of texts
SIDE, PATCH = 8, 4  # of images
IMAGE = (1, SIDE, SIDE)


def tiny(name: str) -> nn.Module:
    """A backbone of a family, in eval mode, with the same weights each time."""
    torchvision_ops.ensure()
    with drawn_from("tiny", name):
        backbone = FAMILIES[name]()
        for parameter in backbone.parameters():  # not what starts at 0 or 1: a mistake in it would not show
            nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else nn.init.uniform_(parameter, 0.5, 1.5)
    return backbone.eval()


def samples(backbone: nn.Module, seed: int, n: int = 12) -> Tensor:
    """(n, 1, 8, 8) floats in [0, 1], or (n, 8) token ids with padding at the end of some."""
    draws = generator("tiny samples", seed)
    if not isinstance(backbone, TextEncoder):
        return torch.rand(n, *IMAGE, generator=draws)
    ids = torch.randint(backbone.padding + 1, VOCABULARY, (n, LENGTH), generator=draws)
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (n, 1), generator=draws)
    return ids.masked_fill(torch.arange(LENGTH) >= lengths, backbone.padding)


def _bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=4 * LENGTH,
    )
    return TextEncoder(BertModel(config, add_pooling_layer=False), "tiny")


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=4 * LENGTH,
        bos_token_id=None,
        eos_token_id=None,
    )
    return TextEncoder(GPT2Model(config), "tiny", pool="last")


def _hf_vit() -> nn.Module:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        image_size=SIDE,
        patch_size=PATCH,
        num_channels=1,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
    )
    return ImageEncoder(ViTModel(config, add_pooling_layer=False), SIDE)


def _timm() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    from forgetlab.backbones.timm_vit import timm_encoder

    vit = VisionTransformer(SIDE, PATCH, 1, embed_dim=WIDTH, depth=LAYERS, num_heads=HEADS, mlp_ratio=2)
    return timm_encoder(vit)


FAMILIES: Mapping[str, Callable[[], nn.Module]] = {
    "vit": lambda: ViT(IMAGE, width=WIDTH, depth=LAYERS, heads=HEADS, patch=PATCH),
    "mlp": lambda: MLP(IMAGE, hidden=(WIDTH,) * LAYERS),
    "bert": _bert,
    "gpt2": _gpt2,
    "hf_vit": _hf_vit,
    "timm": _timm,
}
