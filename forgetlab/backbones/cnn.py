"""A small plain convolutional network with batch normalisation (Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167)."""

from __future__ import annotations

from itertools import pairwise

from pydantic import PositiveInt
from torch import Tensor, nn

from forgetlab.plugins.options import OptionError
from forgetlab.plugins.registry import register

SMALLEST = 2  # a side of what a batch's statistics are taken over, so that a batch of one image has some


@register("model", "cnn")
class CNN(nn.Module):
    """3 x 3 convolutions, each normalised, then ReLU; all but the first halve the image. Averaged over the image."""

    def __init__(self, input_shape: tuple[int, ...], widths: tuple[PositiveInt, ...] = (32, 64, 128)) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise OptionError(f"a cnn takes images (channels, height, width), not inputs of shape {input_shape}")
        if not widths:
            raise OptionError("name one width or more", "widths")
        channels, height, width = input_shape
        smallest = -(-min(height, width) // 2 ** (len(widths) - 1))
        if smallest < SMALLEST:
            message = f"{len(widths)} layers leave no {SMALLEST} x {SMALLEST} places of an image of {height} x {width}"
            raise OptionError(message, "widths")
        sizes = pairwise((channels, *widths))
        self.layers = nn.ModuleList(_layer(i, o, stride=1 + (n > 0)) for n, (i, o) in enumerate(sizes))
        self.n_features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, widths[-1])"""
        for layer in self.layers:
            x = layer(x)
        return x.mean((2, 3))


def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
