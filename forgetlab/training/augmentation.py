"""Augmentation: training images changed anew in each epoch, as tensors, by kornia's functions.

What a sample draws depends on the seed, the task, the epoch and its place in the task's data, and on nothing else: a
resume, another batch size or another strategy leaves it alone. A memory keeps samples as they came; each time one is
drawn again it is changed anew. Penalties and teachers are asked about what the model saw; what is learned at a task's
end, and every evaluation, sees samples as they are.

Crops and flips are exact. On a CPU the others too gave equal bits in batches of 1 to 600 (3 x 32 x 32, 1 x 28 x 28);
on two threads the contrast of 3 x 224 x 224, alone in its batch, differed by 1.5e-8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from forgetlab.experiment import Augment
from forgetlab.plugins.options import OptionError
from forgetlab.seeding import generator


class Augmentation:
    """Changes a batch: column i of a table that is drawn for each task and epoch belongs to the task's sample i."""

    def __init__(self, options: Augment, seed: int) -> None:
        self.options, self.seed = options, seed
        self._table = torch.empty(0)
        self._drawn_for: tuple[int, ...] = ()

    def __call__(self, x: Tensor, rows: Tensor, of: int, *, task: int, epoch: int, step: int) -> Tensor:
        """(B, C, H, W): a task's samples ``rows`` among all ``of`` it, then what a memory drew in this step."""
        if (place := (task, epoch, of)) != self._drawn_for:
            self._table = drawn_numbers(of, "augment", self.seed, task, epoch).to(x.device)
            self._drawn_for = place
        draws = self._table.index_select(1, rows)
        if replayed := len(x) - len(rows):
            more = drawn_numbers(replayed, "augment_replay", self.seed, task, step).to(x.device)
            draws = torch.cat([draws, more], 1)
        return augmented(x, draws, self.options)


def drawn_numbers(n: int, *name: str | int) -> Tensor:
    """What n samples draw, for all operations, so that asking for one more leaves the draws of the others alone."""
    return torch.rand(sum(draws for _, draws in OPERATIONS.values()), n, generator=generator(*name))


def augmented(x: Tensor, draws: Tensor, options: Augment) -> Tensor:
    """(B, C, H, W), (all draws, B) in [0, 1) -> (B, C, H, W)"""
    own: dict[str, Tensor] = {}
    for name, (_, n) in OPERATIONS.items():
        own[name], draws = draws[:n], draws[n:]
    for name in Augment.model_fields:  # in the order in which they are done
        value = getattr(options, name)
        if value is not None:
            operation, _ = OPERATIONS[name]
            x = operation(x, value, own[name])
    return x


def resized_crop(x: Tensor, least: float, draws: Tensor) -> Tensor:
    """A part of the image, brought back to its size: the crop of Inception (Szegedy et al. 2015).

    https://arxiv.org/abs/1409.4842, as torchvision's RandomResizedCrop has it: a share of the area between ``least``
    and 1, a ratio of width to height between 3/4 and 4/3, uniform in its logarithm, both drawn up to ten times until
    the part lies in the image (else the largest middle part with an allowed ratio), then its place, all in whole
    pixels. Scaled bilinearly; as no part is larger than the image, antialiasing would change nothing.
    """
    top, left, height, width = crop_boxes(x.shape[2], x.shape[3], least, draws)
    down = scaling(top, height, x.shape[2]).to(x.dtype)
    across = scaling(left, width, x.shape[3]).to(x.dtype)
    return down.unsqueeze(1) @ x @ across.unsqueeze(1).mT


def crop_boxes(height: int, width: int, least: float, draws: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each sample's part the first row and column, the height and the width. (2 * TRIES + 2, B) -> (B,) each"""
    shares, ratios, places = draws[:TRIES], draws[TRIES : 2 * TRIES], draws[2 * TRIES :]
    area = height * width * (least + (1 - least) * shares)  # (TRIES, B)
    ratio = torch.exp(math.log(LOWEST_RATIO) + (math.log(HIGHEST_RATIO) - math.log(LOWEST_RATIO)) * ratios)
    of_width, of_height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (of_width > 0) & (of_width <= width) & (of_height > 0) & (of_height <= height)
    first = fits.int().argmax(0, keepdim=True)  # the first of equal ones
    middle_height, middle_width = _largest_middle(height, width)
    found = fits.any(0)
    high = torch.where(found, of_height.gather(0, first)[0], float(middle_height))
    wide = torch.where(found, of_width.gather(0, first)[0], float(middle_width))
    top = torch.where(found, (places[0] * (height - high + 1)).floor(), float((height - middle_height) // 2))
    left = torch.where(found, (places[1] * (width - wide + 1)).floor(), float((width - middle_width) // 2))
    return top, left, high, wide


def _largest_middle(height: int, width: int) -> tuple[int, int]:
    """The height and width of the largest part with an allowed ratio."""
    if width / height < LOWEST_RATIO:
        return round(width / LOWEST_RATIO), width
    if width / height > HIGHEST_RATIO:
        return height, round(height * HIGHEST_RATIO)
    return height, width


def scaling(start: Tensor, length: Tensor, size: int) -> Tensor:
    """What brings the pixels from ``start`` on to ``size`` many, in one direction. (B,), (B,) -> (B, size, size)

    A new pixel is the mean of the old ones less than one pixel from its centre, the nearer the heavier; of those in
    the part alone.
    """
    step = (length / size).view(-1, 1, 1)
    begin, end = start.view(-1, 1, 1), (start + length).view(-1, 1, 1)
    pixel = torch.arange(size, device=start.device, dtype=start.dtype)
    centre = begin + (pixel.view(1, -1, 1) + 0.5) * step
    distance = (pixel.view(1, 1, -1) + 0.5 - centre).abs()
    inside = (pixel.view(1, 1, -1) >= begin) & (pixel.view(1, 1, -1) < end)
    weight = (1 - distance).clamp(min=0) * inside
    return weight / weight.sum(2, keepdim=True)


def cropped(x: Tensor, padding: int, draws: Tensor) -> Tensor:
    """A window as large as the image, somewhere in the image with a margin of zeros; whole pixels, so exact."""
    down, right = (draws * (2 * padding + 1)).long()
    margin = F.pad(x, (padding, padding, padding, padding))
    windows = margin.unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)  # (B, C, places down, places right, H, W)
    return windows[torch.arange(len(x), device=x.device), :, down, right]


def flipped(x: Tensor, axes: str, draws: Tensor) -> Tensor:
    """Mirrored with a chance of one half; along both axes, for each by a draw of its own."""
    from kornia.geometry.transform import hflip, vflip

    chosen = (draws < 0.5)[:, :, None, None, None]
    x = torch.where(chosen[0], hflip(x), x) if axes != "vertical" else x
    return torch.where(chosen[1], vflip(x), x) if axes != "horizontal" else x


def rotated(x: Tensor, degrees: float, draws: Tensor) -> Tensor:
    """Turned about its centre, counter-clockwise where the angle is above 0; bilinear, with zeros from outside."""
    from kornia.geometry.transform import rotate

    return rotate(x, _between(-degrees, degrees, draws))


def brightened(x: Tensor, share: float, draws: Tensor) -> Tensor:
    """All values times a factor, clipped to [0, 1]."""
    from kornia.enhance import adjust_brightness_accumulative

    return adjust_brightness_accumulative(x, _between(1 - share, 1 + share, draws))


def contrasted(x: Tensor, share: float, draws: Tensor) -> Tensor:
    """The distance of all values from the image's mean grey times a factor, clipped to [0, 1]."""
    from kornia.enhance import adjust_contrast_with_mean_subtraction

    return adjust_contrast_with_mean_subtraction(x, _between(1 - share, 1 + share, draws))


TRIES = 10  # of a part's area and ratio, as torchvision has it
LOWEST_RATIO, HIGHEST_RATIO = 3 / 4, 4 / 3

# Each with its draws a sample, in the order in which they are drawn: what came later stands last, so that the numbers
# of the others stay. What is done first, `Augment` says.
OPERATIONS: dict[str, tuple[Callable[[Tensor, Any, Tensor], Tensor], int]] = {
    "crop": (cropped, 2),
    "flip": (flipped, 2),
    "rotation": (rotated, 1),
    "brightness": (brightened, 1),
    "contrast": (contrasted, 1),
    "resized_crop": (resized_crop, 2 * TRIES + 2),
}


def _between(low: float, high: float, draws: Tensor) -> Tensor:
    return low + (high - low) * draws[0]


def augmentation_problems(options: Augment, x: Tensor) -> Iterator[OptionError]:
    """Why inputs such as these (B, ...) cannot be augmented so; each says at which key."""
    if not options.named:
        return
    if not x.is_floating_point() or x.dim() != 4:
        sample = f"{tuple(x.shape[1:])} of {str(x.dtype).removeprefix('torch.')}"
        yield OptionError(f"only images can be augmented, (channels, height, width); a sample here is {sample}")
        return
    if find_spec("kornia") is None:
        yield OptionError("augmentation needs the package kornia: pip install 'forgetlab[augment]'")
    height, width = x.shape[2:]
    if options.crop is not None and options.crop >= min(height, width):
        yield OptionError(f"a margin of {options.crop} lets images of {height} x {width} leave the window", "crop")
    low, high = x.min().item(), x.max().item()
    if not 0 <= low <= high <= 1:
        for name in {"brightness", "contrast"} & options.named.keys():
            yield OptionError(f"{name} clips to [0, 1], but there are values from {low:.3g} to {high:.3g}", name)
