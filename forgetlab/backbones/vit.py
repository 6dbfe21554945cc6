"""A small vision transformer."""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.backbones.layers import Block, Positions
from forgetlab.plugins.options import OptionError
from forgetlab.plugins.registry import register


@register("model", "vit")
class ViT(nn.Module):
    """A small vision transformer (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929), averaged over patches."""

    def __init__(
        self,
        input_shape: tuple[int, ...],
        width: PositiveInt = 64,
        depth: PositiveInt = 4,
        heads: PositiveInt = 4,
        patch: PositiveInt = 4,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise OptionError(f"a vit takes images (channels, height, width), not inputs of shape {input_shape}")
        channels, height, image_width = input_shape
        if height % patch or image_width % patch:
            raise OptionError(f"images of {height} x {image_width} do not divide into patches of {patch}", "patch")
        if width % heads:
            raise OptionError(f"width {width} does not divide into {heads} heads", "heads")
        self.patch, self.n_features = patch, width
        self.embed = nn.Linear(channels * patch * patch, width)
        self.positions = Positions(height // patch * (image_width // patch), width)
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, width)"""
        patches = F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)  # (B, T, C * patch * patch)
        x = self.positions(self.embed(patches.contiguous()))  # see `forgetlab.isolation.attachment.swapped`
        for block in self.blocks:
            x = block(x)
        return self.averaged(x)

    def averaged(self, states: Tensor) -> Tensor:
        """The features of some positions that leave the last block, as their mean. (B, n, width) -> (B, width)"""
        return self.norm(states).mean(1)
