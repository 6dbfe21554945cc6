"""Residual networks as continual learning has them: for images of 32 x 32, with a stem that halves nothing.

He et al. 2016, Deep Residual Learning for Image Recognition, https://arxiv.org/abs/1512.03385. Two forms of theirs:

- depth 18: four stages of two blocks, widths w, 2w, 4w and 8w, and where a stage widens, a 1 x 1 convolution with
  BatchNorm in the shortcut. w = 64 in Mammoth, w = 20 in the slim form of GEM (Lopez-Paz & Ranzato 2017,
  https://arxiv.org/abs/1706.08840) that papers on online learning took over.
- depth 20 and 32: three stages of three or five blocks, widths w, 2w and 4w with w = 16, and shortcuts without
  weights: every second pixel, zeros in the channels that are new (their section 4.2). iCaRL (Rebuffi et al. 2017,
  https://arxiv.org/abs/1611.07725), and PyCIL and FACIL after it.

Convolutions begin as in He et al. 2015, https://arxiv.org/abs/1502.01852, which PyCIL does as well; Mammoth leaves them
at torch's own start. The features are averaged over the image, whatever its size. Not done: iCaRL's last block without
ReLU, which some implementations have.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.backbones.cnn import SMALLEST
from forgetlab.plugins.options import OptionError
from forgetlab.plugins.registry import register

BLOCKS = {18: (2, 2, 2, 2), 20: (3, 3, 3), 32: (5, 5, 5)}  # of each stage, by depth
WIDTHS = {18: 64, 20: 16, 32: 16}  # of the first stage; each later one has twice its channels and half its side


@register("model", "resnet")
class ResNet(nn.Module):
    """A 3 x 3 stem, then basic blocks; every stage but the first halves the image and doubles the channels."""

    places: ClassVar = {"block": "layers.*"}

    def __init__(
        self,
        input_shape: tuple[int, ...],
        depth: Literal[18, 20, 32] = 18,
        width: PositiveInt | None = None,  # channels of the first stage; by default 64 of depth 18 and 16 of 20 and 32
    ) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise OptionError(f"a resnet takes images (channels, height, width), not inputs of shape {input_shape}")
        stages = BLOCKS[depth]
        _refuse_small_images(input_shape, depth, len(stages))
        channels = WIDTHS[depth] if width is None else width
        self.stem = nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.layers = nn.ModuleList()
        for stage, blocks in enumerate(stages):
            for block in range(blocks):
                halves = stage > 0 and block == 0
                wider = 2 * channels if halves else channels
                self.layers.append(BasicBlock(channels, wider, halves, learned_shortcut=depth == 18))
                channels = wider
        self.n_features = channels
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, n_features)"""
        x = self.norm(self.stem(x)).relu()
        for layer in self.layers:
            x = layer(x)
        return x.mean((2, 3))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: relu(F(x) + s(x)) (eq. 1 and 2)."""

    def __init__(self, inputs: int, outputs: int, halves: bool, *, learned_shortcut: bool) -> None:
        super().__init__()
        stride = 2 if halves else 1
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if halves:
            self.shortcut = _learned_shortcut(inputs, outputs) if learned_shortcut else PaddedShortcut()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W), or half of the sides rounded up"""
        residual = self.first_norm(self.first(x)).relu()
        residual = self.second_norm(self.second(residual))
        return (residual + self.shortcut(x)).relu()


class PaddedShortcut(nn.Module):
    """Every second pixel in each direction, and as many channels of zeros behind those that there are (option A)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2C, H/2, W/2), sides rounded up"""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))


def _learned_shortcut(inputs: int, outputs: int) -> nn.Module:
    """A convolution of single pixels, normalised (option B)."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))


def _refuse_small_images(input_shape: tuple[int, ...], depth: int, stages: int) -> None:
    """
    Raises:
        OptionError: the last stage would have fewer than 2 x 2 places, so that one image has no statistics.
    """
    _, height, width = input_shape
    smallest = -(-min(height, width) // 2 ** (stages - 1))
    if smallest < SMALLEST:
        message = (
            f"depth {depth} halves an image {stages - 1} times, which leaves no {SMALLEST} x {SMALLEST} places of one "
            f"of {height} x {width}"
        )
        shallow = "; take depth 20 or 32, which halve twice" if depth == 18 else "; take the model cnn"
        raise OptionError(message + shallow, "depth")
