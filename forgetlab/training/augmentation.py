"""Augmentation: training images changed anew in each epoch, as tensors, by kornia's functions.

What a sample draws depends on the seed, the task, the epoch and its place in the task's data, and on nothing else: a
resume, another batch size or another strategy leaves it alone. A memory keeps samples as they came; each time one is
drawn again it is changed anew. Penalties and teachers are asked about what the model saw; what is learned at a task's
end, and every evaluation, sees samples as they are.

Crops and flips are exact. On a CPU the others too gave equal bits in batches of 1 to 600 (3 x 32 x 32, 1 x 28 x 28);
on two threads the contrast of 3 x 224 x 224, alone in its batch, differed by 1.5e-8.
"""

from __future__ import annotations

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
    for name, (operation, n) in OPERATIONS.items():
        own, draws = draws[:n], draws[n:]
        if (value := getattr(options, name)) is not None:
            x = operation(x, value, own)
    return x


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


OPERATIONS: dict[str, tuple[Callable[[Tensor, Any, Tensor], Tensor], int]] = {  # in turn, each with its draws a sample
    "crop": (cropped, 2),
    "flip": (flipped, 2),
    "rotation": (rotated, 1),
    "brightness": (brightened, 1),
    "contrast": (contrasted, 1),
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
